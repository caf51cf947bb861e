"""Benchmarks of generation compare models that compute the same."""

import pytest
import torch
from tiny_benchmark import TINY, run

from gpt_scratch.benchmarking.generation import perplexity_of_weights, same_weights
from gpt_scratch.benchmarking.harness import Sizes


@pytest.mark.slow
def test_generation(script):
    rows = run(script, "generation", *TINY, "--batch", "1", "2", "--prompt", "4", "--new_tokens", "6")
    assert len(rows) == 6 and all(row["same_tokens"] and row["ms_per_token"] > 0 for row in rows)


def test_both_models_compute_the_same():
    theirs, ours = same_weights(Sizes(n_layer=2, n_head=2, n_embd=16, vocab_size=97, n_positions=32))
    ids = torch.randint(97, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


def test_perplexity_of_fewer_bytes():
    _, ours = same_weights(Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=97, n_positions=32))
    perplexity = perplexity_of_weights(ours, [torch.randint(97, (1, 20))])
    assert (
        perplexity["bfloat16"] == pytest.approx(perplexity["float32"], rel=0.01) and perplexity["int8"] != perplexity["float32"]
    )
