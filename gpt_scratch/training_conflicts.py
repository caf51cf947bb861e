"""Checks of flags that several training scripts share: `TrainingArguments`, splits, resuming, trainable parameters.

`conflicts.py` calls them for each script. Imports neither torch nor transformers.
"""

import json
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UserError, unknown_name
from .ranges import check_ranges

LATER = ("max_steps", "num_train_epochs")  # one of these may replace the other
START = {"model_name_or_path": "the checkpoint to start from"}
NEEDED = {
    "finetune_classifier": {"train_file": "the labelled texts to train on"},
    "finetune_instructions": {"train_file": "the records to train on"} | START,
    "finetune_preferences": {"train_file": "the pairs to learn from"} | START,
}


def check_needed(script: str, args: Any) -> None:
    """Refuse a training run without data or without a checkpoint; argparse cannot require them, since a recipe may contain them.

    Raises:
        UserError: names the flag.
    """
    for name, what in NEEDED.get(script, {}).items():
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing: give {what}")


def check_length(args: Any) -> None:
    """Check the length of training.

    Raises:
        UserError: no training steps, or infinitely many.
    """
    if args.max_steps == 0:
        raise UserError("--max_steps is 0: nothing would be trained; give a number of steps, or -1 to use --num_train_epochs")
    if args.max_steps < 0 and not 0 < args.num_train_epochs < math.inf:
        raise UserError(
            f"--num_train_epochs is {args.num_train_epochs}: training would have no steps or never end; give a finite number above 0"
        )
    check_ranges({name: getattr(args, name) for name in LATER}, "--")


# Schedules that need one of these arguments, which TrainingArguments does not check.
SCHEDULES = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"), "cosine_warmup_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}  # fmt: skip
# Packages that an optimizer needs, by a part of its name; the first match counts.
PACKAGES = {
    "galore": "galore_torch", "apollo": "apollo_torch", "lomo": "lomo_optim", "grokadamw": "grokadamw", "schedule_free": "schedulefree",
    "stable_adamw": "optimi", "adamw_torch_xla": "torch_xla", "adamw_torch_npu": "torch_npu", "adamw_anyprecision": "torchdistx",
    "adamw_torch_4bit": "torchao", "adamw_torch_8bit": "torchao", "paged": "bitsandbytes", "8bit": "bitsandbytes", "bnb": "bitsandbytes",
    "lion": "bitsandbytes", "ademamix": "bitsandbytes",
}  # fmt: skip
LOGGERS = {
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "mlflow": ("mlflow",), "trackio": ("trackio",),
    "comet_ml": ("comet_ml",), "neptune": ("neptune",), "codecarbon": ("codecarbon",), "clearml": ("clearml",), "dagshub": ("dagshub",),
    "dvclive": ("dvclive",), "swanlab": ("swanlab",), "flyte": ("flytekit",), "azure_ml": ("azureml",), "kubeflow": ("kubeflow",),
}  # fmt: skip


def check_training(args: Any) -> None:
    """Refuse values of `TrainingArguments` that transformers refuses later, once it is imported or data and model are loaded, or ignores.

    Args:
        args: flags, or TrainingArguments.

    Raises:
        UserError: names the flags.
    """
    evaluation, saving = _value(args.eval_strategy), _value(args.save_strategy)
    for strategy, found, steps in (("eval", evaluation, args.eval_steps), ("save", saving, args.save_steps)):
        if found == "epoch" and steps not in (None, 500):  # TrainingArguments' default
            raise UserError(f"--{strategy}_steps has no effect with --{strategy}_strategy epoch: set --{strategy}_strategy steps")
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = getattr(args, name)
        if value is not None and value > 1 and value != int(value):
            raise UserError(f"--{name} is {value}: above 1 it must be whole, and below 1 it is a share of all steps")
    if args.load_best_model_at_end and saving != "best":
        if evaluation != saving:
            raise UserError(
                f"--load_best_model_at_end needs a checkpoint of each evaluation: --eval_strategy is {evaluation}, --save_strategy {saving}"
            )
        between = args.eval_steps or args.logging_steps
        if evaluation == "steps" and abs(args.save_steps / between - round(args.save_steps / between)) > 1e-6:
            raise UserError(
                f"--load_best_model_at_end needs a multiple of --eval_steps as --save_steps, and {args.save_steps:g} is none of {between:g}"
            )
    if saving == "best" and evaluation == "no":
        raise UserError("--save_strategy best needs evaluations: set --eval_strategy steps or epoch")
    for both in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if all(getattr(args, name) for name in both):
            raise UserError(f"--{both[0]} and --{both[1]} exclude each other")
    if args.dataloader_prefetch_factor is not None and not args.dataloader_num_workers:
        raise UserError("--dataloader_prefetch_factor needs --dataloader_num_workers: without workers nothing is loaded ahead")
    _check_schedule(args, evaluation)
    optimizer = _value(args.optim)
    package = next((package for part, package in PACKAGES.items() if part in optimizer), None)
    if package is not None and find_spec(package) is None:
        raise UserError(f"--optim {optimizer} needs the package {package}, which is not installed")
    for name in [args.report_to] if isinstance(args.report_to, str) else args.report_to or []:
        if name not in ("none", "all", *LOGGERS):
            raise UserError("--report_to: " + unknown_name(name, ["none", "all", *LOGGERS], "name"))
        if name in LOGGERS and all(find_spec(package) is None for package in LOGGERS[name]):
            raise UserError(f"--report_to {name} needs the package {LOGGERS[name][0]}, which is not installed")


def _value(choice: Any) -> str:
    """The value of a flag, a string or an enumeration of transformers."""
    return str(getattr(choice, "value", choice))


