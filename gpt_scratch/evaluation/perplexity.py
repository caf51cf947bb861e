"""Loss and perplexity of a language model over a whole data set, averaged over tokens rather than batches."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from ..progress import bar


@torch.no_grad()
def evaluate_loss(
    model: nn.Module,
    rows: Any,
    batch_size: int = 8,
    collate: Callable[[list], dict[str, torch.Tensor]] | None = None,
    name: str | None = None,
) -> dict[str, float]:
    """Mean negative log-likelihood in nats per predicted token, and its exponential.

    The sum over all predicted tokens is divided by their number once, so the result does not depend on the batch size, on the amount of
    padding, or on the number of processes, unlike Trainer's eval_loss. Dropout is off during the call; the model's mode is restored.
    All processes of a distributed run must call it: the batches are divided among them, and all get the same result.

    Args:
        model: takes `labels` and `num_items_in_batch` and returns a loss.
        rows: a sequence or data set of rows with `input_ids` and `labels` (T,), all of one length unless `collate` is given.
        batch_size: rows in one forward pass.
        collate: makes a batch from rows of different lengths; padding must have the label -100.
        name: label of the progress bar, which is shown if the evaluation takes long.

    Returns `{"loss", "perplexity", "predicted_tokens"}`.
    """
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    total, count = 0.0, 0
    processes = dist.get_world_size() if dist.is_initialized() else 1
    process = dist.get_rank() if dist.is_initialized() else 0
    batches = [list(range(start, min(start + batch_size, len(rows)))) for start in range(0, len(rows), batch_size)]
    mine = batches[process::processes]
    # All processes take part in every forward pass of a sharded model: one with fewer batches repeats a batch that is not counted.
    extra = [batches[0]] if len(mine) < -(-len(batches) // processes) else []
    loader = DataLoader(rows, batch_sampler=[*mine, *extra], collate_fn=collate)
    for number, batch in enumerate(bar(loader, name, "batch", len(loader)) if name and process == 0 else loader):
        batch = {name: value.to(device) for name, value in batch.items()}
        # num_items_in_batch=1 makes the loss a sum
        loss_sum = float(model(**batch, num_items_in_batch=1, use_cache=False).loss)
        if number < len(mine):
            total += loss_sum
            count += int((batch["labels"][:, 1:] != -100).sum())
    model.train(was_training)
    if processes > 1:
        sums = torch.tensor([total, count], dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        total, count = float(sums[0]), int(sums[1])
    loss = total / count
    return {"loss": loss, "perplexity": perplexity(loss), "predicted_tokens": count}


def bits_per_byte(loss: float, tokens: int, size: int) -> float:
    """Bits per byte of UTF-8, comparable between models with different tokenizers, unlike the loss per token.

    Args:
        loss: mean nats per predicted token; end-of-text tokens are included, although they have no bytes.
        tokens: number of predicted tokens.
        size: bytes of the text that these tokens encode.

    >>> round(bits_per_byte(math.log(256), 10, 10), 3)  # a token a byte, all equally likely
    8.0
    """
    return loss * tokens / math.log(2) / size


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf
