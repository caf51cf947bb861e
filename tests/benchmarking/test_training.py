"""Benchmarks of a training step: contenders and a rival, growth with length and vocabulary, and the overhead of Trainer."""

import json

import pytest
from rivals import RIVAL
from tiny_benchmark import TINY, run


@pytest.mark.slow
def test_a_step_with_a_rival(script, tmp_path):
    (tmp_path / "rival.py").write_text(RIVAL, encoding="utf-8")
    output = tmp_path / "results" / "step.json"
    rows = run(script, "step", *TINY, "--rival", f"mine={tmp_path / 'rival.py'}:build", "--output", str(output))
    assert {row["contender"] for row in rows} == {
        "transformers", "transformers, fast fp32", "gpt_scratch", "gpt_scratch, full loss", "mine",
    }  # fmt: skip
    assert {row["part"] for row in rows} == {"total", "forward", "backward", "optimizer"}
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["rows"] == rows and written["machine"]["threads"] and written["environment"]["versions"]["torch"]


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "steps", "shapes"), [
    ("length", "LENGTHS", [("1x8", 97), ("1x64", 97)]), ("vocabulary", "VOCABULARIES", [("2x8", 8), ("2x8", 64)]),
])  # fmt: skip
def test_growth(script, monkeypatch, subject, steps, shapes):
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, steps, (8, 64))
    rows = benchmark.main(benchmark.parse([subject, *TINY]))
    assert [(row["shape"], row["vocab_size"]) for row in rows[::2]] == shapes
    assert [row["contender"] for row in rows] == ["transformers", "gpt_scratch"] * 2 and all(row["above_mib"] > 0 for row in rows)


@pytest.mark.slow
def test_trainer(script):
    assert [row["contender"] for row in run(script, "trainer", *TINY, "--steps", "2")] == ["bare loop", "Trainer"]
