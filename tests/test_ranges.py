"""Numbers out of range end in one line that names the flag, before anything is read, in every script and for every flag."""

import argparse
import dataclasses
import math
from pathlib import Path

import pytest

from gpt_scratch import ranges
from gpt_scratch.errors import UserError
from gpt_scratch.ranges import RANGES, check_ranges
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.preferences import PreferenceArguments, configuration_class
from gpt_scratch.training.pretraining import PretrainingArguments

TRAINING = (PretrainingArguments, ClassificationArguments, InstructionArguments, PreferenceArguments)
PARSERS = {
    "generate": ["m"], "chat": ["m"], "classify": ["m"], "evaluate_instructions": [], "train_tokenizer": ["--output_dir", "o"],
    "analyze": ["temperature", "m", "--text", "a"], "benchmark": ["step"], "measure_compatibility": ["m", "--text", "t"],
    "compare_classifiers": ["--recipes", "r", "--train_file", "t", "--output_dir", "o"],
}  # fmt: skip
BAD = ["nan", "inf", "-inf", "-5", "1e30"]


def numeric(fields) -> set[str]:
    return {
        item.name for item in fields if any(word in str(item.type) for word in ("int", "float")) and "dict" not in str(item.type)
    }


@pytest.mark.parametrize("kind", [ScratchTrainingArguments, *TRAINING])
def test_every_number_of_the_training_scripts_has_a_range(kind):
    assert not numeric(dataclasses.fields(kind)) - RANGES.keys()


def test_every_number_of_the_other_scripts_has_a_range(script, monkeypatch):
    """Their parsers are collected as they are made, so that new flags are included. serve.py has ranges of its own, in `inference/limits.py`."""
    made: list[argparse.ArgumentParser] = []
    init = argparse.ArgumentParser.__init__
    monkeypatch.setattr(
        argparse.ArgumentParser, "__init__", lambda self, *args, **kwargs: (init(self, *args, **kwargs), made.append(self))[0]
    )
    for path in sorted((Path(__file__).resolve().parents[1] / "scripts").glob("*.py")):
        module = script(path.stem)
        if hasattr(module, "parse") and path.stem not in ("finetune_preferences", "serve"):
            with pytest.raises(SystemExit):
                module.parse(["--help"])
    flags = {action.dest for parser in made for action in parser._actions if action.type in (int, float)}
    assert len(made) > 12 and not flags - RANGES.keys()


@pytest.mark.parametrize("flag", sorted(numeric(dataclasses.fields(ScratchTrainingArguments)) - {"local_rank"}))
def test_training_flags_are_refused_by_name(flag, tmp_path):
    base = [
        "--output_dir",
        str(tmp_path / "run"),
        "--use_cpu",
        "--train_file",
        "t",
        *(["--max_steps", "3"] if flag != "max_steps" else []),
    ]
    refused = 0
    for value in BAD[:-1] if RANGES[flag][1] == math.inf else BAD:
        with pytest.raises(UserError) as error:
            parse_arguments((PretrainingArguments, ScratchTrainingArguments), [*base, f"--{flag}={value}"])
        assert flag in str(error.value) and "\n" not in str(error.value), error.value
        refused += 1
    assert refused >= 4 and not (tmp_path / "run").exists()


CASES = [  # class, flags, words
    (ScratchTrainingArguments, "--learning_rate nan", "--learning_rate is nan: it must be between 0 and 1,000"),
    (ScratchTrainingArguments, "--seed -5", "--seed is -5: it must be between 0 and 4,294,967,295"),
    (ScratchTrainingArguments, "--per_device_train_batch_size 0", "--per_device_train_batch_size is 0: it must be between 1"),
    (ScratchTrainingArguments, "--gradient_accumulation_steps 0", "gradient_accumulation_steps"),
    (ScratchTrainingArguments, "--adam_beta1 1", "--adam_beta1 is 1.0: it must be between 0 and 1 (excluded)"),
    (PretrainingArguments, "--stride 0", "--stride is 0"),
    (PretrainingArguments, "--validation_split_percentage 100", "between 0 (excluded) and 100 (excluded)"),
    (PretrainingArguments, "--sample_temperature inf", "--sample_temperature is inf: it must be a finite number of at least 0"),
    (PretrainingArguments, "--eval_train_blocks -1", "--eval_train_blocks is -1"),
    (ClassificationArguments, "--split_fractions 0.5 nan 0.2", "--split_fractions is nan"),
    (ClassificationArguments, "--max_length 0", "--max_length is 0"),
    (InstructionArguments, "--sample_replies -1", "--sample_replies is -1"),
    (InstructionArguments, "--lora_rank 0", "--lora_rank is 0"),
    (InstructionArguments, "--lora_alpha -1", "--lora_alpha is -1"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "flags", "words"), CASES)
def test_the_message_states_the_range(kind, flags, words, tmp_path):
    kinds = (kind,) if kind is ScratchTrainingArguments else (kind, ScratchTrainingArguments)
    with pytest.raises(UserError) as error:
        parse_arguments(kinds, ["--output_dir", str(tmp_path / "run"), "--use_cpu", *flags.split()])
    assert words in str(error.value)


@pytest.mark.parametrize("flags", ["--beta nan", "--learning_rate inf", "--seed -1", "--per_device_train_batch_size 0"])
def test_flags_of_preferences_are_refused_by_name(flags, tmp_path):
    with pytest.raises(UserError, match=flags.split()[0].removeprefix("--")):
        parse_arguments(
            (PreferenceArguments, configuration_class("dpo")), ["--output_dir", str(tmp_path), "--use_cpu", *flags.split()]
        )


@pytest.mark.parametrize("name", PARSERS)
def test_flags_of_the_other_scripts_are_refused_by_name(name, script, monkeypatch, capsys):
    module = script(name)
    seen: dict[str, type] = {}
    add = argparse.ArgumentParser.add_argument

    def note(self, *args, **kwargs):
        action = add(self, *args, **kwargs)
        if action.type in (int, float):
            seen[action.dest] = action.type
        return action

    monkeypatch.setattr(argparse.ArgumentParser, "add_argument", note)
    with pytest.raises(SystemExit):
        module.parse([*PARSERS[name], "--help"])
    own = [flag for flag in seen if f"--{flag} " in capsys.readouterr().out or name != "analyze"]
    for flag in own or ["top", "top_k", "top_p", "temperatures"]:
        for value in ["-5", *(["nan", "inf"] if seen[flag] is float else [])]:
            with pytest.raises(UserError, match=f"^--{flag} is {value}"):
                module.parse([*PARSERS[name], f"--{flag}={value}"])


def test_the_table_holds_for_settings_as_for_flags():
    check_ranges({"temperature": 0, "top_p": 1.0, "unknown": 5, "text": "nan", "flag": True, "nothing": None, "seed": 2**32 - 1})
    for bad in (
        {"temperature": math.nan},
        {"top_p": 1.1},
        {"unknown": math.inf},
        {"seed": 2**32},
        {"max_new_tokens": 0},
        {"seeds": [1, -1]},
    ):
        with pytest.raises(UserError, match=f"^{next(iter(bad))} is "):
            check_ranges(bad)
    assert all(low < high for low, high in ranges.RANGES.values())
