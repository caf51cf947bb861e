"""Checks of flags that exclude or require each other, for every script, without reading whole files.

`command_line.py` runs them before torch and transformers are imported, and the scripts again when they use the flags. Nothing in this
file imports torch or transformers.
"""

import difflib
import json
import math
import re
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from .errors import UserError, check_unicode
from .ranges import check_ranges

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"  # of the tokenizers that are trained here
LATER = ("max_steps", "num_train_epochs")  # one of these may replace the other
START = {"model_name_or_path": "the checkpoint to start from"}
NEEDED = {
    "finetune_classifier": {"train_file": "the labelled texts to train on"},
    "finetune_instructions": {"train_file": "the records to train on"} | START,
    "finetune_preferences": {"train_file": "the pairs to learn from"} | START,
}


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The message for an unknown name, with the closest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists the flags")


def check_needed(script: str, args: Any) -> None:
    """Refuse a training run without data or without a checkpoint; argparse cannot require them, since a recipe may contain them.

    Raises:
        UserError: names the flag.
    """
    for name, what in NEEDED.get(script, {}).items():
        if getattr(args, name) is None:
            raise UserError(f"--{name} is missing: give {what}")


# ---------------------------------------------------------------------------------------------------------------------- training


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


# Schedules that need one of these arguments, which TrainingArguments does not look at.
SCHEDULES = {
    "cosine_with_min_lr": ("min_lr_rate", "min_lr"), "cosine_warmup_with_min_lr": ("min_lr_rate", "min_lr"),
    "warmup_stable_decay": ("num_decay_steps",),
}  # fmt: skip
# Packages that an optimizer or a logger needs, by a part of its name; the first that fits.
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
    """What transformers refuses of its `TrainingArguments` once it is imported, or once data and model are there; and what it ignores.

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
    """Of a flag that is text, or an enumeration of transformers."""
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


# ------------------------------------------------------------------------------------------------------------- --config_overrides


DROPOUTS = {"drop_rate", "embedding_dropout", "attention_dropout", "residual_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"}


class NumberLoader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number; YAML 1.1 reads it as a string."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_overrides(text: str | None) -> dict[str, Any]:
    """Parse `n_embd=384,n_layer=6` or a JSON object into keyword arguments; the names are not checked.

    Raises:
        UserError: not in this form.
    """
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        pairs = (pair.split("=", 1) for pair in text.split(","))
        return {name.strip(): yaml.load(value, NumberLoader) for name, value in pairs}
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config_overrides {text!r}: write name=value pairs separated by commas, or a JSON object") from error


def refuse_unknown_names(overrides: Mapping[str, Any], known: Collection[str]) -> None:
    """Check the names in `--config_overrides`.

    Raises:
        UserError: a name that the configuration does not have and would silently accept.
    """
    for name in overrides:
        if name not in known:
            raise UserError("config_overrides: " + unknown_name(name, sorted(known), "name"))


def refuse_sizes(overrides: Mapping[str, Any]) -> None:
    """Check `--config_overrides` of a checkpoint.

    Raises:
        UserError: settings other than dropout.
    """
    if overrides.keys() - DROPOUTS:
        raise UserError(
            f"--config_overrides {sorted(overrides.keys() - DROPOUTS)[0]}: only the dropout of a checkpoint can be changed"
        )


# ------------------------------------------------------------------------------------------------------------------- by script


def check_pretraining(args: Any, training_args: Any) -> None:
    """Check the flags of pretrain.py and distill.py.

    Raises:
        UserError: names the flags.
    """
    if bool(args.train_file) == bool(args.dataset_name):
        raise UserError("give either --train_file or --dataset_name")
    if args.streaming and training_args.max_steps <= 0:
        raise UserError("--streaming needs --max_steps: the length of a stream is unknown")
    if args.streaming and not (args.tokenizer_name or args.model_name_or_path):
        raise UserError("--streaming needs --tokenizer_name: a tokenizer cannot be trained on a stream")
    if args.streaming and args.dataset_name and not args.validation_file and training_args.dataloader_num_workers > 1:
        raise UserError(
            "--streaming a data set with several --dataloader_num_workers needs --validation_file: the workers split the stream and "
            "cannot skip the same held-out documents"
        )
    if args.model_name_or_path and args.config_overrides:
        raise UserError("--config_overrides is for new models: the checkpoint of --model_name_or_path has its own configuration")
    if args.dataset_config_name and not args.dataset_name:
        raise UserError("--dataset_config_name has no effect without --dataset_name")
    if args.optimizer == "muon" and args.weight_decay_on == "all":
        raise UserError(
            "--weight_decay_on all needs --optimizer adamw: with Muon, biases and norms are trained by AdamW without decay"
        )
    check_muon(args)
    if args.block_size is not None and args.stride is not None:
        check_stride(args.block_size, args.stride)
    for prompt in args.sample_prompt or []:
        check_unicode(prompt)
    check_early_stopping(args, training_args)


def check_muon(args: Any) -> None:
    """Check the flags of Muon.

    Raises:
        UserError: names the flags.
    """
    if args.muon_learning_rate is not None and args.optimizer != "muon":
        raise UserError("--muon_learning_rate needs --optimizer muon")


def check_classification(args: Any, training_args: Any) -> None:
    """Check the flags of finetune_classifier.py.

    Raises:
        UserError: names the flags.
    """
    check_needed("finetune_classifier", args)
    check_early_stopping(args, training_args)
    check_classification_splits(args)
    if args.model_name_or_path:
        refuse_sizes(read_overrides(args.config_overrides))


def check_classification_splits(args: Any) -> None:
    """Check the flags for the splits of a classifier.

    Raises:
        UserError: names the flags.
    """
    check_needed("finetune_classifier", args)
    check_split_files(args)
    if args.split == "clean":
        check_fractions(args.split_fractions)
    for name in args.class_names or []:
        check_unicode(name)


def check_instructions(args: Any, training_args: Any) -> None:
    """Check the flags of finetune_instructions.py.

    Raises:
        UserError: names the flags.
    """
    check_needed("finetune_instructions", args)
    check_muon(args)
    check_early_stopping(args, training_args)
    check_instruction_splits(args)
    refuse_sizes(read_overrides(args.config_overrides))


def check_instruction_splits(args: Any) -> None:
    """Check the flags for the splits of instruction data.

    Raises:
        UserError: names the flags.
    """
    check_split_files(args)
    if args.split != "files":
        check_fractions(args.split_fractions)


# Rewards that are computed, as evaluation/rewards.py has them.
REWARDS = ("exact_match", "arithmetic", "format", "length")


def check_rewards(names: Sequence[str]) -> None:
    """Check the names of rewards; a file of the user's is not run.

    Raises:
        UserError: a reward that is unknown, given twice, or of a file that is not there.
    """
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--reward {name} is given twice: give it once, with a weight (--reward_weights)")
        path, colon, _ = name.rpartition(":")
        if name not in REWARDS and (not colon or not path.endswith(".py")):
            raise UserError(f"--reward {name} is unknown: use {', '.join(REWARDS)}, or path/to/file.py:function")
        if name not in REWARDS and not Path(path).is_file():
            raise UserError(f"--reward {name}: there is no file {path}")


def check_preferences(method: str, args: Any, training_args: Any) -> None:
    """
    Raises:
        UserError: names the flags.
    """
    check_needed("finetune_preferences", args)
    if method == "grpo" and (args.reward_model is None) == (not args.reward):
        raise UserError(
            "grpo needs --reward_model (train one with the method reward), or --reward, such as exact_match"
            + ("; only one of them, not both" if args.reward else "")
        )
    for flag in ("reward_model", "reward"):
        if method != "grpo" and getattr(args, flag) is not None:
            raise UserError(f"--{flag} needs the method grpo: it has no effect with {method}")
    if args.reward:
        check_rewards(args.reward)
        if (weights := getattr(training_args, "reward_weights", None)) and len(weights) != len(args.reward):
            raise UserError(f"--reward_weights has {len(weights)} numbers for {len(args.reward)} of --reward: give one for each")
    if args.validation_file is not None and not args.reward:
        raise UserError("--validation_file is only used with --reward: pairs are split by --split_fractions")
    check_fractions(args.split_fractions)


def check_evaluation(args: Any) -> None:
    """Check the flags of evaluate_instructions.py.

    Raises:
        UserError: names the flags.
    """
    if bool(args.replies_file) == bool(args.model):
        raise UserError("give --model with --data_file and --output, or --replies_file")
    if args.model and not (args.data_file and args.output):
        raise UserError("--model needs --data_file (what to reply to) and --output (where to write the replies)")
    if args.samples and not args.model:
        raise UserError("--samples draws replies of --model: it has no effect with --replies_file")
    if args.best_of and not args.samples:
        raise UserError("--best_of chooses among the replies of --samples: give their number")
    if args.samples and not args.temperature:
        raise UserError("--temperature is 0: all replies of --samples would be the same")
    if bool(args.judge_url) != bool(args.judge_model):
        raise UserError("a judge needs both --judge_url and --judge_model")


def check_generation(args: Any) -> None:
    """Check the flags of generate.py.

    Raises:
        UserError: names the flags.
    """
    if args.weights and args.num_beams:
        raise UserError("--weights does not support beam search: leave out --num_beams")
    for name in ("top_k", "top_p", "min_p"):
        if args.temperature == 0 and getattr(args, name) is not None:
            raise UserError(
                f"--{name} chooses among tokens to sample, and --temperature 0 takes the likeliest one always: leave one of them out"
            )
    for prompt in args.prompt:
        check_unicode(prompt)


def check_classify(args: Any) -> None:
    """Check the flags of classify.py.

    Raises:
        UserError: names the flags.
    """
    if args.text and args.file:
        raise UserError("--text and --file cannot be combined: give one of them")


def check_conversion(args: Any) -> None:
    """Check the flags of convert_checkpoint.py.

    Raises:
        UserError: names the flags.
    """
    if args.source is None and args.download is None:
        raise UserError("give the checkpoint to convert, or --download one")
    parse_size(args.max_shard_size)


def parse_size(text: str) -> int:
    """Parse `500MB`, `5GB` (powers of 1000) or a plain number into bytes.

    Raises:
        UserError: not in this form.
    """
    match = re.fullmatch(r"(\d+) *(|KB|MB|GB)", text.strip().upper())
    if match is None or int(match[1]) < 1:
        raise UserError(f"size {text!r}: write 500MB, 5GB or a number of bytes")
    return int(match[1]) * {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


def check_tokenizer(args: Any) -> None:
    """Check the flags of train_tokenizer.py.

    Raises:
        UserError: names the flags.
    """
    if sum(map(bool, (args.train_file, args.word_list, args.from_files))) != 1:
        raise UserError("give one of --train_file, --word_list and --from_files")
    if not args.train_file and not args.validation_file:
        raise UserError("--validation_file is needed without --train_file: the report is measured on text")
    if args.word_list and args.type in ("bpe", "character"):
        raise UserError("--word_list needs --type word, treebank or whitespace: the other types are trained on text")
    if args.from_files and (args.type != "bpe" or len(args.from_files) > 2):
        raise UserError("--from_files needs --type bpe, and minbpe's .model file or the book's vocabulary and merges")
    if not args.train_file and (args.vocab_size is not None or args.min_frequency is not None):
        raise UserError("--vocab_size and --min_frequency need --train_file: nothing is trained without it")
    if args.special_tokens and (args.type != "bpe" or not args.train_file):
        raise UserError("--special_tokens are given to a bpe that is trained here: they have no effect on other tokenizers")
    for token in args.special_tokens:
        check_unicode(token)
        if not token.strip() or args.special_tokens.count(token) > 1 or token in (END_OF_TEXT, PADDING):
            raise UserError(f"--special_tokens {token!r}: each must be text, given once, and not {END_OF_TEXT} or {PADDING}")
    for example in args.example or []:
        check_unicode(example)


CHECKS: dict[str, Callable[[str | None, Namespace], None]] = {
    "pretrain": lambda _, args: check_pretraining(args, args),
    "finetune_classifier": lambda _, args: check_classification(args, args),
    "finetune_instructions": lambda _, args: check_instructions(args, args),
    "finetune_preferences": lambda method, args: check_preferences(str(method), args, args),
    "evaluate_instructions": lambda _, args: check_evaluation(args),
    "classify": lambda _, args: check_classify(args),
    "generate": lambda _, args: check_generation(args),
    "convert_checkpoint": lambda _, args: check_conversion(args),
    "train_tokenizer": lambda _, args: check_tokenizer(args),
}


def check_flags_of(script: str, method: str | None, values: Mapping[str, Any], config_names: Collection[str] | None) -> None:
    """Run the checks of a script on its flags.

    Args:
        method: the first argument of finetune_preferences.py.
        values: value of every flag, by name.
        config_names: the names that `--config_overrides` may set; `None` if unknown.

    Raises:
        UserError: names the flags.
    """
    args = Namespace(**values)  # a copy, because resolve_trainable modifies it
    overrides = read_overrides(values.get("config_overrides"))
    if config_names is not None:
        refuse_unknown_names(overrides, config_names)
    if "trainable" in values:
        resolve_trainable(args)
    if script in CHECKS:
        CHECKS[script](method, args)
    if "max_steps" in values and "num_train_epochs" in values:
        check_length(args)
    if "load_best_model_at_end" in values:
        check_training(args)
    if "resume_from_checkpoint" in values:
        check_resumable(args.output_dir, args.resume_from_checkpoint)
