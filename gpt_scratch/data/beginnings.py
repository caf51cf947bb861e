"""The first rows of the files that a script is to read, by the functions that read them later: before torch and transformers are imported.

A fault there is reported as ever, with all others of the file. Nothing is said of a file without one: the script says it.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UserError
from .classification import read_labelled_texts
from .opening import TABLE_SUFFIXES, Reading, check_files, saying_nothing, suffix_of
from .preference import read_preferences
from .readers import read_pieces, texts_of_table
from .records import normalized, question, read_records

ROWS = 10
LARGEST_LIST = 1 << 23  # bytes of a .json, whose first row is read with all others
Read = Callable[[int | None], Any]  # reads so many rows of a file, or all of them


def check_beginnings(script: str, values: dict[str, Any]) -> None:
    """Refuse files of which the first rows cannot be used: columns of other names, rows of another form.

    Args:
        values: of the script's flags, by name.

    Raises:
        UserError: as the functions that read the files.
    """
    for name, read in _readers(script, Namespace(**values)):
        if suffix_of(name) == ".json" and Path(name).is_file() and Path(name).stat().st_size > LARGEST_LIST:
            continue
        try:
            with saying_nothing():
                read(ROWS)
        except UserError:
            read(None)  # to report all faults at once; what is wrong of the first rows alone is no fault


def _readers(script: str, args: Namespace) -> Iterator[tuple[str, Read]]:
    """Each file, glob or folder that the flags name, with what reads it. Names of `datasets` are not looked up here."""
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
        kept = [args.reply_key] if "reply_key" in args else []
        for name in _files(*(getattr(args, flag, None) for flag in flags)):
            yield name, partial(read_records, name, normalized, "train", reading, args.ignore_keys or (), kept)


def _read_pieces(name: str, text_column: str, reading: Reading, streaming: bool, most: int | None) -> None:
    _run(read_pieces([name], text_column, reading, at_once=streaming or most is not None), most)


def _read_texts(name: str, text_column: str, reading: Reading, most: int | None) -> None:
    _run(texts_of_table(name, text_column, reading, at_once=most is not None), most)


def _files(*names: str | None) -> list[str]:
    return [name for name in names if name is not None and Path(name).is_file()]


def _run(parts: Iterable[Any], most: int | None) -> None:
    for _ in islice(parts, most):
        pass
