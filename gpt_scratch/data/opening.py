"""Opens files by name, folder or glob, decompresses and decodes them, and collects their faults in one report.

Recognized encodings (byte order marks, UTF-16) are reported in one line; other files are refused with the flag that helps.
"""

import argparse
import bz2
import codecs
import glob
import gzip
import lzma
import os
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
ROW_BYTES = 1 << 28  # maximum size of a row, which is in memory several times
LARGEST_RATIO = 200  # maximum compression ratio; that of text is 3 to 10
TEXT_SUFFIXES = {".txt", ".text", ".md", ""}
TABLE_SUFFIXES = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"}
FORMATS = "txt, jsonl, json, csv, tsv or parquet"
MARKS = {  # byte order marks; UTF-32 before UTF-16, since it starts with the same bytes
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
    b"SQLite format 3\x00": "a database of SQLite: export its table as csv",
    b"ARROW1\x00\x00": "an Arrow file: give the directory that `datasets` saved, or parquet",
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
CONTROLS = re.compile("[\x80-\x9f]")  # where cp1252 has quotation marks, dashes and the euro sign
DELIMITER_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}


@dataclass
class Reading:
    """How files are read: flags shared by every script that reads text files."""

    encoding: str | None = field(
        default=None,
        metadata={
            "help": "Encoding of txt, csv, tsv, json and jsonl, e.g. latin-1, cp1252, utf-16. Default: UTF-8, or by byte order mark."
        },
    )
    delimiter: str | None = field(
        default=None,
        metadata={"help": "Delimiter of csv and tsv: one character, tab, semicolon, ... Default: detected and printed."},
    )
    skip_empty: bool = field(default=False, metadata={"help": "Skip rows whose text or label is empty, and print their number."})
    replace_invalid: bool = field(
        default=False,
        metadata={"help": "Replace lone surrogates, which are invalid text, with U+FFFD, and print their number."},
    )

    @classmethod
    def of(cls, flags: Any) -> "Reading":
        """Create from a dataclass or namespace that has these flags among others.

        Raises:
            UserError: an encoding or delimiter that does not exist.
        """
        reading = Reading(flags.encoding, flags.delimiter, flags.skip_empty, flags.replace_invalid)
        if reading.encoding is not None:
            try:
                found = codecs.lookup(reading.encoding)
            except LookupError as error:
                raise UserError(f"--encoding {reading.encoding}: unknown encoding") from error
            if not found._is_text_encoding:  # hex, rot13
                raise UserError(f"--encoding {reading.encoding} is not a text encoding")
        if reading.delimiter is not None:
            reading.delimiter = DELIMITER_NAMES.get(reading.delimiter.lower(), reading.delimiter)
            if len(reading.delimiter) != 1 or reading.delimiter in '"\r\n':
                raise UserError(f"--delimiter {reading.delimiter!r}: it must be one character, or tab, comma, semicolon or pipe")
        return reading

    @staticmethod
    def add_flags(parser: argparse.ArgumentParser) -> None:
        """Add the flags to the parser of a script."""
        for one in fields(Reading):
            settings: dict[str, Any] = {"action": "store_true"} if one.default is False else {}
            parser.add_argument(f"--{one.name}", help=one.metadata["help"], **settings)


_printed: set[str] = set()
_lists: list[list[str]] = []
_muted = False


@contextmanager
def collect_notes() -> Iterator[list[str]]:
    """Context manager that collects all lines of [`print_once`], so that they can be printed again when the result is cached."""
    lines: list[str] = []
    _lists.append(lines)
    try:
        yield lines
    finally:
        _lists.remove(lines)


@contextmanager
def muted_notes() -> Iterator[None]:
    """Context manager in which [`print_once`] prints nothing, because the same files are read again later."""
    global _muted
    before, _muted = _muted, True
    try:
        yield
    finally:
        _muted = before


def print_once(line: str) -> None:
    """Print a note about a file on standard error, only once per process, since files may be read several times."""
    if _muted:
        return
    for lines in _lists:
        if line not in lines:
            lines.append(line)
    if line not in _printed:
        _printed.add(line)
        print(printable(line), file=sys.stderr)


class Faults:
    """Collects the faults in the files of a source and reports them together: the first ten, and their number.

    Args:
        at_once: raise at the first fault, for streams.
    """

    SHOWN = 10

    def __init__(self, at_once: bool = False):
        self.at_once, self.count = at_once, 0
        self._found: dict[tuple[str, str, str], list[Any]] = {}

    def add(self, name: str, kind: str, number: int | str, what: str) -> None:
        """Add a fault of the file `name`; `kind` and `number` are its location, "row" 3 (0 is the first) or "line" 4 (1 is the first)."""
        self.count += 1
        if self.count <= self.SHOWN:
            self._found.setdefault((name, kind, what), []).append(number)
        if self.at_once:
            self.check()

    def check(self) -> None:
        """Report the faults that were collected.

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
            "; ".join(parts) + (f"; {self.count:,} faults in total, the first {self.SHOWN} are shown" if more > 0 else "")
        )


def suffix_of(name: str) -> str:
    """The suffix that determines the format, in lower case, without that of a compression.

    >>> suffix_of("a/b.JSONL.gz"), suffix_of("book.txt"), suffix_of("README")
    ('.jsonl', '.txt', '')
    """
    path = Path(name)
    if path.suffix.lower() in UNPACKERS:
        path = path.with_suffix("")
    return path.suffix.lower()


def check_files(names: Sequence[str], suffixes: set[str] | None = None) -> list[str]:
    """The files for `names`: files, globs, or folders with files of one format. Missing, empty and unknown files are refused.

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
            raise UserError(f"{name}: parquet is already compressed internally: decompress the file")
    return found


