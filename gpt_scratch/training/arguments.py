"""Flags and recipes: dataclasses parsed from the command line, a YAML file, or a YAML file with overriding flags.

    python scripts/pretrain.py scripts/configs/quickstart.yaml --learning_rate 1e-3

A recipe contains flags by name, without dashes. Flags after it take precedence. Unknown names are errors, since a silently ignored typo
could waste a training run.
"""

import argparse
import atexit
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.hf_argparser import string_to_bool

from ..command_line import (
    OFF,
    HelpFormatter,
    is_recipe,
    known_flags,
    recipe_arguments,
)
from ..errors import UserError, one_line, unknown_name
from ..files import refuse_existing_run
from ..overrides import read_overrides, refuse_unknown_names
from ..ranges import check_ranges
from ..training_conflicts import LATER, check_length, check_training
from .lock import LOCK, lock_output_directory
from .precision import bf16_is_faster

SCHEDULE = {"learning_rate": 5e-5, "lr_scheduler_type": "linear", "warmup_steps": 0}  # Trainer's defaults


@dataclasses.dataclass
class ScratchTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of this package: evaluates, counts tokens, keeps the last two checkpoints."""

    eval_strategy: str = dataclasses.field(
        default="epoch", metadata={"help": "When to evaluate.", "choices": ["no", "steps", "epoch"]}
    )
    save_strategy: str = dataclasses.field(
        default="epoch", metadata={"help": "When to save.", "choices": ["no", "steps", "epoch", "best"]}
    )
    save_total_limit: int | None = dataclasses.field(default=2, metadata={"help": "Checkpoints to keep; the oldest are removed."})
    logging_steps: float = dataclasses.field(default=10, metadata={"help": "Steps between log lines."})
    include_num_input_tokens_seen: str = dataclasses.field(
        default="all", metadata={"help": "Count tokens seen, for curves against tokens: no, all or non_padding."}
    )
    dataloader_pin_memory: bool = dataclasses.field(
        default_factory=torch.cuda.is_available, metadata={"help": "Page-locked batches, for faster copies to a GPU."}
    )
    # Needed for the patience of early stopping after resuming.
    restore_callback_states_from_checkpoint: bool = dataclasses.field(
        default=True, metadata={"help": "Restore the state of callbacks from a checkpoint, with --resume_from_checkpoint."}
    )
    allow_non_finite: bool = dataclasses.field(
        default=False,
        metadata={"help": "Continue if the loss or the gradient norm is NaN or infinite; by default the run stops."},
    )
    # Resolved when the model is known: see set_default_learning_rate in optimizers.py.
    learning_rate: float | None = dataclasses.field(
        default=None,
        metadata={"help": "Peak learning rate. Default: by model size and trainable parameters, printed at the start."},
    )
    lr_scheduler_type: SchedulerType | None = dataclasses.field(
        default=None, metadata={"help": "Learning rate schedule. Default: linear; without --learning_rate cosine."}
    )
    warmup_steps: float | None = dataclasses.field(
        default=None,
        metadata={"help": "Warm-up steps, or a fraction of all steps if below 1. Default: 0; without --learning_rate 0.05."},
    )
    bf16: bool | None = dataclasses.field(
        default=None,
        metadata={
            "help": "Mixed precision with bf16. Default: if the GPU multiplies it in hardware, or the CPU does (AMX, AVX512_BF16), "
            "printed at the start; without these it is slower than fp32."
        },
    )
    # Every parameter is used in every step, so no search is needed.
    ddp_find_unused_parameters: bool | None = dataclasses.field(
        default=False, metadata={"help": "Let DDP search for parameters without a gradient in each step."}
    )

    def __post_init__(self):
        self.left_open = [name for name in SCHEDULE if getattr(self, name) is None]
        for name in self.left_open:
            setattr(self, name, SCHEDULE[name])
        if self.bf16 is None:
            self.left_open.append("bf16")
            self.bf16 = not (self.fp16 or self.fp16_full_eval) and bf16_is_faster(self.use_cpu)
        self.use_cpu |= self.bf16 and not torch.accelerator.is_available()  # transformers asks for it with bf16
        super().__post_init__()


class _OneLineParser(HfArgumentParser):
    """transformers' parser with a separate group for the script's own flags, each flag once in the help, and one-line errors."""

    def __init__(self, types: Sequence[type], **settings: Any):
        super().__init__([], formatter_class=HelpFormatter, allow_abbrev=False, **settings)
        self.dataclass_types = list(types)
        for kind in types:
            library = next((base for base in kind.__mro__ if base.__module__.split(".")[0] in ("transformers", "trl")), None)
            owner = "" if library is None else {"transformers": "transformers'", "trl": "TRL's"}[library.__module__.split(".")[0]]
            group = self.add_argument_group("flags of this script" if library is None else f"flags of {owner} {library.__name__}")
            for field in _with_types(kind):
                self._parse_dataclass_field(group, field)
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):
                action.help = argparse.SUPPRESS  # --no_x is the same as --x false
            if action.type is string_to_bool:
                action.nargs, action.const = "?", True  # --x is --x true also where the default is None

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def parse_known_args(self, args=None, namespace=None):
        """Check the ranges of numbers before `TrainingArguments` uses them."""
        found, rest = super().parse_known_args(args, namespace)
        check_ranges({k: v for k, v in vars(found).items() if k not in LATER and (k not in OFF or v != OFF[k])}, "--")
        if rest:  # before the dataclasses are built, which raise their own errors
            raise UserError(unknown_name(rest[0].lstrip("-").split("=")[0], known_flags(self), "flag"))
        return found, rest


def _with_types(kind: type) -> Iterator[dataclasses.Field]:
    """The fields that the command line may set, with resolved types."""
    types = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.init:
            field.type = types[field.name]
            yield field


def parse_arguments(types: Sequence[type], argv: Sequence[str], description: str | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass in `types` from `argv`: `[recipe.yaml] [--flag value ...]`.

    Raises:
        UserError: an unknown flag or key (with the closest known one), an invalid value, an unreadable recipe.
    """
    parser = _OneLineParser(types, description=description, usage="%(prog)s [recipe.yaml] [--flag value ...]")
    arguments = list(argv)
    if is_recipe(arguments):
        arguments = recipe_arguments(arguments[0], known_flags(parser)) + arguments[1:]
    try:
        parsed = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(one_line(error, 3000)) from error
    except Exception as error:  # TrainingArguments raises many exception types
        raise UserError(f"invalid flags: {type(error).__name__}: {one_line(error, 3000)}") from error
    for part in parsed:
        if isinstance(part, TrainingArguments):
            check_length(part)
            check_training(part)
    return tuple(parsed)


