"""Documents from files: txt, jsonl, json, csv, tsv and parquet, or a `datasets` name or directory, in memory or streamed.

A document is one txt file, or one row of the other formats; if an end-of-text mark separates documents in the text, it is the text between
two marks. It is read in pieces of about `PIECE_CHARACTERS`, at most `LONGEST_PIECE`, so that files of any size are read, tokenized and
cached in constant memory.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .columns import find_column, no_column
from .opening import TABLE_SUFFIXES, Faults, Reading, check_files, print_once, read_text, suffix_of
from .tables import Row, read_table, rows_of_stream

PIECE_CHARACTERS = 1 << 13  # tokenizers are several times faster on short texts, and use all cores for many texts
LONGEST_PIECE = 1 << 16  # for text without spaces or lines: base64, minified code, some scripts
CUTTING_PLACE = re.compile(r"(?<=\S)(?= \S)|(?<=\S\n)(?=\S)")
END_OF_WORD = re.compile(r"(?<=[^\W_])(?=\s)")


@dataclass
class Piece:
    """A part of a document; `end` marks its last one."""

    text: str
    end: bool


def read_pieces(
    files: Sequence[str],
    text_column: str = "text",
    reading: Reading | None = None,
    end_mark: str | None = None,
    at_once: bool = False,
) -> Iterator[Piece]:
    """The documents of `files`, in order, as pieces, in constant memory (except a list in a `.json`).

    Args:
        end_mark: a string that ends a document wherever it occurs in the text; it is kept at the end of the document.
        at_once: raise at the first fault of a table, for streams; otherwise all faults are reported at the end of the file.

    Raises:
        UserError: wrong encoding, invalid rows, a missing text column, rows without text; names file and locations.
    """
    reading = reading or Reading()
    for name in check_files(files):
        if suffix_of(name) in TABLE_SUFFIXES:
            faults = Faults(at_once)
            rows = read_table(name, reading=reading, faults=faults, columns=[text_column], header=True)
            yield from _pieces_of_rows(rows, text_column, reading, faults, end_mark)
        else:
            yield from _cut(_parts(read_text(name, reading), end_mark))


def whole_text(name: str) -> str:
    """The documents of a file, a folder or a glob as one text, each on a new line.

    Raises:
        UserError: as [`read_pieces`].
    """
    return "".join(piece.text + "\n" * piece.end for piece in read_pieces([name])).removesuffix("\n")


def read_rows(rows: Iterable[Mapping], text_column: str, name: str, reading: Reading | None = None, end_mark: str | None = None):
    """The documents of a `datasets` table, one a row, as pieces."""
    return _pieces_of_rows(rows_of_stream(rows, name), text_column, reading or Reading(), Faults(at_once=True), end_mark)


def _pieces_of_rows(
    rows: Iterable[Row], text_column: str, reading: Reading, faults: Faults, end_mark: str | None
) -> Iterator[Piece]:
    for text in texts_of_rows(rows, text_column, reading, faults):
        yield from _cut(_parts(iter([text]), end_mark))


def texts_of_table(
    name: str,
    text_column: str,
    reading: Reading,
    keep: Callable[[dict[str, Any]], None] | None = None,
    at_once: bool = False,
) -> Iterator[str]:
    """The text of each row of a file, as [`texts_of_rows`]; a tsv without a header holds label and text.

    Args:
        at_once: raise at the first fault; otherwise all are reported at the end.
    """
    faults = Faults(at_once)
    rows = read_table(name, reading=reading, faults=faults, columns=[text_column])
    return texts_of_rows(rows, text_column, reading, faults, keep)


def texts_of_rows(
    rows: Iterable[Row], text_column: str, reading: Reading, faults: Faults, keep: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[str]:
    """The text of each row.

    Args:
        keep: called with all columns of a row before its text is yielded.

    Raises:
        UserError: rows without the column, or with a value that is not a string; names file and rows.
    """
    empty = 0
    for name, number, values in rows:
        column = find_column(values, name, text_column)
        if column is None:
            what = no_column(name, values, text_column, "text_column")
            if number == 0:  # and so in every row
                raise UserError(f"{name} has {what}")
            faults.add(name, "row", number, what)
            continue
        text = values[column]
        if not isinstance(text, str):
            faults.add(name, "row", number, f"{text_column!r} is {kind_of(text)}, not text")
        elif not text.strip() and reading.skip_empty:
            empty += 1
        elif not faults.count:  # after a fault, rows are only read for the report
            if keep is not None:
                keep(values)
            yield text
    if empty:
        print_once(f"{empty:,} rows with an empty text were skipped")


def kind_of(value: Any) -> str:
    """The type of a value for error messages; "missing" if it is null."""
    return "missing" if value is None else type(value).__name__


def _parts(chunks: Iterator[str], end_mark: str | None) -> Iterator[tuple[str, bool]]:
    """The text of documents in parts, each with whether the document ends there."""
    if end_mark is None:
        for chunk in chunks:
            yield chunk, False
        yield "", True
        return
    rest, begun = "", False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(end_mark)
        for part in whole:
            yield part + end_mark, True
            begun = False
        known = max(0, len(rest) - len(end_mark) + 1)  # the mark may continue in the next chunk
        if known:
            yield rest[:known], False
            begun, rest = True, rest[known:]
    if begun or rest.strip():  # white space after the last mark is not a document
        yield rest, True


def _cut(parts: Iterator[tuple[str, bool]]) -> Iterator[Piece]:
    """Join the parts of a document and cut them about every PIECE_CHARACTERS, at positions where cutting does not change the tokens.

    These are before a single space between two visible characters, since the pre-tokenization of GPT-2 and its successors joins such a
    space with the following word or keeps it alone; and, for scripts without spaces, after a single newline between two visible
    characters, which is joined with the preceding text or kept alone.

    If LONGEST_PIECE characters contain no such position, the text is cut at the last end of a word, or else at that length; only there,
    tokens may differ from those of the whole text.
    """
    buffer, searched = "", 0
    for part, ends in parts:
        buffer += part
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
        searched = max(0, len(buffer) - 2 - start)  # a cut needs two following characters
        buffer = buffer[start:]
        if ends:
            yield Piece(buffer, end=True)
            buffer, searched = "", 0


def _forced_place(text: str, start: int) -> int:
    limit = start + LONGEST_PIECE
    *_, last = [start, *(found.start() for found in END_OF_WORD.finditer(text, start + PIECE_CHARACTERS, limit))]
    return last if last > start else limit
