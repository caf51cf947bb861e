"""The benchmark of the tokenizers: what it measures and that it compares like with like."""

import pytest

from gpt_scratch.benchmarking import tokenizers as benchmark
from gpt_scratch.errors import UserError

TEXT = "One day, Anna lost her key. Tom had it!\n" * 30


def test_every_task_is_measured(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    rows = benchmark.benchmark_tokenizers(TEXT, vocab_sizes=(260, 280), repetitions=5)
    assert len(rows) == 12
    assert {row["vocab_size"] for row in rows} == {260, 280}
    for row in rows:
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["megabytes_per_second"] == pytest.approx(len(TEXT) / 1e6 / row["ours"])


def test_several_threads_are_refused(monkeypatch):
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    with pytest.raises(UserError, match="RAYON_NUM_THREADS=1"):
        benchmark.benchmark_tokenizers(TEXT)


def test_tokenizers_that_differ_are_not_compared(monkeypatch):
    monkeypatch.setenv("RAYON_NUM_THREADS", "1")
    monkeypatch.setattr(
        benchmark, "_train_with_tokenizers", lambda text, size: benchmark.train_byte_pair([text[:40]], size).to_fast()
    )
    with pytest.raises(UserError, match="differ"):
        benchmark.benchmark_tokenizers(TEXT, vocab_sizes=(280,))
