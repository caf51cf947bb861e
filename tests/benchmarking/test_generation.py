"""Benchmarks of generation compare models that compute the same."""

import pytest
import torch
from tiny_benchmark import TINY, run
from tiny_models import tiny_model

from gpt_scratch.benchmarking.generation import perplexity_of_weights, same_weights
from gpt_scratch.benchmarking.harness import Sizes
from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


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


def test_conversation(script, tmp_path):
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)
    set_prompt_style(tokenizer, "phi3")
    for part in (tokenizer, tiny_model(vocab_size=258, max_position_embeddings=1024)):
        part.save_pretrained(tmp_path)
    settings = ["--turns", "3", "--new_tokens", "4", "--repetitions", "1", "--weights", "int8"]
    rows = run(script, "conversation", "--model", str(tmp_path), *settings)
    assert [(row["weights"], row["turn"]) for row in rows] == [("int8", 1), ("int8", 2), ("int8", 3)]
    assert rows[0]["tokens"] < rows[1]["tokens"] < rows[2]["tokens"] and all(row["seconds"] > 0 for row in rows)
    with pytest.raises(UserError, match="--model is missing: give a model with a chat template"):
        run(script, "conversation")
