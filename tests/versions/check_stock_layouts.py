"""Load stock checkpoints that this package wrote with whatever transformers is here, and compare them with what our model computed.

    python tests/stock_checkpoints.py FOLDER                                    # writes them, where this package is installed
    python tests/versions/check_stock_layouts.py FOLDER/expected.json           # anywhere else: torch, transformers, safetensors

`expected.json` holds, for each directory beside it: `input_ids` and `attention_mask` (rows, T), of a language model padded left, of a
classifier right; `logits`, (rows, T, V) or (rows, L); and `greedy`, how a language model continues, (rows, new tokens). All in
float32. Runs on transformers 4.46 and later; nothing here may be newer than that.

Raises:
    AssertionError: another function, a class that is not transformers' own, or anything in the directory that would ask for trust.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

TOLERANCE = 1e-5  # of the largest logit, or of 1 where all are smaller


def load(folder):
    """The model in evaluation mode, as somebody loads it who runs no foreign code; float32."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in config and not list(folder.glob("*.py")), f"{folder.name} asks for trust"
    classifier = config["architectures"][0].endswith("ForSequenceClassification")
    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, output_loading_info=True, trust_remote_code=False)
    problems = {name: list(keys) for name, keys in report.items() if keys}
    assert not problems, f"{folder.name}: {problems}"
    assert type(model).__module__.startswith("transformers.models."), type(model)
    assert type(model).__name__ == config["architectures"][0], type(model)
    return model.float().eval()


def dtype_asked_for(folder):
    """What `torch_dtype="auto"` makes of a checkpoint, and what its weights are."""
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        stored = weights.get_tensor(next(iter(weights.keys()))).dtype
    return transformers.AutoConfig.from_pretrained(folder).torch_dtype, stored


@torch.no_grad()
def check(folder, expected):
    """Compare logits and greedy tokens with an entry of `expected.json`; returns the largest difference, relative to the largest logit."""
    folder = Path(folder)
    model = load(folder)
    ids, mask = torch.tensor(expected["input_ids"]), torch.tensor(expected["attention_mask"])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)  # as generate counts them
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    wanted = torch.tensor(expected["logits"])
    if logits.dim() == 3:
        logits, wanted = logits[mask.bool()], wanted[mask.bool()]
    difference = ((logits - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
    assert difference <= TOLERANCE, f"{folder.name}: logits differ by {difference:.1e} of the largest"
    if "greedy" in expected:
        count = len(expected["greedy"][0])
        new = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=count, min_new_tokens=count)[
            :, ids.shape[1] :
        ]
        assert new.tolist() == expected["greedy"], f"{folder.name}: other greedy tokens"
    found, stored = dtype_asked_for(folder)
    assert found == stored, f"{folder.name}: weights are {stored}, the configuration says {found}"
    return difference


def main(path):
    """Check every directory that the JSON file names."""
    for name, expected in json.loads(Path(path).read_text(encoding="utf-8")).items():
        config = json.loads((Path(path).parent / name / "config.json").read_text(encoding="utf-8"))
        if not hasattr(transformers, config["architectures"][0]):  # Qwen 3 came with 4.51
            print(f"{name}: not checked, transformers {transformers.__version__} has no {config['architectures'][0]}", flush=True)
            continue
        print(f"{name}: logits differ by {check(Path(path).parent / name, expected):.1e} of the largest", flush=True)
    print(f"ok: transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main(sys.argv[1])
