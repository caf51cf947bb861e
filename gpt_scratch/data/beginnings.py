"""Checks the first rows of a script's input files, with the functions that read them later, before torch and transformers are imported.

If the first rows are invalid, the whole file is read to report all its faults. Notes about valid files are printed later, by the script.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from .classification import read_labelled_texts
from .opening import TABLE_SUFFIXES, Reading, check_files, muted_notes, suffix_of
from .preference import read_preferences
from .readers import read_pieces, texts_of_table
from .records import normalized, question, read_records

ROWS = 10
LARGEST_LIST = 1 << 23  # maximum size of a .json file to check: all its rows are parsed at once
Read = Callable[[int | None], Any]  # reads the given number of rows of a file, or all


def check_first_rows(script: str, values: dict[str, Any]) -> None:
    """Refuse files whose first rows are invalid, such as missing columns.

    Args:
        values: values of the script's flags, by name.

    Raises:
        UserError: raised by the functions that read the files.
    """
    _refuse_unused_delimiter(script, values)
    for name, read in _readers(script, Namespace(**values)):
        if suffix_of(name) == ".json" and Path(name).is_file() and Path(name).stat().st_size > LARGEST_LIST:
            continue
        try:
            with muted_notes():
                read(ROWS)
        except UserError:
            read(None)  # reports all faults at once; an error of the first rows alone is not a fault


def _refuse_unused_delimiter(script: str, values: dict[str, Any]) -> None:
    suffixes = {".csv", ".tsv", *((".txt", ".text", "", ".zip") if script == "finetune_classifier" else ())}
    given = [values.get(flag) for flag in ("train_file", "validation_file", "test_file", "data_file", "replies_file", "file")]
    names = [name for value in given for name in (value if isinstance(value, list) else [value]) if name]
    if values.get("delimiter") and names and all(Path(name).is_file() and suffix_of(name) not in suffixes for name in names):
        raise UserError(f"--delimiter has no effect: {', '.join(names[:3])} {'is' if len(names) == 1 else 'are'} not csv or tsv")


def _readers(script: str, args: Namespace) -> Iterator[tuple[str, Read]]:
    """Each file, glob or folder in the flags, with its reader. Names of `datasets` are not looked up."""
    reading = Reading.of(args) if "encoding" in args else Reading()
    if script in ("pretrain", "train_tokenizer"):
        streaming = getattr(args, "streaming", False)
        for name in [*(args.train_file or []), *(args.validation_file or [])]:
            yield name, partial(_read_pieces, name, args.text_column, reading, streaming)
    elif script == "finetune_classifier" and args.split != "published":
        for name in _files(args.train_file, args.validation_file, args.test_file):
            yield name, partial(read_labelled_texts, name, args.text_column, args.label_column, "train", reading)
    elif script == "classify" and args.file and not args.text:
        check_files([args.file])
        if suffix_of(args.file) in TABLE_SUFFIXES:
            yield args.file, partial(_read_texts, args.file, args.text_column, reading)
    elif script == "finetune_preferences" and not args.reward:
        for name in _files(args.train_file):
            yield name, partial(read_preferences, name, "train", reading, args.ignore_keys or ())
    elif script == "finetune_preferences":
        for name in _files(args.train_file, args.validation_file):
            yield name, partial(read_records, name, question, "train", reading, args.ignore_keys or (), ())
    elif script in ("finetune_instructions", "evaluate_instructions"):
        flags = ("train_file", "validation_file", "test_file", "data_file", "replies_file")
        kept = [value for key in ("reply_key", "kind_key") if (value := getattr(args, key, None))]
        for name in _files(*(getattr(args, flag, None) for flag in flags)):
            yield name, partial(read_records, name, normalized, "train", reading, args.ignore_keys or (), kept)


def _read_pieces(name: str, text_column: str, reading: Reading, streaming: bool, max_rows: int | None) -> None:
    _run(read_pieces([name], text_column, reading, at_once=streaming or max_rows is not None), max_rows)


def _read_texts(name: str, text_column: str, reading: Reading, max_rows: int | None) -> None:
    _run(texts_of_table(name, text_column, reading, at_once=max_rows is not None), max_rows)


def _files(*names: str | None) -> list[str]:
    return [name for name in names if name is not None and Path(name).is_file()]


def _run(parts: Iterable[Any], max_rows: int | None) -> None:
    for _ in islice(parts, max_rows):
        pass