def warn_of_shared_files(train: Sequence[str], validation: Sequence[str]) -> None:
    """Print a warning if a file is both trained on and validated on."""
    known = {os.path.realpath(name) for name in check_files(train)}
    if shared := [name for name in check_files(validation) if os.path.realpath(name) in known]:
        print_once(
            f"warning: --train_file and --validation_file both contain {', '.join(shared[:3])}{' ...' if len(shared) > 3 else ''}: what is "
            "measured on the validation text says nothing about new text"
        )


def unknown_format(name: str, formats: str) -> UserError:
    """The error of a file whose suffix is none that is read."""
    suffix = suffix_of(name)
    instead = f"; {INSTEAD[suffix]}" if suffix in INSTEAD else ""
    return UserError(f"{name}: unknown format {suffix!r}{instead}; give {formats}")


def is_glob(name: str) -> bool:
    """Whether a name is a glob pattern."""
    return glob.has_magic(name) and not Path(name).exists()


def _expand(name: str) -> list[str]:
    if is_glob(name):
        files = sorted(path for path in glob.glob(name, recursive=True) if Path(path).is_file())
        if not files:
            raise UserError(f"{name}: no such file, and no file matches it")
        print_once(f"{name}: {len(files):,} files")
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
        raise UserError(f"{name} is a folder without readable files: give {FORMATS}")
    if len(by_kind) > 1:
        kinds = " and ".join(f"{len(files)} {kind.lstrip('.')}" for kind, files in by_kind.items())
        raise UserError(f"{name} is a folder of {kinds} files: select some with a glob, such as '{path / '*.txt'}'")
    kind, files = by_kind.popitem()
    left = (
        f"; not read: {', '.join(Path(other).name for other in others[:5])}{' ...' if len(others) > 5 else ''}" if others else ""
    )
    print_once(f"{name}: {len(files):,} {kind.lstrip('.')} files{left}")
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
    """Read the bytes of a file in chunks of READ_BYTES, decompressed according to its suffix.

    Raises:
        UserError: a damaged archive, or a compression ratio that is too high for text.
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
                    raise UserError(f"{name} decompresses to more than {LARGEST_RATIO} times its size: it cannot be text")
                yield bytes(block)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name} cannot be decompressed: {one_line(innermost(error))}") from error


def read_text(name: str, reading: Reading) -> Iterator[str]:
    """The text of a file, READ_BYTES at a time, without byte order marks at its start or, of joined files, at that of a line.

    Raises:
        UserError: bytes that cannot be decoded; names their position and the flag that helps.
    """
    decoder, position, lines, pending = None, 0, 1, 0
    marks, controls, last = 0, 0, "\n"
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
        if encoding == "iso8859-1":
            controls += len(CONTROLS.findall(text))
        if text:
            last = text[-1]
            yield text
    if controls:
        print_once(
            f"{name}: {controls:,} characters are control characters in latin-1; if they should be quotation marks, dashes or the euro "
            "sign, pass --encoding cp1252"
        )
    if marks:
        print_once(f"{name}: byte order marks at the start of {marks:,} line{'s' * (marks > 1)} were left out")


def _ended(blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield from blocks
    yield b""


def _name(encoding: str) -> str:
    return "UTF-8" if encoding in ("utf-8", "utf-8-sig") else encoding


def _encoding(head: bytes, name: str, reading: Reading) -> str:
    """Detect the encoding of a file from its first bytes and the flags.

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
                f"{name} has the byte order mark of {marked.removesuffix('-sig').upper()}: leave out --encoding {reading.encoding}"
            )
        return marked
    if marked in ("utf-16", "utf-32"):
        print_once(f"{name}: read as {marked.upper()}, according to its byte order mark")
    if marked is not None:
        return marked
    sample = head[:4096]
    zeros = [sample[start::2].count(0) for start in (0, 1)]
    if max(zeros) > max(1, len(sample) // 5) and min(zeros) * 10 < max(zeros):
        order = "le" if zeros[1] > zeros[0] else "be"
        raise UserError(f"{name} looks like UTF-16 without a byte order mark: pass --encoding utf-16-{order}")
    return "utf-8"


def read_lines(name: str, reading: Reading) -> Iterator[str]:
    """Read the lines of a file with their line ends, including single carriage returns (old spreadsheets).

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
    """The key of a value that contains a lone surrogate, which cannot be encoded; `None` if there is none."""
    if isinstance(values, str):
        if values.isascii():  # true for most, and constant time
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
    """`values` with lone surrogates replaced by U+FFFD."""
    if isinstance(values, str):
        return "".join("\ufffd" if "\ud800" <= character <= "\udfff" else character for character in values)
    if isinstance(values, Mapping):
        return {replaced(key): replaced(value) for key, value in values.items()}
    return [replaced(value) for value in values] if isinstance(values, (list, tuple)) else values
