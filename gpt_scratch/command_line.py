"""Prints the help of every script, reads recipes and validates flags before torch and transformers are imported.

Importing these takes seconds. [`check_command_line`] needs neither of them: `command_line.json` contains the flags of each script
(`make flags` writes it, and a test compares it with the parsers). The script's own parser then parses the command line again. It is used
alone if the file was written with other releases of the libraries, or if the flags have changed since.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import yaml

from .conflicts import check_flags_of
from .errors import UserError, check_unicode, one_line, unknown_name
from .files import check_target, refuse_existing_run
from .overrides import NumberLoader
from .ranges import check_ranges
from .training_conflicts import LATER

PACKAGE = Path(__file__).resolve().parent
TABLE = PACKAGE / "command_line.json"
PARENT = "TrainingArguments"  # base class of the libraries' other groups of flags
# Files that define flags, besides the script itself. Definitions in other files, such as choices, are compared by the test.
DEFINED_IN = (*(f"training/{name}.py" for name in ("arguments", "pretraining", "classification", "instructions", "preferences",
                                          "distillation")),
              "configuration_gpt_scratch.py", "inference/limits.py", "verify_checkpoint.py", "data/opening.py",
              "demo/__main__.py")  # fmt: skip
DEFINITION = re.compile(
    r"^(?:def parse\b|class (?:\w*Arguments|Limits|Reading|GPTScratchConfig)\b).*?(?=^[^\s)]|\Z)", re.DOTALL | re.MULTILINE
)
OFF = {"top_k": 0}  # values of TRL's flags outside of the range that disable a setting
OWN_RANGES = ("serve",)  # scripts that check the ranges of their flags themselves
PASSED_ON = {"compare_classifiers": "finetune_classifier"}  # scripts that pass unknown flags on to another script


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Shows each flag once, with its first name, the type of its value and its default."""

    def __init__(self, prog: str, **settings: Any):
        super().__init__(prog, max_help_position=36, width=min(140, shutil.get_terminal_size((120, 24)).columns - 2))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} {self._format_args(action, self._get_default_metavar_for_optional(action))}"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return TYPE_NAMES.get(getattr(action.type, "__name__", "str"), "text")

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.help or ""
        default = action.default
        if (
            default is None
            or default is False
            or default == argparse.SUPPRESS
            or "default" in shown.lower()
            or not action.option_strings
        ):
            return shown
        words = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
        return f"{shown}{' ' if shown else ''}[{words.replace('%', '%%')}]" if words else shown


TYPE_NAMES = {"int": "integer", "float": "number", "string_to_bool": "true|false"}


def string_to_bool(text: str) -> bool:
    """Parse a boolean as transformers' parser does."""
    if text.lower() not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in ("yes", "true", "t", "y", "1")


def shape(text: str) -> tuple[int, int]:
    """Parse BATCHxLENGTH, of benchmark.py.

    >>> shape("4x256")
    (4, 256)
    """
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: 4x256 is 4 rows of 256 tokens")
    return int(batch), int(length)


TYPES: dict[str, Callable[[str], Any]] = {"int": int, "float": float, "string_to_bool": string_to_bool, "shape": shape}