def parse_config_overrides(text: str | None, config_class: Any) -> dict[str, Any]:
    """Parse `n_embd=384,n_layer=6` or a JSON object into keyword arguments of `config_class`.

    Raises:
        UserError: not in this form, or a name that the configuration does not have (and would silently accept).
    """
    overrides = read_overrides(text)
    refuse_unknown_names(overrides, config_names(config_class))
    return overrides


def config_names(config_class: Any) -> set[str]:
    """The names that `--config_overrides` may set."""
    written = {"auto_map", "gpt_scratch_version", "model_type", "transformers_version"}  # set when saving, not by the user
    return (config_class().to_dict().keys() - written) | config_class.attribute_map.keys() | {"drop_rate"}


def check_output_directory(output_dir: str, resume: str | None) -> None:
    """Create and lock the output directory, and refuse it if the run would overwrite its files.

    Args:
        resume: the checkpoint to resume from; if it is in `output_dir`, the existing run is continued.

    Raises:
        UserError: names the directory and what to do.
    """
    path = Path(output_dir)
    continued = resume is not None and Path(resume).resolve().parent == path.resolve()
    if not continued:
        refuse_existing_run(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if made:
            atexit.register(remove_unused, made)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to --output_dir {output_dir}: {error.strerror or error}") from error
    lock_output_directory(output_dir)
    if not continued:
        refuse_existing_run(path)  # again, in case another run has ended since the first check


def remove_unused(made: Sequence[Path]) -> None:
    """Remove directories that a failed run created and left empty, innermost first."""
    for folder in made:
        try:
            if {entry.name for entry in folder.iterdir()} - {LOCK}:
                return
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()
        except OSError:  # removed, or used by another process
            return


def keep_best_checkpoint(args: TrainingArguments, metric: str = "eval_loss", greater_is_better: bool = False) -> None:
    """Save at each evaluation and load the best checkpoint at the end, as needed for early stopping; a metric set by flag is kept."""
    if args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = metric, greater_is_better
    args.load_best_model_at_end = True
    args.save_strategy, args.save_steps = args.eval_strategy, args.eval_steps or args.logging_steps
