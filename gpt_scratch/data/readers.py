"""Documents from files: txt, jsonl, json, csv and parquet, or a `datasets` name or directory, in memory or streamed.

A document is one txt file, or one row of the other formats. It travels as pieces of about `PIECE_CHARACTERS`, and never more than
`LONGEST_PIECE`, so that a file of any size is read, tokenized and cached in constant memory.
"""

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, AnyStr

import datasets
import pyarrow
import pyarrow.parquet

from ..errors import UserError, innermost, one_line

PIECE_CHARACTERS = 1 << 13  # tokenizers are several times as fast on short texts, and use all cores on many
READ_BYTES = 1 << 20
LONGEST_PIECE = 1 << 16  # text without spaces or lines: base64, minified code, some scripts
ROW_BYTES = 1 << 28  # of a row at most: it is held in memory, several times over
LARGEST_RATIO = 200  # of unpacked to packed bytes; text has 3 to 10
CUTTING_PLACE = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")
END_OF_WORD = re.compile(r"(?<=[^\W_])(?=\s)")
TEXT_SUFFIXES = {".txt", ".text", ".md", ""}


@dataclass
class Piece:
    """A part of a document; `end` marks its last one."""

    text: str
    end: bool


def check_files(files: Sequence[str]) -> None:
    """Refuse missing, empty and unknown files before anything is read.

    Raises:
        UserError: names the file.
    """
    for name in files:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{name} is empty")
        if path.suffix.lower() not in TEXT_SUFFIXES | ROW_READERS.keys():
            raise UserError(f"{name}: unknown format {path.suffix!r}; give txt, jsonl, json, csv or parquet")


def read_pieces(files: Sequence[str], text_column: str = "text") -> Iterator[Piece]:
    """The documents of `files`, in order, as pieces; constant memory whatever their size (a `.json` array excepted).

    Raises:
        UserError: bytes that are not UTF-8, a broken row, a missing text column, a row without text; names file and place.
    """
    for name in files:
        reader = ROW_READERS.get(Path(name).suffix.lower())
        if reader is None:
            yield from _read_text_file(name)
        else:
            yield from read_rows(reader(name), text_column, name)


def read_rows(rows: Iterable[Mapping], text_column: str, name: str) -> Iterator[Piece]:
    """The documents of a table, one a row, as pieces."""
    for text in texts_of_rows(rows, text_column, name):
        yield from _cut(iter([text]))


def texts_of_rows(rows: Iterable[Mapping], text_column: str, name: str) -> Iterator[str]:
    """The text of each row.

    Raises:
        UserError: a row without the column, or with something else than text in it; names file and row.
    """
    for number, row in enumerate(rows):
        if text_column not in row:
            raise UserError(
                f"{name} row {number} has no column {text_column!r}: its columns are {', '.join(map(str, row))}; pass --text_column"
            )
        if not isinstance(row[text_column], str):
            raise UserError(f"{name} row {number}: {text_column!r} is {type(row[text_column]).__name__}, not text")
        yield row[text_column]


def _rows_of_jsonl(name: str) -> Iterator[dict[str, Any]]:
    # Read by hand and not by datasets' streaming readers: these share files out among loader workers by themselves,
    # and a single file then goes to the first worker only.
    with open(name, "rb") as file:
        for number, line in enumerate(_lines(file, name), start=1):
            if line.strip():
                yield _parsed(line, dict, f"{name} line {number}")


