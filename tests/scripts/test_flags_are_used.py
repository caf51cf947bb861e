"""Each flag of each script is read by some code. Its effect is tested with that code."""

import argparse
import ast
import dataclasses
from pathlib import Path

import pytest

from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.classification import ClassificationArguments
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.preferences import PreferenceArguments
from gpt_scratch.training.pretraining import PretrainingArguments

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "scripts").glob("*.py") if "ArgumentParser(" in path.read_text(encoding="utf-8"))
DATACLASSES = {
    PretrainingArguments: "pretraining",
    ClassificationArguments: "classification",
    InstructionArguments: "instructions",
    PreferenceArguments: "preferences",
}


def names_read(*paths: Path) -> set[str]:
    """Attributes that are read (`args.NAME`), and texts that may name one (`getattr(args, "NAME")`)."""
    found: set[str] = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                found |= {item.value for item in node.args[1:2] if isinstance(item, ast.Constant)}
            elif isinstance(node, (ast.Tuple, ast.List)):
                found |= {item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)}
    return found


def flags_of(path: Path) -> set[str]:
    """The destinations of a script's `add_argument` calls, at any depth of subcommands."""
    flags: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if not names:
                continue
            named = [
                keyword.value.value
                for keyword in node.keywords
                if keyword.arg == "dest" and isinstance(keyword.value, ast.Constant)
            ]
            action = argparse.ArgumentParser(add_help=False).add_argument(*names)
            flags.add(named[0] if named else action.dest)
    return flags


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_flag_of_a_script_is_read(path):
    flags = flags_of(path)
    assert flags
    assert flags - names_read(path) == set()


@pytest.mark.parametrize("kind", DATACLASSES, ids=lambda kind: kind.__name__)
def test_each_flag_of_a_training_script_is_read(kind):
    training = ROOT / "gpt_scratch" / "training"
    scripts = [path for path in (ROOT / "scripts").glob("*.py") if kind.__name__ in path.read_text(encoding="utf-8")]
    shared = [training / f"{name}.py" for name in ("finetuning", "optimizers", "reinforcement")]
    shared += [training.parent / "data" / "opening.py"]
    read = names_read(training / f"{DATACLASSES[kind]}.py", *shared, *scripts)
    assert {field.name for field in dataclasses.fields(kind)} - read == set()


def test_each_training_argument_of_this_package_is_read():
    from transformers import TrainingArguments

    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = {field.name for field in dataclasses.fields(ScratchTrainingArguments)} - inherited
    assert own and own - names_read(*(ROOT / "gpt_scratch" / "training").glob("*.py"), *(ROOT / "scripts").glob("*.py")) == set()
