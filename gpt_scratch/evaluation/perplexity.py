"""Loss and perplexity of a language model over a whole data set, weighted by tokens and not by batches."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader


@torch.no_grad()
def evaluate_loss(
    model: nn.Module, rows: Any, batch_size: int = 8, collate: Callable[[list], dict[str, torch.Tensor]] | None = None
) -> dict[str, float]:
    """Mean negative log-likelihood in nats per predicted token, and its exponential.

    The sum over all predicted tokens is divided by their number once, so the result does not depend on the batch size or
    on how padding is spread, which Trainer's eval_loss does. Dropout is off during the call; the model is left as it was.

    Args:
        model: takes `labels` and `num_items_in_batch` and returns a loss.
        rows: a sequence or data set of rows, of one length unless `collate` is given, with `input_ids` and `labels` (T,).
        batch_size: rows in one forward.
        collate: makes a batch of rows of different length; padding must be labelled -100.

    Returns `{"loss", "perplexity", "predicted_tokens"}`.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    total, count = 0.0, 0
    for batch in DataLoader(rows, batch_size=batch_size, collate_fn=collate):
        batch = {name: value.to(device) for name, value in batch.items()}
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        # num_items_in_batch=1 makes the loss a sum
        total += float(model(**batch, num_items_in_batch=1, use_cache=False).loss)
        count += predicted
    model.train(was_training)
    loss = total / count
    return {"loss": loss, "perplexity": perplexity(loss), "predicted_tokens": count}


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