def _check_schedule(args: Any, evaluation: str) -> None:
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "accelerator_config", "fsdp_config", "deepspeed"):
        text = getattr(args, name, None)
        if not isinstance(text, str):
            continue
        if text.lstrip().startswith("{"):
            try:
                json.loads(text)
            except ValueError as error:
                raise UserError(f"--{name} {text}: not valid JSON ({error})") from error
        elif name.endswith("_kwargs"):
            raise UserError(f'--{name} {text}: write a JSON object, such as {{"name": 1}}')
        elif not Path(text).is_file():
            raise UserError(f"--{name} {text}: no such file")
    schedule, needed = _value(args.lr_scheduler_type), SCHEDULES.get(_value(args.lr_scheduler_type), ())
    given = args.lr_scheduler_kwargs
    given = json.loads(given) if isinstance(given, str) else given or {}
    if needed and len(set(needed) & set(given)) != 1:
        raise UserError(
            f"--lr_scheduler_type {schedule} needs --lr_scheduler_kwargs with {' or '.join(needed)}: '{{\"{needed[0]}\": 0.1}}'"
        )
    if schedule in ("reduce_lr_on_plateau", "greedy") and evaluation == "no":
        raise UserError(f"--lr_scheduler_type {schedule} needs evaluations: set --eval_strategy steps or epoch")


def check_early_stopping(args: Any, training_args: Any) -> None:
    """Check that early stopping has evaluations to act on.

    Raises:
        UserError: early stopping without evaluations.
    """
    if args.early_stopping_patience is not None and training_args.eval_strategy == "no":
        raise UserError("--early_stopping_patience needs evaluations: set --eval_strategy steps or epoch")


def check_resumable(output_dir: str | None, resume: str | None) -> None:
    """Refuse `--resume_from_checkpoint` if there is no checkpoint; whether it is complete is checked when it is loaded.

    Raises:
        UserError: names the directory.
    """
    if resume in (None, "", "false", "False"):
        return
    if resume not in ("latest", "true", "True"):
        if not (Path(resume) / "trainer_state.json").is_file():
            raise UserError(f"--resume_from_checkpoint {resume}: not a checkpoint, it contains no trainer_state.json")
    # hidden ones, left by a process that was killed between two renames, are restored when the run resumes
    elif output_dir is not None and not any(Path(output_dir).glob("*checkpoint-*")):
        raise no_checkpoint(output_dir, resume)


def no_checkpoint(output_dir: str, resume: str) -> UserError:
    """The error for a directory without a checkpoint to resume from."""
    return UserError(f"--resume_from_checkpoint {resume}: {output_dir} contains no complete checkpoint-N directory")


def check_stride(block_size: int, stride: int) -> None:
    """Check the stride of blocks.

    Raises:
        UserError: a stride that would skip tokens.
    """
    if not 1 <= stride <= block_size:
        raise UserError(f"stride is {stride}: it must be between 1 and block_size {block_size}, else tokens are skipped")


def check_fractions(fractions: Sequence[float], parts: int = 3) -> None:
    """Check the fractions of a split.

    Raises:
        UserError: not one positive fraction per part (train, validation, test), or a sum other than 1.
    """
    if len(fractions) != parts or abs(sum(fractions) - 1) > 1e-9 or any(fraction <= 0 for fraction in fractions):
        raise UserError(f"split fractions {', '.join(map(str, fractions))}: expected {parts} positive numbers that add up to 1")


def check_split_files(args: Any) -> None:
    """Check the files of `--split files`.

    Raises:
        UserError: a validation or test file with another split, or `--split files` without its three files.
    """
    for name in ("validation_file", "test_file"):
        if getattr(args, name) is not None and args.split != "files":
            raise UserError(f"--{name} is only used with --split files, but --split is {args.split}")
    if args.split == "files" and None in (args.train_file, args.validation_file, args.test_file):
        raise UserError("--split files needs --train_file, --validation_file and --test_file")


EARLIER_SPELLINGS = {"last_block": 1, "last_two_blocks": 2}  # of --trainable last_blocks --train_last_blocks N
# Flags that need a certain value of --trainable: that value, and the default of the flag.
ONLY_WITH = {
    "train_last_blocks": ("last_blocks", 2),
    "lora_rank": ("lora", 16),
    "lora_alpha": ("lora", 16),
    "lora_targets": ("lora", None),
}


def resolve_trainable(args: Any) -> None:
    """Fill in `--trainable` and the flags that depend on it, in place, in the same way for every script.

    Args:
        args: flags of a finetuning script, with `trainable` (head, last_blocks, all, lora, or an earlier spelling of last_blocks; `None`
            means all of a new model, and the last block of a checkpoint).

    Raises:
        UserError: a flag without effect, or a number of blocks with a spelling that already contains one.
    """
    if args.trainable is None and not args.model_name_or_path:
        args.trainable = "all"  # frozen random blocks would stay random
    elif args.trainable is None:
        args.trainable = "last_block" if args.train_last_blocks is None else "last_blocks"
    if args.trainable in EARLIER_SPELLINGS:
        if args.train_last_blocks is not None:
            raise UserError(
                f"--trainable {args.trainable} already sets the number of blocks: use --trainable last_blocks with --train_last_blocks"
            )
        args.train_last_blocks, args.trainable = EARLIER_SPELLINGS[args.trainable], "last_blocks"
    for name, (trainable, default) in ONLY_WITH.items():
        if args.trainable == trainable:
            if default is not None and getattr(args, name) is None:
                setattr(args, name, default)
        elif getattr(args, name, None) is not None:
            raise UserError(f"--{name} needs --trainable {trainable}: it has no effect with --trainable {args.trainable}")
