"""Alternating measurements, their ratios, and rivals loaded from a file."""

import pytest
import torch
from rivals import RIVAL

from gpt_scratch.benchmarking.harness import Contender, Sizes, load_rival, measure, summarize, table
from gpt_scratch.benchmarking.training import Step


def test_measurements_alternate_and_ratios_are_paired():
    order: list[str] = []
    slow, fast = Contender("slow", lambda: order.append("slow")), Contender("fast", lambda: order.append("fast") or {"half": 0.5})
    times = measure([slow, fast], repetitions=2)
    assert order == ["fast", "slow", "slow", "fast", "fast", "slow"]
    assert len(times["slow"]["total"]) == 2 and times["fast"]["half"] == [0.5, 0.5]
    rows = summarize({"a": {"total": [2.0, 4.0, 6.0]}, "b": {"total": [1.0, 1.0, 2.0], "extra": [1.0]}}, "a")
    assert rows[0]["speedup"] == 1 and rows[1]["median_s"] == 1.0 and rows[1]["lowest_s"] == 1.0
    assert (rows[1]["speedup_low"], rows[1]["speedup"], rows[1]["speedup_high"]) == (2.0, 3.0, 4.0)
    assert "speedup" not in rows[2]
    assert table(rows).splitlines()[2] == "| a | total | 4 | 2 | 1 | 1 | 1 |"
    assert table([{"name": "a", "error": "no"}, {"name": "b", "seconds": 2}]).splitlines() == [
        "| name | error | seconds |", "|---|---|---|", "| a | no |  |", "| b |  | 2 |"
    ]  # fmt: skip


@pytest.mark.parametrize(("factory", "optimizer"), [("build", torch.optim.AdamW), ("WithItsOptimizer", torch.optim.SGD)])
def test_a_rival_may_have_its_own_optimizer(tmp_path, factory, optimizer):
    (tmp_path / "rival.py").write_text(RIVAL, encoding="utf-8")
    name, build = load_rival(f"mine={tmp_path / 'rival.py'}:{factory}")
    step = Step(build, Sizes(vocab_size=7), 2, 4, bf16=False, compiled=False, fast_matmul=False)
    assert name == "mine" and type(step.optimizer) is optimizer
    before = step.model.weight.clone()
    step()
    assert not torch.equal(step.model.weight, before)