def _lines(file: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    number = 0
    while line := file.readline(ROW_BYTES):
        number += 1
        if len(line) == ROW_BYTES:
            raise UserError(
                f"{name} line {number} is longer than {ROW_BYTES:,}: give long documents as txt files, or in several rows"
            )
        yield line


def _rows_of_json(name: str) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(_parsed(Path(name).read_bytes(), list, name)):
        if not isinstance(row, dict):
            raise UserError(f"{name} row {number} is {type(row).__name__}, not an object")
        yield row


def _parsed(data: bytes, kind: type, place: str) -> Any:
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte {error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise UserError(
            f"{place} holds a {type(value).__name__} where a {'list of objects' if kind is list else 'JSON object'} is expected"
        )
    return value


def _rows_of_csv(name: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(ROW_BYTES)  # the default of 128 KiB is shorter than a long document
    try:
        with open(name, encoding="utf-8", newline="") as file:
            yield from csv.DictReader(_lines(file, name), strict=True)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason}); convert the file to UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{name} is not valid CSV: {error}") from error


def _rows_of_parquet(name: str) -> Iterator[dict[str, Any]]:
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            _refuse_unpacking_beyond_reason(file.metadata, name)
            first = 0
            for batch in file.iter_batches(batch_size=16):  # few rows: one value of a dictionary may fill many with megabytes
                if batch.nbytes > ROW_BYTES:
                    raise UserError(
                        f"{name}: rows {first} to {first + batch.num_rows - 1} hold {batch.nbytes:,} bytes: give long texts as txt files"
                    )
                yield from batch.to_pylist()
                first += batch.num_rows
    except UserError:
        raise
    except Exception as error:  # pyarrow raises others, too, such as UnicodeDecodeError of a column's name
        raise UserError(f"{name} is not a readable parquet file: {one_line(innermost(error))}") from error


def _refuse_unpacking_beyond_reason(footer: pyarrow.parquet.FileMetaData, name: str) -> None:
    """A part of a column is unpacked page by page, but a page may be all of it."""
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            part = footer.row_group(group).column(column)
            packed, unpacked = part.total_compressed_size, part.total_uncompressed_size
            if unpacked > ROW_BYTES and unpacked > LARGEST_RATIO * packed:
                raise UserError(
                    f"{name}: row group {group} of {part.path_in_schema} has {packed:,} bytes that unpack to {unpacked:,}: no text does"
                )


ROW_READERS = {".jsonl": _rows_of_jsonl, ".json": _rows_of_json, ".csv": _rows_of_csv, ".parquet": _rows_of_parquet}


def _read_text_file(name: str) -> Iterator[Piece]:
    def decoded() -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = 0
        with open(name, "rb") as file:
            while True:
                data = file.read(READ_BYTES)
                pending = len(decoder.getstate()[0])
                try:
                    yield decoder.decode(data, final=not data)
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{name}: byte {position - pending + error.start} is not UTF-8 ({error.reason}); convert the file to UTF-8"
                    ) from error
                position += len(data)
                if not data:
                    return

    yield from _cut(decoded())


def _cut(chunks: Iterator[str]) -> Iterator[Piece]:
    """Join `chunks` and cut them near every PIECE_CHARACTERS, where the tokens of the pieces are the tokens of the whole.

    That is before a single space between two visible characters, since GPT-2's pre-tokenization, and that of its successors, joins
    such a space with what follows or keeps it alone; and after a single newline between two visible characters, which they
    join with what precedes or keep alone, for scripts without spaces.

    Where LONGEST_PIECE characters hold no such place, the text is cut at the last end of a word, or else at that length; there, and only
    there, tokens may differ from those of the whole.
    """
    buffer, searched = "", 0
    for chunk in chunks:
        buffer += chunk
        start = 0
        while True:
            found = CUTTING_PLACE.search(buffer, max(start + PIECE_CHARACTERS, searched))
            known = found.start() if found else len(buffer)
            while known - start > LONGEST_PIECE:
                place = _forced_place(buffer, start)
                yield Piece(buffer[start:place], end=False)
                start = place
            if not found:
                break
            yield Piece(buffer[start:known], end=False)
            start = known
        searched = max(0, len(buffer) - 2 - start)  # a place needs two characters after it
        buffer = buffer[start:]
    yield Piece(buffer, end=True)


def _forced_place(text: str, start: int) -> int:
    limit = start + LONGEST_PIECE
    *_, last = [start, *(found.start() for found in END_OF_WORD.finditer(text, start + PIECE_CHARACTERS, limit))]
    return last if last > start else limit


def load_table(name: str, config_name: str | None, split: str, streaming: bool):
    """A split of a `datasets` name or directory, or `None` where it has no such split.

    Raises:
        UserError: it cannot be found or read.
    """
    try:
        if os.path.isdir(name) and (Path(name) / "dataset_info.json").is_file():
            return datasets.load_from_disk(name) if split == "train" else None  # written by Dataset.save_to_disk
        if os.path.isdir(name) and (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name).get(split)
        available = datasets.get_dataset_split_names(name, config_name)
        if split not in available:
            return None
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(f"data set {name!r} cannot be loaded: {one_line(innermost(error))}") from error


def read_table(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    """The rows of a json, jsonl, csv or parquet file, or of a split of a `datasets` name.

    Raises:
        UserError: no such file, data set or split, an unknown format.
    """
    suffix = Path(name).suffix.lower()
    if Path(name).is_file():
        if suffix not in ROW_READERS:
            raise UserError(f"{name}: unknown format {suffix!r}; give json, jsonl, csv or parquet")
        return ROW_READERS[suffix](name)
    if suffix in ROW_READERS:
        raise UserError(f"{name}: no such file")
    found = load_table(name, None, split, streaming=False)
    if found is None:
        raise UserError(f"data set {name!r} has no split {split!r}")
    return found
