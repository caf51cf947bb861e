"""Opening files: found by name, folder or glob, decompressed, decoded, and one report of everything that is wrong in them.

What can be recognized is read and reported in one line (byte order marks, UTF-16); what cannot be is refused with the flag that helps.
"""

import argparse
import bz2
import codecs
import glob
import gzip
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, Any

import pyarrow

from ..errors import UserError, innermost, one_line, printable

READ_BYTES = 1 << 20
ROW_BYTES = 1 << 28  # of a row at most: it is held in memory, several times over
LARGEST_RATIO = 200  # of unpacked to packed bytes; text has 3 to 10
TEXT_SUFFIXES = {".txt", ".text", ".md", ""}
TABLE_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
FORMATS = "txt, jsonl, json, csv, tsv or parquet"
MARKS = {  # byte order marks; UTF-32's begins as UTF-16's does
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# Files that are no text, by their first bytes: read with --encoding latin-1 they would be characters without sense.
BINARY = {
    b"PK\x03\x04": "a zip archive, as of Excel and Word: export it as csv or text, or unpack it",
    b"\xd0\xcf\x11\xe0": "a document of an old Office: export it as csv or text",
    b"%PDF-": "a PDF: export its text",
    b"PAR1": "a parquet file: give it the suffix .parquet",
    b"\x1f\x8b": "compressed by gzip: add .gz to its name",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: add .zst to its name",
    b"SQLite format 3": "a database of SQLite: export its table as csv",
    b"ARROW1": "an Arrow file: give the directory that `datasets` saved, or parquet",
    b"version https://git-lfs.github.com/spec/": "a pointer of Git LFS, not the file itself: `git lfs pull` fetches it",
}
# What to do with a file of a known other format.
INSTEAD = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "export the sheet as csv, encoded in UTF-8"),
    **dict.fromkeys((".docx", ".doc", ".odt", ".pdf", ".rtf", ".epub"), "export it as plain text"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), "unpack it"),
    **dict.fromkeys((".arrow", ".feather"), "give the directory that `datasets` saved, or parquet"),
    **dict.fromkeys((".jl", ".jsonlines"), "rename it to .jsonl"),
}
MARK_IN_TEXT = re.compile("(?<=\n)\ufeff+")
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


@dataclass
class Reading:
    """How files are read: the flags that every script with files of text has."""

    encoding: str | None = field(
        default=None,
        metadata={
            "help": "Encoding of txt, csv, tsv, json and jsonl, e.g. latin-1, cp1252, utf-16. Default: UTF-8, or what a mark says."
        },
    )
    delimiter: str | None = field(
        default=None,
        metadata={
            "help": "What separates the columns of csv and tsv: one character, tab, semicolon, ... Default: recognized, and said."
        },
    )
    skip_empty: bool = field(
        default=False, metadata={"help": "Leave out rows whose text or label is empty; their number is printed."}
    )
    replace_invalid: bool = field(
        default=False,
        metadata={"help": "Replace halves of surrogate pairs, which are no text, by U+FFFD; their number is printed."},
    )

    @classmethod
    def of(cls, flags: Any) -> "Reading":
        """From a dataclass or namespace that holds these flags among others.

        Raises:
            UserError: an encoding or delimiter that does not exist.
        """
        reading = Reading(flags.encoding, flags.delimiter, flags.skip_empty, flags.replace_invalid)
        if reading.encoding is not None:
            try:
                found = codecs.lookup(reading.encoding)
            except LookupError as error:
                raise UserError(f"--encoding {reading.encoding}: Python knows no such encoding") from error
            if not found._is_text_encoding:  # hex, rot13
                raise UserError(f"--encoding {reading.encoding} is none of text")
        if reading.delimiter is not None:
            reading.delimiter = DELIMITER_NAMES.get(reading.delimiter.lower(), reading.delimiter)
            if len(reading.delimiter) != 1 or reading.delimiter in '"\r\n':
                raise UserError(f"--delimiter {reading.delimiter!r}: it must be one character, or tab, comma, semicolon or pipe")
        return reading

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser) -> None:
        """The flags, for a script that uses argparse."""
        for one in fields(Reading):
            settings: dict[str, Any] = {"action": "store_true"} if one.default is False else {}
            parser.add_argument(f"--{one.name}", help=one.metadata["help"], **settings)


_said: set[str] = set()
_lists: list[list[str]] = []
_silent = False


@contextmanager
def listing_what_is_said() -> Iterator[list[str]]:
    """A list of all lines of [`say`] within the block, to be printed again where its result is read from a cache."""
    lines: list[str] = []
    _lists.append(lines)
    try:
        yield lines
    finally:
        _lists.remove(lines)