class LightParser(argparse.ArgumentParser):
    """A parser that raises [`UserError`] with a message of one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the flags")


def check_command_line(script: str, argv: Sequence[str], description: str | None) -> None:
    """Print the help of a script and exit, or refuse errors that can be found without reading whole files.

    Args:
        script: name of the script, without folder and suffix.
        argv: its arguments.
        description: text above the flags in the help.

    Raises:
        UserError: an unknown flag or recipe key, an invalid value, a missing or empty input file, a model that is neither a directory
            nor a name on the Hub, an output directory that contains a run.
    """
    for word in argv:  # bytes that are not UTF-8 would fail when they are first printed or written, which may be after training
        try:
            check_unicode(word)
        except UserError as error:
            raise UserError(f"the argument {word!r}: {error}: arguments and file names must be UTF-8") from None
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    if not is_current(table, script):
        return
    found = table["scripts"][script]
    methods = found.get("methods", {})
    method = argv[0] if argv and argv[0] in methods else None
    if methods and method is None and not set(argv) & {"-h", "--help"}:
        raise UserError(f"the first argument must be the method ({', '.join(methods)})" + (f", not {argv[0]!r}" if argv else ""))
    described = methods[method or next(iter(methods))] if methods else found
    recipe = ["[recipe.yaml]"] if described.get("recipe") else []
    choice = [method or "{" + ",".join(methods) + "}"] if methods else []
    parser = build_parser(described, table["groups"], f"{script}.py", description, [*choice, *recipe])
    values = read_flags(parser, list(argv)[1 if method else 0 :], PASSED_ON.get(script), table)
    if script not in OWN_RANGES:
        check_ranges({k: v for k, v in values.items() if k not in LATER and (k not in OFF or v != OFF[k])}, "--")
    check_flags_of(script, method, values, table["config_names"] if releases() == table["releases"] else None)
    check_reachable(script, values)
    check_inputs(script, values)
    from .data.beginnings import check_first_rows

    check_first_rows(script, values)
    if values.get("output_dir") and not values.get("resume_from_checkpoint") and described.get("recipe"):
        refuse_existing_run(Path(values["output_dir"]))
    if script in WRITES and values.get("to") != "gguf":  # a single file
        read = _strings(values, [*DATA_FILES, *PLACES])
        check_target(values[WRITES[script]], values["overwrite"], [name for name in read if os.path.exists(name)])


def read_flags(
    parser: argparse.ArgumentParser, argv: list[str], passed_on: str | None = None, table: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The values of the flags and of the recipe, without instantiating the script's dataclasses."""
    known = known_flags(parser)
    if is_recipe(argv):
        argv = recipe_arguments(argv[0], known) + argv[1:]
    values, rest = parser.parse_known_args(argv)
    if rest and passed_on and table:
        other = build_parser(table["scripts"][passed_on], table["groups"], passed_on, None)
        known = sorted({*known, *known_flags(other)})
        _, rest = other.parse_known_args(rest)
    if rest:
        raise UserError(unknown_name(rest[0].lstrip("-").split("=")[0], known, "flag"))
    return vars(values)


# ---------------------------------------------------------------------------------------------------------------------- recipes


def is_recipe(argv: Sequence[str]) -> bool:
    """Whether the first argument is a recipe."""
    return bool(argv) and argv[0].endswith((".yaml", ".yml"))


def recipe_arguments(path: str, known: Sequence[str]) -> list[str]:
    """The entries of a recipe as command-line arguments.

    Raises:
        UserError: the recipe cannot be read, or contains a key that is not a flag.
    """
    try:
        recipe = yaml.load(Path(path).read_text(encoding="utf-8"), NumberLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"recipe {path} cannot be read: {one_line(error)}") from error
    if not isinstance(recipe, dict):
        raise UserError(f"recipe {path} must contain `flag: value` lines")
    arguments: list[str] = []
    for key, value in recipe.items():
        if key not in known:
            raise UserError(f"recipe {path}: " + unknown_name(str(key), known, "key"))
        if value is None:
            continue
        if isinstance(value, list):
            arguments += [f"--{key}", *(_as_text(item) for item in value)]
        else:
            arguments += [f"--{key}={_as_text(value)}"]  # one argument, because a value may start with a dash
    return arguments


def _as_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def known_flags(parser: argparse.ArgumentParser) -> list[str]:
    """All names of all flags, without dashes."""
    return sorted({option.lstrip("-") for action in parser._actions for option in action.option_strings})


# ------------------------------------------------------------------------------------------------------------- files and models

DATA_FILES = ("train_file", "validation_file", "test_file", "data_file", "replies_file", "word_list", "from_files", "file",
              "pretraining_file", "instruction_file", "reinforcement_file")  # fmt: skip
RUNS = ("runs", "first", "second")  # directories or files of finished runs, always local
TEXT_IS_A_FILE = ("benchmark", "measure_compatibility")
MODELS = ("model", "model_name_or_path", "reward_model", "teacher", "checkpoint", "folder")  # these must contain a config.json
PLACES = (*MODELS, "tokenizer_name", "tokenizer", "source", "folder")
CHECKED_BLOCKS = 8  # blocks of 1 MiB of each file that are decoded before torch is imported
DATA_SUFFIX = re.compile(r"\.(txt|text|md|jsonl?|csv|tsv|parquet|zip)(\.(gz|zst|bz2|xz))?$", re.IGNORECASE)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def check_reachable(script: str, values: Mapping[str, Any]) -> None:
    """Refuse a server that other machines can reach without an API key or a fixed list of models.

    Raises:
        UserError: names the flag.
    """
    if script in ("demo", "serve"):
        from .inference.limits import KEY_VARIABLE, PAGE, SERVER, refuse_others

        allowed, what = (values["model"], PAGE) if script == "demo" else (os.environ.get(KEY_VARIABLE), SERVER)
        refuse_others(values["host"], allowed, what)


