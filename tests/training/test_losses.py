"""Losses against values worked out by hand."""

import math
from types import SimpleNamespace

import pytest
import torch

from gpt_scratch.training.losses import balanced_class_weights, classification_loss


def nll(logits: list[float], target: int) -> float:
    return math.log(sum(math.exp(x) for x in logits)) - logits[target]


def test_class_weights_multiply_rows_and_do_not_divide():
    logits = [[1.0, 0.0], [0.3, 0.2]]
    outputs, labels = SimpleNamespace(logits=torch.tensor(logits)), torch.tensor([0, 1])
    weighted = (0.5 * nll(logits[0], 0) + 3.0 * nll(logits[1], 1)) / 2
    loss = classification_loss(torch.tensor([0.5, 3.0]))
    assert loss(outputs, labels).item() == pytest.approx(weighted, abs=1e-6)
    assert loss(outputs, labels, num_items_in_batch=8).item() == pytest.approx(weighted / 4, abs=1e-6)
    assert classification_loss()(outputs, labels).item() == pytest.approx((nll(logits[0], 0) + nll(logits[1], 1)) / 2, abs=1e-6)


def test_balanced_weights_have_mean_one_over_the_rows():
    labels = [0] * 6 + [1] * 2
    weights = balanced_class_weights(labels, 2)
    assert weights.tolist() == pytest.approx([8 / 12, 2.0])
    assert weights[torch.tensor(labels)].mean().item() == pytest.approx(1)
