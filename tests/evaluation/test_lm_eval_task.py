"""The held-out dialogues as a task of lm-evaluation-harness: it counts what `evaluate_instructions.py` counts."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model

from gpt_scratch.data.instruction import InstructionCollator, encode_conversations, read_conversations, set_prompt_style
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: the extra lm-eval")
pytestmark = pytest.mark.thorough

SAMPLES = Path(__file__).resolve().parents[2] / "gpt_scratch" / "data" / "samples"
LEARNED = 6


@pytest.fixture
def questions(tmp_path) -> Path:
    """The first held-out rows, which have no earlier exchange, and one that has."""
    rows = [json.loads(line) for line in (SAMPLES / "dialogues_test.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [*rows[:10], next(row for row in rows if "history" in row)]
    assert sum("history" in row for row in rows) == 1
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def model_directory(questions, tmp_path) -> Path:
    """A tiny model that has learned the first questions by heart."""
    data = read_conversations(str(questions))
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)
    set_prompt_style(tokenizer, "chatml")
    torch.manual_seed(0)
    model = tiny_model("llama", vocab_size=258, hidden_size=64, max_position_embeddings=256, initializer_range=0.05,
                       eos_token_id=tokenizer.eos_token_id).train()  # fmt: skip
    rows = encode_conversations(data, tokenizer, "chatml", True, 256).rows
    batch = InstructionCollator(tokenizer.eos_token_id)([rows[i] for i in range(LEARNED)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for _ in range(150):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.05
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_the_task_counts_what_the_script_counts(questions, model_directory, tmp_path, script):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    text = (SAMPLES / "dialogues_lm_eval.yaml").read_text(encoding="utf-8")
    source = "gpt_scratch/data/samples/dialogues_test.jsonl"
    assert source in text and (SAMPLES.parents[2] / source).is_file()
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    # Case and white space do not count.
    rows[0]["output"], rows[1]["output"] = rows[0]["output"].upper(), f" {rows[1]['output']} "
    rows[2]["output"] += " No."  # and this one is wrong
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    # 24 byte-level tokens are too few for a reply of the model of this test.
    task = text.replace(source, str(questions)).replace("max_gen_toks: 24", "max_gen_toks: 60")
    (tmp_path / "task.yaml").write_text(task, encoding="utf-8")
    shutil.copy(SAMPLES / "dialogues_lm_eval.py", tmp_path)

    result = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(model_directory), "trust_remote_code": True, "dtype": "float32"},
        tasks=["gpt_scratch_dialogues"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
    )
    module = script("evaluate_instructions")
    flags = ["--model", str(model_directory), "--data_file", str(questions), "--output", str(tmp_path / "replies.json")]
    ours = module.main(module.parse([*flags, "--prompt_style", "chatml", "--max_new_tokens", "60"]))
    assert ours["accuracy"] | {"interval": None} == {"right": LEARNED - 1, "count": 11, "accuracy": 5 / 11, "interval": None}
    assert result["results"]["gpt_scratch_dialogues"]["exact_match,strip"] == pytest.approx(5 / 10)
