"""Flags and recipes: dataclasses from the command line, from a YAML file, or from a YAML file with flags on top.

    python scripts/pretrain.py scripts/configs/quickstart.yaml --learning_rate 1e-3

A recipe holds the flags by name, without dashes. Flags that follow it win. An unknown name is an error, since a typo that is
silently ignored costs a training run.
"""

import argparse
import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from ..errors import UserError, one_line
from ..ranges import check_ranges
from .lock import lock_output_directory

OFF = {"top_k": 0}  # values of TRL's flags that are outside of the range and switch something off


@dataclasses.dataclass
class ScratchTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the defaults of this package: evaluates, counts tokens, keeps the last two checkpoints."""

    eval_strategy: str = dataclasses.field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = dataclasses.field(default="epoch", metadata={"help": "When to save: no, steps, epoch or best."})
    save_total_limit: int | None = dataclasses.field(default=2, metadata={"help": "Checkpoints to keep; the oldest go."})
    logging_steps: float = dataclasses.field(default=10, metadata={"help": "Steps between log lines."})
    include_num_input_tokens_seen: str = dataclasses.field(
        default="all", metadata={"help": "Count tokens seen, for curves against tokens: no, all or non_padding."}
    )
    dataloader_pin_memory: bool = dataclasses.field(
        default_factory=torch.cuda.is_available, metadata={"help": "Page-locked batches, for faster copies to a GPU."}
    )
    # The patience of early stopping goes on after an interruption.
    restore_callback_states_from_checkpoint: bool = dataclasses.field(
        default=True, metadata={"help": "Restore the state of callbacks from a checkpoint, with --resume_from_checkpoint."}
    )
    allow_non_finite: bool = dataclasses.field(
        default=False,
        metadata={"help": "Go on where the loss or the gradient's norm is NaN or infinite, which ends a run otherwise."},
    )
    # A model whose every parameter takes part in every step needs no search for unused ones.
    ddp_find_unused_parameters: bool | None = dataclasses.field(
        default=False, metadata={"help": "Search for parameters without gradient in each step under DDP."}
    )


class _OneLineParser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")

    def parse_known_args(self, args=None, namespace=None):
        """Numbers are checked before `TrainingArguments` reckons with them."""
        found, rest = super().parse_known_args(args, namespace)
        later = ("max_steps", "num_train_epochs")  # of these one may make up for the other
        check_ranges(
            {name: value for name, value in vars(found).items() if name not in later and (name not in OFF or value != OFF[name])},
            "--",
        )
        return found, rest


def parse_arguments(types: Sequence[type], argv: Sequence[str], description: str | None = None) -> tuple[Any, ...]:
    """One instance of each dataclass in `types` from `argv`: `[recipe.yaml] [--flag value ...]`.

    Raises:
        UserError: an unknown flag or key (with the nearest known one), a wrong value, an unreadable recipe.
    """
    parser = _OneLineParser(
        types,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    known = sorted({option.lstrip("-") for action in parser._actions for option in action.option_strings})
    arguments = list(argv)
    if arguments and arguments[0].endswith((".yaml", ".yml")):
        arguments = _recipe_arguments(arguments[0], known) + arguments[1:]
    try:
        *parsed, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    except UserError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(one_line(error, 3000)) from error
    except Exception as error:  # a file that a flag names, a key that it lacks: TrainingArguments raises many kinds
        raise UserError(f"the flags cannot be used: {type(error).__name__}: {one_line(error, 3000)}") from error
    if rest:
        raise UserError(_unknown(rest[0].lstrip("-").split("=")[0], known, "flag"))
    for part in parsed:
        if isinstance(part, TrainingArguments):
            _refuse_no_steps(part)
            check_ranges({"max_steps": part.max_steps, "num_train_epochs": part.num_train_epochs}, "--")
    return tuple(parsed)


def _refuse_no_steps(args: TrainingArguments) -> None:
    """
    Raises:
        UserError: a length of training that has no step, or no end.
    """
    if args.max_steps == 0:
        raise UserError(
            "--max_steps is 0: nothing would be trained; give a number of steps, or -1 to count by --num_train_epochs"
        )
    if args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf:
        raise UserError(
            f"--num_train_epochs is {args.num_train_epochs}: nothing would be trained, or without end; give a number above 0"
        )


def _recipe_arguments(path: str, known: Sequence[str]) -> list[str]:
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), _RecipeLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe {path} cannot be read: {one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} must hold `flag: value` lines")
    arguments: list[str] = []
    for key, value in recipe.items():
        if key not in known:
            raise UserError(f"recipe {path}: " + _unknown(str(key), known, "key"))
        if value is None:
            continue
        if isinstance(value, list):
            arguments += [f"--{key}", *(_as_text(item) for item in value)]
        else:
            arguments += [f"--{key}={_as_text(value)}"]  # one word, since a value may start with a dash
    return arguments


class _RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3 as text and `no` as false; numbers are numbers here."""


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _unknown(name: str, known: Sequence[str], kind: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists the flags")


def parse_config_overrides(text: str | None, config_class: Any) -> dict[str, Any]:
    """`n_embd=384,n_layer=6` or a JSON object, as keyword arguments of `config_class`.

    Raises:
        UserError: not of that form, or a name that the configuration does not have (it would accept it silently).
    """
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            overrides = json.loads(text)
        else:
            overrides = {
                name.strip(): yaml.load(value, _RecipeLoader) for name, value in (pair.split("=", 1) for pair in text.split(","))
            }
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config_overrides {text!r}: write name=value pairs separated by commas, or a JSON object") from error
    written = {"auto_map", "gpt_scratch_version", "model_type", "transformers_version"}  # by saving, not by the user
    known = (config_class().to_dict().keys() - written) | config_class.attribute_map.keys() | {"drop_rate"}
    for name in overrides:
        if name not in known:
            raise UserError("config_overrides: " + _unknown(name, sorted(known), "name"))
    return overrides


def check_output_directory(output_dir: str, resume: str | None) -> None:
    """Make the directory, lock it for this process's life, and refuse one that holds what the run would write over.

    Args:
        resume: the checkpoint to go on from; one in `output_dir` lets the run that it belongs to be continued.

    Raises:
        UserError: names the directory and what to do.
    """
    path = Path(output_dir)
    continued = resume is not None and Path(resume).resolve().parent == path.resolve()
    if not continued:
        _refuse_loss(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".write-test-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to --output_dir {output_dir}: {error.strerror or error}") from error
    lock_output_directory(output_dir)
    if not continued:
        _refuse_loss(path)  # by a run that ended between the two


def _refuse_loss(path: Path) -> None:
    """
    Raises:
        UserError: the directory holds a run, or files of another origin by the names that a run writes.
    """
    if any(path.glob("checkpoint-*")) or any(path.glob("*.safetensors")):
        raise UserError(
            f"{path} already holds a run: choose another --output_dir, or go on with it by --resume_from_checkpoint latest"
        )
    for name in ("README.md", "config.json", "metrics.json", "tokenizer.json"):
        if os.path.lexists(path / name):
            raise UserError(f"{path} holds a {name}, which the run would write over: choose another --output_dir")


def keep_best_checkpoint(args: TrainingArguments, metric: str = "eval_loss", greater_is_better: bool = False) -> None:
    """Save at each evaluation and end with the best checkpoint, as early stopping needs it; a metric given by flag stays."""
    if args.metric_for_best_model is None:
        args.metric_for_best_model, args.greater_is_better = metric, greater_is_better
    args.load_best_model_at_end = True
    args.save_strategy, args.save_steps = args.eval_strategy, args.eval_steps or args.logging_steps
