"""The flags of every script, as their own parsers have them, in gpt_scratch/command_line.json.

    python tests/command_line_table.py            # writes it; `make flags`

`test_command_line.py` compares the file with the parsers.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from modules import SCRIPTS, load_script

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpt_scratch import GPTScratchConfig, command_line  # noqa: E402
from gpt_scratch.training.arguments import ScratchTrainingArguments, config_names, parse_arguments  # noqa: E402
from gpt_scratch.training.classification import ClassificationArguments  # noqa: E402
from gpt_scratch.training.distillation import DistillationArguments  # noqa: E402
from gpt_scratch.training.instructions import InstructionArguments  # noqa: E402
from gpt_scratch.training.preferences import METHODS, PreferenceArguments, configuration_class  # noqa: E402
from gpt_scratch.training.pretraining import PretrainingArguments  # noqa: E402

OWN = {
    "distill": DistillationArguments,
    "pretrain": PretrainingArguments,
    "finetune_classifier": ClassificationArguments,
    "finetune_instructions": InstructionArguments,
}


class _FoundError(BaseException):
    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser


def parser_of(parse: Callable[[], Any]) -> argparse.ArgumentParser:
    """The parser that a function calls."""

    def found(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any):
        raise _FoundError(parser)

    with patch.object(argparse.ArgumentParser, "parse_known_args", found):
        try:
            parse()
        except _FoundError as found_error:
            return found_error.parser
    raise AssertionError("it asks no parser")


def script_names() -> list[str]:
    return sorted(path.stem for path in SCRIPTS.glob("[!_]*.py"))


def make_table() -> dict[str, Any]:
    """What command_line.json is to hold."""
    groups: dict[str, Any] = {}
    scripts: dict[str, Any] = {}
    for name in script_names():
        if name in OWN:
            scripts[name] = _with_recipe(
                parser_of(lambda own=OWN[name]: parse_arguments((own, ScratchTrainingArguments), [])), groups
            )
            needs = ["transformers"]
        elif name == "finetune_preferences":
            methods = {
                method: _with_recipe(
                    parser_of(lambda m=method: parse_arguments((PreferenceArguments, configuration_class(m)), [])), groups
                )
                for method in METHODS
            }
            scripts[name], needs = {"methods": methods}, ["transformers", "trl"]
        else:
            module = load_script(name)
            scripts[name] = command_line.describe_parser(parser_of(partial(module.parse, [])))
            needs = ["transformers"] if name in command_line.PASSED_ON else []
        scripts[name] |= {"needs": needs, "definitions": command_line.definitions(name)}
    parent = groups[command_line.PARENT]
    for title, flags in groups.items():
        if title != command_line.PARENT:
            groups[title] = [flag["names"][0] if flag in parent else flag for flag in flags]
    return {
        "releases": command_line.releases(),
        "config_names": sorted(config_names(GPTScratchConfig)),
        "groups": groups,
        "scripts": scripts,
    }


def _with_recipe(parser: argparse.ArgumentParser, groups: dict[str, Any]) -> dict[str, Any]:
    """A library's flags go to `groups`, since several scripts have them."""
    described = command_line.describe_parser(parser)
    own, library = described["groups"]
    groups[library["title"].split()[-1]] = library["flags"]
    return {"recipe": True, "groups": [own, {"title": library["title"]}]}


def as_text(table: dict[str, Any]) -> str:
    """JSON with a line for each flag."""

    def lines(value: Any, indent: str) -> str:
        if isinstance(value, dict) and "names" not in value:
            inner = ",\n".join(f"{indent} {json.dumps(key)}: {lines(part, indent + ' ')}" for key, part in value.items())
            return f"{{\n{inner}\n{indent}}}"
        if isinstance(value, list) and any(isinstance(part, dict) for part in value):
            return "[\n" + ",\n".join(f"{indent} {lines(part, indent + ' ')}" for part in value) + f"\n{indent}]"
        return json.dumps(value, ensure_ascii=False)

    return lines(table, "") + "\n"


if __name__ == "__main__":
    command_line.TABLE.write_text(as_text(make_table()), encoding="utf-8")
    print(f"written: {command_line.TABLE.relative_to(ROOT)}")
