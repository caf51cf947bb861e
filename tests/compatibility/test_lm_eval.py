"""lm-evaluation-harness: a local task, its log-likelihoods and accuracies equal to those computed by hand."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt_scratch  # noqa: F401  registers the model: the harness opens the directory without remote code

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TASK = ROOT / "tests" / "fixtures" / "lm_eval"


@torch.no_grad()
def log_likelihood(model, tokenizer, context: str, continuation: str) -> float:
    """Log-likelihood of the continuation's tokens after the context's, from one forward without padding."""
    before, whole = tokenizer(context)["input_ids"], tokenizer(context + continuation)["input_ids"]
    assert whole[: len(before)] == before
    log = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(log[i - 1, whole[i]].item() for i in range(len(before), len(whole)))


def test_the_harness_scores_what_is_computed_by_hand(checkpoint, monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    monkeypatch.chdir(ROOT)  # the task names its data from here
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(checkpoint), "dtype": "float32"},
        tasks=["story_endings"],
        task_manager=TaskManager(include_path=str(TASK), include_defaults=False),
        device="cpu",
        batch_size=4,
        bootstrap_iters=0,
        log_samples=True,
    )
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    rows = [json.loads(line) for line in (TASK / "story_endings.jsonl").read_text().splitlines()]
    expected = [[log_likelihood(model, tokenizer, row["beginning"], ending) for ending in row["endings"]] for row in rows]
    samples = sorted(results["samples"]["story_endings"], key=lambda sample: sample["doc_id"])
    assert len(samples) == len(rows) == 6
    for sample, scores in zip(samples, expected):
        assert [score for ((score, _),) in sample["resps"]] == pytest.approx(scores, rel=1e-5)
    right = [max(range(len(scores)), key=scores.__getitem__) == row["answer"] for row, scores in zip(rows, expected)]
    assert results["results"]["story_endings"]["acc,none"] == pytest.approx(sum(right) / len(rows))
