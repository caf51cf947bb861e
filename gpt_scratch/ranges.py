"""The allowed ranges of all numeric flags and settings: values outside are ignored by libraries, or fail hours later."""

import argparse
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import UserError

ABOVE = math.ulp(0.0)  # as a lowest value: above 0
BELOW_ONE = math.nextafter(1.0, 0.0)
INFINITE = math.inf  # as a highest value: any finite number
SEEDS = (0, 2**32 - 1)  # what NumPy accepts
COUNT, SOME = (0, 10**12), (1, 10**12)
SHARE = (0, 1)

# Lowest and highest value, both allowed.
RANGES: dict[str, tuple[float, float]] = {
    # Generation
    "max_new_tokens": SOME, "temperature": (0, INFINITE), "temperatures": (ABOVE, INFINITE), "top_k": SOME, "top_p": SHARE,
    "min_p": SHARE,
    "num_beams": (1, 1000), "repetition_penalty": (1e-6, INFINITE), "no_repeat_ngram_size": COUNT, "batch_size": SOME,
    "port": (0, 65535),
    # Seeds
    "seed": SEEDS, "data_seed": SEEDS, "split_seed": SEEDS, "judge_seed": SEEDS, "seeds": SEEDS,
    # Length and batches of training
    "max_steps": (-1, 10**12), "num_train_epochs": (0, INFINITE), "per_device_train_batch_size": (1, 10**6),
    "per_device_eval_batch_size": (1, 10**6), "gradient_accumulation_steps": (1, 10**6), "eval_accumulation_steps": (1, 10**6),
    "dataloader_num_workers": (0, 1024), "dataloader_prefetch_factor": (1, 10**6), "logging_steps": (ABOVE, 10**12),
    "eval_steps": (ABOVE, 10**12), "save_steps": (ABOVE, 10**12), "eval_delay": (0, INFINITE), "save_total_limit": SOME,
    "torch_empty_cache_steps": SOME, "ddp_bucket_cap_mb": SOME, "ddp_timeout": (1, 10**9), "local_rank": (-1, 10**6),
    # Optimization
    "learning_rate": (0, 1000), "muon_learning_rate": (0, 1000), "warmup_steps": (0, 10**12), "warmup_ratio": SHARE,
    "weight_decay": (0, 1000), "adam_beta1": (0, BELOW_ONE), "adam_beta2": (0, BELOW_ONE), "adam_epsilon": (0, 1),
    "max_grad_norm": (0, INFINITE),
    "label_smoothing_factor": (0, BELOW_ONE), "neftune_noise_alpha": (0, INFINITE), "early_stopping_patience": SOME,
    # Data
    "validation_split_percentage": (ABOVE, math.nextafter(100.0, 0.0)), "validation_documents": SOME, "vocab_size": (1, 10**8),
    "block_size": (2, 10**9), "stride": (1, 10**9), "preprocessing_num_workers": (1, 1024), "split_fractions": (0, 1),
    "max_length": SOME, "pack_length": SOME,
    "min_frequency": SOME, "model_max_length": SOME,
    # What is measured and shown
    "eval_train_blocks": COUNT, "sample_tokens": COUNT, "sample_temperature": (0, INFINITE), "sample_replies": COUNT,
    "timeout": (ABOVE, 10**6), "retries": (0, 100), "concurrency": (1, 10_000), "layer": (-10_000, 10_000),
    "head": (-100_000, 100_000),
    "top": SOME, "batch": SOME, "length": SOME, "tokens": (1, INFINITE), "flops": (ABOVE, INFINITE), "prompt": SOME,
    "new_tokens": SOME, "turns": SOME, "fast_steps": SOME, "limit": (1, INFINITE),
    "repetitions": SOME, "steps": SOME, "windows": SOME, "vocab_sizes": (1, 10**8), "n_layer": (1, 10_000),
    "n_head": (1, 100_000), "n_embd": (1, 10**6),
    # Adapters
    "lora_rank": (1, 100_000), "lora_alpha": (ABOVE, INFINITE), "train_last_blocks": (1, 10_000),
    # Preferences: TRL's
    "beta": (0, INFINITE), "max_completion_length": SOME, "num_generations": (2, 10_000), "max_prompt_length": SOME,
    "success_questions": SOME, "samples": (0, 10_000),
    # Distillation
    "teacher_temperature": (ABOVE, 10_000), "hard_loss": (0, 1),
}  # fmt: skip

Flags = TypeVar("Flags", bound=argparse.Namespace)


def check_ranges(values: Mapping[str, Any], prefix: str = "") -> None:
    """Refuse numbers outside of their range, NaN and infinite values; lists are checked by item.

    Raises:
        UserError: names the setting, after `prefix` ("--" for flags), the value and the range.
    """
    for name, value in values.items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            lowest, highest = RANGES.get(name, (-INFINITE, INFINITE))
            if (isinstance(number, float) and not math.isfinite(number)) or not lowest <= number <= highest:
                raise UserError(f"{prefix}{name} is {number}: it must be {_allowed(lowest, highest)}")


def check_flags(args: Flags) -> Flags:
    """Check the ranges of parsed flags and return them unchanged.

    Raises:
        UserError: a number out of range.
    """
    check_ranges(vars(args), "--")
    return args


def _allowed(lowest: float, highest: float) -> str:
    if lowest == -INFINITE and highest == INFINITE:
        return "a finite number"
    if highest == INFINITE:
        return "a finite number above 0" if lowest == ABOVE else f"a finite number of at least {lowest:g}"
    return f"between {_end(lowest)} and {_end(highest)}"


def _end(value: float) -> str:
    """Format a bound; the float next to an integer means that the integer is excluded."""
    return f"{value:,}" if value == round(value) else f"{round(value):,} (excluded)"
