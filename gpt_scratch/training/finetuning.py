"""Shared components of finetuning: loading a checkpoint with its tokenizer, freezing parameters, LoRA."""

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, innermost, one_line
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..overrides import refuse_sizes
from .arguments import parse_config_overrides

SPLITS = ("train", "validation", "test")


def dropout_overrides(text: str | None) -> dict[str, Any]:
    """Parse `--config_overrides` for a checkpoint, where only dropout can be changed.

    Raises:
        UserError: another setting.
    """
    overrides = parse_config_overrides(text, GPTScratchConfig)
    refuse_sizes(overrides)
    return overrides


def load_language_model(
    name: str | None, tokenizer_name: str | None = None, config_overrides: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model in fp32 and its tokenizer, with the same special tokens and right padding.

    Without a padding token, the end-of-text token is used; this is safe, since padding is masked by length.

    Raises:
        UserError: no name, a checkpoint or tokenizer that cannot be loaded, a tokenizer larger than the model's vocabulary.
    """
    overrides = dropout_overrides(config_overrides)
    if name is None:
        raise UserError("--model_name_or_path is missing: give the checkpoint to start from")
    config = load_config(name, **overrides)
    tokenizer = load_tokenizer(tokenizer_name or name)
    check_rows(tokenizer, config, name)
    model = load_model(name, "lm", "float32", config=config)
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token: a model trained with it could never end a reply")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, key, getattr(tokenizer, key))
        setattr(model.generation_config, key, getattr(tokenizer, key))
    return model, tokenizer


def add_lora(
    model: PreTrainedModel,
    task_type: str,
    rank: int,
    alpha: int,
    targets: str | Sequence[str] = "all-linear",
    modules_to_save: list[str] | None = None,
) -> Any:
    """Wrap the model with peft: frozen, with trainable low-rank matrices for `targets` (Hu et al. 2021).

    Args:
        task_type: peft's task type, `CAUSAL_LM` or `SEQ_CLS`.
        targets: suffixes of module names, or "all-linear": every projection of attention and MLP, not the head.
        modules_to_save: modules that are fully trained and saved with the adapter.

    Raises:
        UserError: without peft installed, or targets that the model does not have.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError('--trainable lora needs peft: pip install "gpt_scratch[peft]"') from error
    names = targets if isinstance(targets, str) else list(targets)
    config = LoraConfig(
        task_type=task_type, r=rank, lora_alpha=alpha, target_modules=names, modules_to_save=modules_to_save
    )  # fmt: skip
    try:
        with warnings.catch_warnings():  # peft asks transformers by a name that 5.24 deprecates
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"--lora_targets {' '.join([names] if isinstance(names, str) else names)}: {one_line(innermost(error))}"
        ) from error


def train_last_blocks(model: PreTrainedModel, count: int, head: nn.Module | None = None) -> None:
    """Freeze everything except `head`, the last `count` blocks and the final norm.

    Raises:
        UserError: the model has fewer blocks.
    """
    layers = model.model.layers
    if count > len(layers):
        raise UserError(f"--train_last_blocks {count}: this model has {len(layers)} blocks")
    model.requires_grad_(False)
    for part in ([head] if head is not None else []) + ([model.model.norm, *layers[-count:]] if count else []):
        part.requires_grad_(True)


def describe_trainable(model: Any) -> tuple[int, int]:
    """The number of trainable and of all parameters; prints the share."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trainable, total = sum(n for n, on in counts if on), sum(n for n, _ in counts)
    print(f"trainable: {trainable:,} of {total:,} parameters ({trainable / total:.2%})")
    return trainable, total
