"""Loss over a data set equals the sum worked out token by token, whatever the batch size."""

import math

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.evaluation.perplexity import evaluate_loss, perplexity


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_loss_is_weighted_by_tokens(batch_size):
    torch.manual_seed(0)
    model = GPTScratchForCausalLM(
        GPTScratchConfig(vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12, drop_rate=0.3, initializer_range=0.3)
    ).train()
    ids = torch.randint(0, 30, (5, 12))
    labels = ids.clone()
    labels[0, 2:] = -100  # one row with a single prediction: a mean of batch means would be wrong
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels)]
    result = evaluate_loss(model, rows, batch_size)
    model.eval()
    with torch.no_grad():
        log_p = model(ids).logits.log_softmax(-1)
    terms = [-log_p[r, t, labels[r, t + 1]].item() for r in range(5) for t in range(11) if labels[r, t + 1] != -100]
    assert result["predicted_tokens"] == len(terms) == 45
    assert result["loss"] == pytest.approx(sum(terms) / 45, abs=1e-5)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))


def test_the_model_is_left_in_training_mode_and_huge_losses_do_not_overflow():
    model = GPTScratchForCausalLM(GPTScratchConfig(vocab_size=30, n_embd=16, n_layer=1, n_head=2, n_positions=12)).train()
    evaluate_loss(model, [{"input_ids": torch.arange(12), "labels": torch.arange(12)}])
    assert model.training
    assert perplexity(1000) == math.inf and perplexity(0) == 1
