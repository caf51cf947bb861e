"""Open the checkpoints of `tests/fixtures/checkpoints` by their own code, as the release that wrote them put it beside the weights.

    python tests/versions/check_old_checkpoints.py RESULTS.json

`RESULTS.json` holds, by release, "ok", "-: reason" where its code does not run on the transformers that is here, or what is wrong.
"""

# ruff: noqa: E402

import sys

sys.modules["gpt_scratch"] = None  # as if it were not installed

import json
from pathlib import Path

import torch
from case import RELEASE, TRUST, load, near, same
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "checkpoints"
# Release: the first and the last minor release of transformers that its own code runs on; None: no later release has broken it.
OWN_CODE = {"0.1.0": ((5, 21), (5, 23)), "0.2.0": ((4, 46), None)}


@torch.no_grad()
def check(folder: Path) -> None:
    """The tokenizer's ids, the logits of each row and of all rows padded on the left, and how a language model continues."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(folder, **TRUST)
    same([tokenizer(prompt)["input_ids"] for prompt in expected["prompts"]], expected["ids"], "ids")
    auto = AutoModelForCausalLM if "greedy" in expected else AutoModelForSequenceClassification
    model, logits = load(auto, folder), torch.tensor(expected["logits"])
    batch = tokenizer(expected["prompts"], padding=True, padding_side="left", return_tensors="pt")
    outputs = [model(torch.tensor([row])).logits for row in expected["ids"]] + [model(**batch).logits]
    last = torch.cat([output[:, -1] if output.ndim == 3 else output for output in outputs])
    near(last, torch.cat((logits, logits)), "logits")
    if "greedy" in expected:
        count = len(expected["greedy"][0])
        new = model.generate(**batch, max_new_tokens=count, do_sample=False)[:, -count:]
        same(new.tolist(), expected["greedy"], "greedy tokens")


def outcome(release: str) -> str:
    first, last = OWN_CODE[release]
    if not first <= RELEASE <= (last or RELEASE):
        window = " to ".join(".".join(map(str, bound)) for bound in (first, last or RELEASE))
        return f"-: the code that release {release} wrote runs on transformers {window}"
    for folder in sorted((FOLDER / release).iterdir()):
        try:
            check(folder)
        except Exception as error:
            return f"{folder.name}: {type(error).__name__}: {str(error).splitlines()[-1]}"
    return "ok"


if __name__ == "__main__":
    found = {f"{folder.name} by its own code": outcome(folder.name) for folder in sorted(FOLDER.iterdir())}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1), encoding="utf-8")
