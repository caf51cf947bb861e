"""Losses of a run: label smoothing with shifted labels, and class weights that accumulate exactly.

Trainer divides nothing when a `compute_loss_func` is given, so that of the classifier divides the summed loss by `num_items_in_batch`,
the number of rows over all accumulated batches and processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ..modeling_gpt_scratch import GPTScratchForCausalLM

Loss = Callable[..., torch.Tensor]


def set_language_modeling_loss(trainer: Trainer, loss_implementation: str) -> None:
    """Have the model compute the loss of the run: "chunked" or "full", smoothed by `label_smoothing_factor` in training.

    Trainer's own smoothing shifts labels only for models that ship inside transformers; on any other causal model it would train each
    position to repeat its own token.
    """
    for module in trainer.model.modules():  # an adapter may be wrapped around it
        if isinstance(module, GPTScratchForCausalLM):
            module.loss_implementation = loss_implementation
            module.label_smoothing = trainer.args.label_smoothing_factor
    trainer.label_smoother = None


def classification_loss(class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a classifier, each row times the weight of its class, (L,), and with label smoothing.

    The weighted losses are divided by the number of rows and not, as torch does, by the sum of their weights, which differs from
    batch to batch: a rare class keeps its weight in every batch, and accumulated batches equal one large batch.
    """

    def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None) -> torch.Tensor:
        rows = nn.functional.cross_entropy(outputs.logits.float(), labels, reduction="none", label_smoothing=label_smoothing)
        if class_weights is not None:
            rows = rows * class_weights.to(rows.device)[labels]
        return rows.sum() / (num_items_in_batch if num_items_in_batch is not None else len(labels))

    return loss


def balanced_class_weights(labels: list[int], num_labels: int) -> torch.Tensor:
    """Weights (L,) inversely proportional to the classes' frequencies, with mean 1 over the rows: rows / (L * count)."""
    counts = torch.bincount(torch.tensor(labels), minlength=num_labels).clamp(min=1)
    return len(labels) / (num_labels * counts.float())
