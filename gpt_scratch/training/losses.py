"""Training losses: label smoothing with shifted labels, and class weights with exact gradient accumulation.

With a `compute_loss_func`, Trainer does not divide the loss, so the classifier's divides the summed loss by `num_items_in_batch`, the
number of rows over all accumulated batches and processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer

from ..modeling_gpt_scratch import GPTScratchForCausalLM

Loss = Callable[..., torch.Tensor]


def set_language_modeling_loss(trainer: Trainer, loss_implementation: str) -> None:
    """Configure the loss of the model: "chunked" or "full", with `label_smoothing_factor` in training.

    Trainer's label smoothing shifts labels only for models of transformers; other causal models would be trained to repeat each token.
    """
    for module in trainer.model.modules():  # it may be wrapped in an adapter
        if isinstance(module, GPTScratchForCausalLM):
            module.loss_implementation = loss_implementation
            module.label_smoothing = trainer.args.label_smoothing_factor
    trainer.label_smoother = None


def classification_loss(class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of a classifier with class weights (L,) and label smoothing.

    The weighted losses are divided by the number of rows and not, as in torch, by the sum of the weights, which differs between batches:
    class weights are the same in every batch, and accumulated batches equal one large batch.
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