# Scripts that write a directory atomically, with the flag that names it.
WRITES = {"convert_checkpoint": "output", "train_tokenizer": "output_dir", "export": "output"}


def check_inputs(script: str, values: Mapping[str, Any]) -> None:
    """Check that input files and directories exist.

    Raises:
        UserError: names the first one that does not.
    """
    names = [*DATA_FILES, *(["text"] if script in TEXT_IS_A_FILE else [])]
    for name in _strings(values, names):
        path = Path(os.path.expanduser(name))
        is_a_name = not DATA_SUFFIX.search(name) and not _is_surely_a_path(name)  # of a data set on the Hub on the Hub
        if not path.exists() and not is_a_name and not set("*?[") & set(name):
            raise UserError(f"{name}: no such file")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError(f"{name} is empty")
    for name in _strings(values, RUNS):
        if not Path(name).exists():
            raise UserError(f"{name}: no such file or directory")
    if "encoding" in values:
        check_encoding(values, names)
    wanted = [*_strings(values, [key for key in PLACES if key in values and (key != "model" or script != "benchmark")])]
    for name in wanted:
        check_place(name, is_model=name in [*_strings(values, MODELS)])


def check_encoding(values: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse text files whose first blocks cannot be decoded with the encoding given by flags or a byte order mark."""
    from .data.opening import TABLE_SUFFIXES, TEXT_SUFFIXES, UNPACKERS, Reading, read_text, suffix_of

    reading = Reading.of(argparse.Namespace(**values))
    for name in _strings(values, names):
        path = Path(os.path.expanduser(name))
        is_text = suffix_of(name) in (TEXT_SUFFIXES | TABLE_SUFFIXES) - {".parquet"} and path.suffix.lower() not in UNPACKERS
        if path.is_file() and is_text:
            for _ in islice(read_text(name, reading), CHECKED_BLOCKS):
                pass


def _strings(values: Mapping[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        value = values.get(name)
        yield from (item for item in (value if isinstance(value, list) else [value]) if isinstance(item, str))


def _is_surely_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or not HUB_NAME.fullmatch(name)


def check_place(name: str, is_model: bool) -> None:
    """Refuse a name that is neither a directory of a model nor a repository on the Hub.

    If the Hub cannot be reached and the name is in the cache, offline mode is enabled, so that later calls do not wait for the Hub.
    """
    path = Path(os.path.expanduser(name))
    if path.exists():
        if is_model and path.is_dir() and not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise UserError(f"{name} is not a model directory: it contains no config.json")
        return
    if _is_surely_a_path(name):
        raise UserError(f"{name}: no such file or directory")
    from .hub_access import refuse_unreachable

    refuse_unreachable(name)


# -------------------------------------------------------------------------------------------------- the table, and a parser of it


def definitions(script: str) -> str:
    """A checksum of the code that defines a script's flags."""
    digest = hashlib.sha256()
    for path in (PACKAGE.parent / "scripts" / f"{script}.py", *(PACKAGE / name for name in DEFINED_IN)):
        for text in DEFINITION.findall(path.read_text(encoding="utf-8")):
            digest.update(text.encode())
    return digest.hexdigest()[:16]


def releases() -> dict[str, str | None]:
    """Versions of the libraries whose flags are in the table; `None` for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in ("transformers", "trl"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def is_current(table: Mapping[str, Any], script: str) -> bool:
    """Whether the table agrees with the script's own parser."""
    found = table["scripts"].get(script)
    if found is None:
        return False
    libraries = releases()
    try:
        return found["definitions"] == definitions(script) and all(
            libraries[name] == table["releases"][name] for name in found["needs"]
        )
    except OSError:
        return False


def describe_parser(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """A parser's groups and flags in JSON form."""
    described: dict[str, Any] = {"groups": []}
    for group in parser._action_groups:
        flags = []
        for action in group._group_actions:
            if isinstance(action, argparse._SubParsersAction):
                parts = {name: describe_parser(part) for name, part in action.choices.items()}
                described["subparsers"] = {"dest": action.dest, "parsers": parts}
            elif not isinstance(action, argparse._HelpAction):
                flags.append(_describe_action(action))
        if flags:
            described["groups"].append({"title": group.title, "flags": flags})
    return described


def _describe_action(action: argparse.Action) -> dict[str, Any]:
    kinds: dict[type, str] = {
        argparse._StoreTrueAction: "store_true",
        argparse._StoreFalseAction: "store_false",
        argparse._VersionAction: "version",
    }
    kind = kinds.get(type(action))
    name = getattr(action.type, "__name__", None)
    described = {
        "names": list(action.option_strings) or [action.dest],
        "dest": action.dest,
        "action": kind,
        "version": getattr(action, "version", None),
        "nargs": None if kind else action.nargs,
        "const": None if kind else action.const,
        # the default of dataloader_pin_memory depends on the machine
        "default": None if kind or action.dest == "dataloader_pin_memory" else _plain(action.default),
        "type": name if name in TYPES else None,
        "choices": None if action.choices is None else [str(choice) for choice in action.choices],
        "required": bool(action.required and action.option_strings) or None,
        "help": action.help,
    }
    return {key: value for key, value in described.items() if value is not None}


def _plain(value: Any) -> Any:
    """A default in JSON form; an enumeration member by its value."""
    value = getattr(value, "value", value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def build_parser(
    described: Mapping[str, Any],
    groups: Mapping[str, Any],
    prog: str,
    description: str | None,
    first: Sequence[str] = (),
) -> LightParser:
    """Rebuild a parser from its description.

    Args:
        groups: flags shared by several scripts, by the title of their group.
        first: positional arguments in the usage line.
    """
    parser = LightParser(prog=prog, description=description, formatter_class=HelpFormatter, allow_abbrev=False, add_help=False)
    usage = [prog, *first]
    help_at = next((group["title"] for group in described["groups"] if not group["title"].startswith("positional")), "options")
    for group in described["groups"]:
        place = parser.add_argument_group(group["title"])
        if group["title"] == help_at:
            place.add_argument("-h", "--help", action="help", help="show this and exit")
        for flag in flags_of(group, groups):
            settings = {key: value for key, value in flag.items() if key not in ("names", "type", "dest")}
            positional = not flag["names"][0].startswith("-")
            if not positional:
                settings["dest"] = flag["dest"]
            if flag.get("help") == argparse.SUPPRESS:
                settings["help"] = argparse.SUPPRESS  # argparse compares by identity
            if "type" in flag:
                settings["type"] = TYPES[flag["type"]]
            place.add_argument(*flag["names"], **settings)
            if positional and "subparsers" not in described:
                usage.append(f"[{flag['names'][0]}]" if flag.get("nargs") == "?" else flag["names"][0])
            elif flag.get("required"):
                usage.append(f"{flag['names'][0]} ...")
    if help_at not in [group["title"] for group in described["groups"]]:
        parser.add_argument("-h", "--help", action="help", help="show this and exit")
    if "subparsers" in described:
        parts = parser.add_subparsers(dest=described["subparsers"]["dest"], required=True, metavar="subject", prog=prog)
        for name, part in described["subparsers"]["parsers"].items():
            inner = build_parser(part, groups, f"{prog} {name}", None)
            parts.add_parser(name, parents=[inner], add_help=False, usage=inner.usage, formatter_class=HelpFormatter)
        usage.append("{" + ",".join(described["subparsers"]["parsers"]) + "} ...")
    parser.usage = " ".join([*usage, "[--flag value ...]"])
    return parser


def flags_of(group: Mapping[str, Any], groups: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The flags of a group: its own, or those in `groups` under the last word of its title; a plain name refers to a flag of `PARENT`."""
    if "flags" in group:
        return group["flags"]
    parent = {flag["names"][0]: flag for flag in groups[PARENT]}
    return [parent[flag] if isinstance(flag, str) else flag for flag in groups[group["title"].split()[-1]]]