@contextmanager
def saying_nothing() -> Iterator[None]:
    """Within the block [`say`] prints nothing, and forgets it: what is read there is read again."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def say(line: str) -> None:
    """Print a line about a file on standard error, once in a process: files are read several times."""
    if _silent:
        return
    for lines in _lists:
        if line not in lines:
            lines.append(line)
    if line not in _said:
        _said.add(line)
        print(printable(line), file=sys.stderr)


class Faults:
    """What is wrong in the files of a source, gathered and reported at once: the first ten places, and how many.

    Args:
        at_once: raise at the first one, for streams that have no end to wait for.
    """

    SHOWN = 10

    def __init__(self, at_once: bool = False):
        self.at_once, self.count = at_once, 0
        self._found: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, name: str, kind: str, number: int | str, what: str) -> None:
        """Note a fault of the file `name`: `kind` and `number` are its place, "row" 3 (0 is the first) or "line" 4 (1 is the first)."""
        self.count += 1
        if self.count <= self.SHOWN:
            self._found.setdefault((name, kind, what), []).append(number)
        if self.at_once:
            self.check()

    def check(self) -> None:
        """
        Raises:
            UserError: faults were found.
        """
        if not self.count:
            return
        names = {name for name, _, _ in self._found}
        parts = []
        for (name, kind, what), numbers in self._found.items():
            place = f"{kind}{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
            parts.append(f"{name} {place}: {what}")
        if self.count > 1 and len(names) == 1:
            name = names.pop()
            parts = [part.removeprefix(f"{name} ") for part in parts]
            parts[0] = f"{name}: {parts[0]}"
        more = self.count - self.SHOWN
        raise UserError(
            "; ".join(parts) + (f"; {self.count:,} faults in all, of which the first {self.SHOWN} are named" if more > 0 else "")
        )


def suffix_of(name: str) -> str:
    """The suffix that tells the format, in lower case, without that of a compression.

    >>> suffix_of("a/b.JSONL.gz"), suffix_of("book.txt"), suffix_of("README")
    ('.jsonl', '.txt', '')
    """
    path = Path(name)
    if path.suffix.lower() in UNPACKERS:
        path = path.with_suffix("")
    return path.suffix.lower()


def check_files(names: Sequence[str], suffixes: set[str] | None = None) -> list[str]:
    """The files that `names` stand for: a file, a glob, or a folder of files of one kind. Missing, empty and unknown ones are refused.

    Raises:
        UserError: names the file.
    """
    found = [file for name in names for file in _expand(name)]
    for name in found:
        path = Path(name)
        if not path.is_file():
            raise UserError(f"{name}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{name} is empty")
        if suffix_of(name) not in (suffixes or TEXT_SUFFIXES | TABLE_SUFFIXES):
            raise unknown_format(name, FORMATS)
        if suffix_of(name) == ".parquet" != path.suffix.lower():
            raise UserError(f"{name}: parquet is compressed inside already: unpack it")
    return found


def unknown_format(name: str, formats: str) -> UserError:
    """The error of a file whose suffix is none that is read."""
    suffix = suffix_of(name)
    instead = f"; {INSTEAD[suffix]}" if suffix in INSTEAD else ""
    return UserError(f"{name}: unknown format {suffix!r}{instead}; give {formats}")


def is_glob(name: str) -> bool:
    """Whether a name stands for all files that match it."""
    return glob.has_magic(name) and not Path(name).exists()


def _expand(name: str) -> list[str]:
    if is_glob(name):
        files = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
        if not files:
            raise UserError(f"{name}: no such file, and no file matches it")
        say(f"{name}: {len(files):,} files")
        return files
    path = Path(name)
    if not path.is_dir():
        return [name]
    visible = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    by_kind: dict[str, list[str]] = {}
    for file in visible:
        suffix = suffix_of(str(file))
        kind = "txt" if suffix in TEXT_SUFFIXES - {""} else suffix if suffix in TABLE_SUFFIXES else "other"
        by_kind.setdefault(kind, []).append(str(file))
    others = by_kind.pop("other", [])
    if not by_kind:
        raise UserError(f"{name} is a folder without files to read: give {FORMATS}")
    if len(by_kind) > 1:
        kinds = " and ".join(f"{len(files)} {kind.lstrip('.')}" for kind, files in by_kind.items())
        raise UserError(f"{name} is a folder of {kinds} files: say which by a glob, such as '{path / '*.txt'}'")
    kind, files = by_kind.popitem()
    left = (
        f"; not read: {', '.join(Path(other).name for other in others[:5])}{' ...' if len(others) > 5 else ''}" if others else ""
    )
    say(f"{name}: {len(files):,} {kind.lstrip('.')} files{left}")
    return files


def _open_zst(name: str) -> IO[bytes]:
    return pyarrow.input_stream(name, compression="zstd", buffer_size=None)


UNPACKERS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}


def read_blocks(name: str) -> Iterator[bytes]:
    """The bytes of a file, unpacked where its suffix is that of a compression, READ_BYTES at a time.

    Raises:
        UserError: a damaged archive, or one that unpacks to more than any text does.
    """
    unpack = UNPACKERS.get(Path(name).suffix.lower())
    if unpack is None:
        with open(name, "rb") as file:
            while block := file.read(READ_BYTES):
                yield block
        return
    allowed = max(ROW_BYTES, LARGEST_RATIO * Path(name).stat().st_size)
    try:
        with unpack(name) as file:
            while block := file.read(READ_BYTES):
                allowed -= len(block)
                if allowed < 0:
                    raise UserError(f"{name} unpacks to more than {LARGEST_RATIO} times its size: no text does")
                yield bytes(block)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} cannot be unpacked: {one_line(innermost(error))}") from error


def read_text(name: str, reading: Reading) -> Iterator[str]:
    """The text of a file, READ_BYTES at a time, without byte order marks at its start or, of joined files, at that of a line.

    Raises:
        UserError: bytes that are not of the encoding; names their place and the flag that helps.
    """
    decoder, position, lines, pending = None, 0, 1, 0
    marks, last = 0, "\n"
    for block in _ended(read_blocks(name)):
        if decoder is None:
            encoding = _encoding(block, name, reading)
            decoder = codecs.getincrementaldecoder(encoding)()
        else:
            pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines + error.object[: error.start].count(b"\n")
            if re.match(rb"\xed[\xa0-\xbf]", error.object[error.start :]):
                raise UserError(
                    f"{name}: byte {position - pending + error.start} begins half of a surrogate pair, which is no text (line {line}): "
                    "write the file again, each character in one piece"
                ) from error
            raise UserError(
                f"{name}: byte {position - pending + error.start} is not {_name(encoding)} ({error.reason}, line {line}): give its "
                "--encoding, such as cp1252 (Windows) or latin-1, or convert the file to UTF-8"
            ) from error
        position += len(block)
        lines += text.count("\n")
        if "\ufeff" in text:
            text, found = MARK_IN_TEXT.subn("", last + text)
            text, marks = text[1:], marks + found
        if text:
            last = text[-1]
            yield text
    if marks:
        say(f"{name}: byte order marks at the start of {marks:,} line{'s' * (marks > 1)} were left out")


def _ended(blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield from blocks
    yield b""


def _name(encoding: str) -> str:
    return "UTF-8" if encoding in ("utf-8", "utf-8-sig") else encoding


def _encoding(head: bytes, name: str, reading: Reading) -> str:
    """The encoding of a file by its first bytes and the flags.

    Raises:
        UserError: it is no text, begins with the mark of another encoding than is given, or looks like UTF-16 without a mark.
    """
    for mark, what in BINARY.items():
        if head.startswith(mark):
            raise UserError(f"{name} is no text but {what}")
    marked = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), None)
    if reading.encoding is not None:
        given = codecs.lookup(reading.encoding).name
        family = given.split("-sig")[0].removesuffix("-le").removesuffix("-be")
        if marked is None:
            return given
        if marked.removesuffix("-sig") != family:
            raise UserError(
                f"{name} begins with the mark of {marked.removesuffix('-sig').upper()}: leave out --encoding {reading.encoding}"
            )
        return marked
    if marked in ("utf-16", "utf-32"):
        say(f"{name}: read as {marked.upper()}, as its byte order mark says")
    if marked is not None:
        return marked
    sample = head[:4096]
    zeros = [sample[start::2].count(0) for start in (0, 1)]
    if max(zeros) > max(1, len(sample) // 5) and min(zeros) * 10 < max(zeros):
        order = "le" if zeros[1] > zeros[0] else "be"
        raise UserError(f"{name} looks like UTF-16 without a byte order mark: pass --encoding utf-16-{order}")
    return "utf-8"


def read_lines(name: str, reading: Reading) -> Iterator[str]:
    """The lines of a file with their ends. A file of carriage returns alone, as of old spreadsheets, has lines, too.

    Raises:
        UserError: as [`read_text`]; a line beyond ROW_BYTES.
    """
    rest: list[str] = []
    length, number, end = 0, 1, ""
    for text in read_text(name, reading):
        if not end and text:
            end = "\n" if "\n" in text or "\r" not in text[:-1] else "\r"
        *whole, last = text.split(end) if end else [text]
        for line in whole:
            yield "".join([*rest, line, end])
            rest, length, number = [], 0, number + 1
        rest.append(last)
        length += len(last)
        if length >= ROW_BYTES:
            raise UserError(
                f"{name} line {number} is longer than {ROW_BYTES:,}: give long documents as txt files, or in several rows"
            )
    if any(rest):
        yield "".join(rest)


def invalid_place(values: Any, place: str = "") -> str | None:
    """The key under which a value holds half of a surrogate pair, which no encoding can express; None where all is text."""
    if isinstance(values, str):
        if values.isascii():  # most are, and it is known of a string without a look at its characters
            return None
        try:
            values.encode("utf-8")
        except UnicodeEncodeError:
            return place
        return None
    if isinstance(values, Mapping):
        for key, value in values.items():
            found = invalid_place(str(key), place or "a key") or invalid_place(value, place or str(key))
            if found is not None:
                return found
    elif isinstance(values, (list, tuple)):
        for value in values:
            if (found := invalid_place(value, place)) is not None:
                return found
    return None


def replaced(values: Any) -> Any:
    """`values` with U+FFFD for each half of a surrogate pair."""
    if isinstance(values, str):
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in values)
    if isinstance(values, Mapping):
        return {replaced(key): replaced(value) for key, value in values.items()}
    return [replaced(value) for value in values] if isinstance(values, (list, tuple)) else values
