"""Optimizers that Trainer does not build by itself."""

import torch
from transformers import TrainingArguments


def adamw_on_all(model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on every parameter, as the book and nanoGPT's early versions have it.

    Trainer itself leaves biases and norms without decay.
    """
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )
