"""Checks of flags that exclude or require each other, for every script, without reading whole files.

`command_line.py` runs them before torch and transformers are imported, and the scripts again when they use the flags. Nothing in this
file imports torch or transformers. Checks shared by the training scripts are in `training_conflicts.py`.
"""

import re
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import UserError, check_unicode
from .overrides import read_overrides, refuse_sizes, refuse_unknown_names
from .training_conflicts import (
    check_early_stopping,
    check_fractions,
    check_length,
    check_needed,
    check_resumable,
    check_split_files,
    check_stride,
    check_training,
    resolve_trainable,
)

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"  # of the tokenizers that are trained here


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


# Computed rewards; their functions are in evaluation/rewards.py.
REWARDS = ("exact_match", "arithmetic", "format", "length")


def check_rewards(names: Sequence[str]) -> None:
    """Check the names of rewards, without running a user's file.

    Raises:
        UserError: a reward that is unknown or given twice, or whose file does not exist.
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
    """Check the flags of finetune_preferences.py.

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
    refuse_compressed(args.output)
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
    if args.weights not in ("auto", "none") and args.num_beams:
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
    refuse_compressed(args.output)


def refuse_compressed(output: str | None) -> None:
    """Refuse the suffix of a compressed file, since output files are not compressed.

    Raises:
        UserError: names the flag.
    """
    if output is not None and output.lower().endswith((".gz", ".bz2", ".xz", ".zst")):
        raise UserError(f"--output {output}: the file is not compressed; leave out {Path(output).suffix}")


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


def check_export(args: Any) -> None:
    """Check the flags of export.py.

    Raises:
        UserError: a flag of the other format.
    """
    if args.to == "gguf" and args.overwrite:
        raise UserError("--overwrite is for onnx: a .gguf file is replaced when the new one is whole")
    if args.to == "onnx" and args.type:
        raise UserError("--type is for gguf: onnx is written in float32")
    if args.to == "onnx" and args.modelfile:
        raise UserError("--modelfile is for gguf: ollama reads no onnx")


DEPTHS = {"tiny": 4, "small": 6, "medium": 8, "124M": 12}  # layers of the sizes of zero_to_chat.py
DIALOGUE_FILES = ("instruction_file", "reinforcement_file", "validation_file", "test_file")


def check_zero_to_chat(args: Any) -> None:
    """Check the flags of zero_to_chat.py.

    Raises:
        UserError: an invalid size, only some of the files that belong together, or a package that a stage needs is not installed.
    """
    if args.size not in DEPTHS and not (args.size.isdecimal() and 2 <= int(args.size) <= 48):
        raise UserError(f"--size {args.size}: use {', '.join(DEPTHS)}, or a number of layers from 2 to 48")
    given = [name for name in DIALOGUE_FILES if getattr(args, name)]
    if given and len(given) < len(DIALOGUE_FILES):
        missing = next(name for name in DIALOGUE_FILES if name not in given)
        raise UserError(f"--{missing} is missing: {', '.join('--' + name for name in DIALOGUE_FILES)} are given together")
    if args.page and args.no_chat:
        raise UserError("--page and --no_chat exclude each other")
    needed = {"trl": ("trl", "reinforcement")} | ({"gradio": ("demo", "--page")} if args.page else {})
    for package, (extra, what) in needed.items():
        if find_spec(package) is None:
            raise UserError(f'{what} needs {package}: pip install "gpt_scratch[{extra}]"')


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
    "export": lambda _, args: check_export(args),
    "zero_to_chat": lambda _, args: check_zero_to_chat(args),
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
