"""Scans the files of an upload for secrets: text and binary files, compressed and encoded contents, and file names.

Files are read in overlapping windows, so that a checkpoint of any size takes the memory of one window. In binary data only printable
runs are searched; random weights contain none that a rule takes for a secret. A finding names its place, never its value.
"""

import base64
import io
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .contents import Contents, shown
from .secret_rules import KINDS, PATH, Match, Rules
from .unpacking import Budget, sealed, streams

WINDOW, OVERLAP = 4 * 2**20, 2**16  # bytes; a private key of 16,384 bits takes 13 kB, and 17 kB in base64
CONTEXT = 1024  # bytes at the start of a window that the previous one has covered: a rule must see what precedes a match
RUN = 10  # printable bytes in binary data that count as text
LAYERS = 4  # maximum depth of nested encodings
MOST = 20  # findings shown per file
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "vocab.bpe", "encoder.json", "added_tokens.json")

PRINTABLE = bytes(code in (9, 10, 13) or 32 <= code < 127 for code in range(256))  # 1 for a byte of text
LETTERS = bytes(code in b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_" for code in range(256))  # of base64
UTF16 = re.compile(rb"\x00(?:[\t\n\r\x20-\x7e]\x00){%d,}" % RUN)
UTF32 = re.compile(rb"\x00\x00\x00(?:[\t\n\r\x20-\x7e]\x00\x00\x00){%d,}" % RUN)
ESCAPE = re.compile(rb"\\(?:u00([0-7][0-9A-Fa-f])|x([0-7][0-9A-Fa-f])|([/\"'\\nrt]))")
SIMPLE = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
REST = re.compile(rb"\r?\n([A-Za-z0-9+/_-]{1,100})(?:=|\s|\Z)")  # the last line of wrapped base64

WHERE = "in texts, binary files, UTF-16, JSON escapes, base64, file names, and inside zip, tar, gzip, bzip2, xz and PDF"


@dataclass(frozen=True)
class Finding:
    """Something that should not be published. `place` is a line of a text file, a byte of another file, or a member of an archive."""

    file: str
    place: str
    kind: str

    @property
    def is_path(self) -> bool:
        """Whether it is a path of a machine, which may be harmless, rather than a secret."""
        return self.kind == PATH

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind}"


@dataclass(frozen=True)
class Scan:
    """Findings in an upload, names of files with contents packed in an unsupported format, and printable file names."""

    findings: list[Finding]
    sealed: dict[str, str]
    names: dict[str, str]

    @staticmethod
    def looks_for() -> str:
        """What is searched for and where, as shown in messages."""
        return f"{', '.join(KINDS[:-1])}, and {KINDS[-1]}; {WHERE}"


def find_secrets(contents: Contents) -> Scan:
    """Search every file of an upload, and all file names.

    Paths in a vocabulary file are ignored, since a vocabulary may contain any string.

    Raises:
        UserError: a file cannot be checked: it is damaged, encrypted, or unpacks to far more than its size.
    """
    rules = Rules(contents.folder)
    names = {name: _masked(name, rules) for name in (*contents.files, *contents.left_out)}
    findings, unread = [], {}
    for name in contents.files:
        if names[name] != shown(name):
            findings.append(Finding(names[name], "in its name", "a secret or a path of a machine"))
        paths = name.rsplit("/", 1)[-1] not in VOCABULARIES
        with (contents.folder / name).open("rb") as file:
            if kind := sealed(file):
                unread[names[name]] = kind
            found = _scan_file(file, Budget(names[name], contents.size(name)), rules, paths)
            findings += [Finding(names[name], place, kind) for place, kind in found]
    return Scan(findings, unread, names)


def _masked(name: str, rules: Rules) -> str:
    """A name that is safe to print: on one line, with secrets masked."""
    text = name.encode(errors="surrogateescape")
    for match in sorted(rules.search(text), key=lambda match: match.start, reverse=True):
        text = text[: match.start] + b"***" + text[match.end :]
    return shown(text.decode(errors="surrogateescape"))


def _scan_file(file: BinaryIO, budget: Budget, rules: Rules, paths: bool) -> list[tuple[str, str]]:
    """Places and kinds of findings, in order, without duplicates."""
    found: dict[tuple[str, str], None] = {}
    for where, stream in streams(file, budget):
        for place, kind in _scan_stream(stream, rules, paths):
            found[f"in {_masked(where, rules)}, {place}" if where else place, kind] = None
            if len(found) == MOST:
                return [*found, ("and so on", "there may be more")]
    return list(found)


def _scan_stream(stream: BinaryIO, rules: Rules, paths: bool) -> Iterator[tuple[str, str]]:
    start, lines, window, is_text = 0, 0, b"", None
    while piece := stream.read(WINDOW):
        kept = window[-OVERLAP:]
        start += len(window) - len(kept)
        lines += window[: len(window) - len(kept)].count(b"\n")
        window = kept + piece
        if is_text is None:
            is_text = _is_text(window)
        for match in _search(window, rules, paths, is_text):
            if start == 0 or match.start >= CONTEXT:
                line = lines + window[: match.start].count(b"\n") + 1
                yield f"line {line:,}" if is_text else f"byte {start + match.start:,}", match.kind


def _is_text(window: bytes) -> bool:
    try:
        window[: -4 if len(window) >= WINDOW else None].decode()
    except UnicodeDecodeError as error:
        return len(window) - error.start < 8 and b"\0" not in window
    return b"\0" not in window


def _search(data: bytes, rules: Rules, paths: bool, is_text: bool, layer: int = 0) -> Iterator[Match]:
    """Matches in `data` and in contents encoded in it, by their position in `data`."""
    text, places, origins = (data, [0], [0]) if is_text else _printable_runs(data)

    def origin(place: int) -> int:
        index = bisect_right(places, place) - 1
        return origins[index] + place - places[index]

    for match in rules.search(text, paths):
        yield Match(origin(match.start), origin(match.end), match.kind)
    if layer == LAYERS:
        return
    for start, decoded, marks in _decoded(text):
        for match in _search(decoded, rules, paths, _is_text(decoded), layer + 1):
            yield Match(origin(start + marks(match.start)), origin(start + marks(match.end)), match.kind)
    for width, wide in ((2, UTF16), (4, UTF32)):
        for found in wide.finditer(data) if b"\0" in data else ():
            first = max(0, found.start() - 1)  # in little-endian order the first letter precedes its zeros
            narrow = data[first : found.end() + 1].replace(b"\0", b"")
            for match in _search(narrow, rules, paths, True, layer + 1):
                yield Match(first + width * match.start, first + width * match.end, match.kind)


def _runs(data: bytes, alphabet: bytes, least: int) -> list[tuple[int, int]]:
    """Start and end of each run of at least `least` (8 to 16) bytes marked 1 in `alphabet`."""
    marks = np.frombuffer(data.translate(alphabet), np.uint8)
    for shift in (
        1,
        2,
        4,
        least - 8,
    ):  # after each step, a mark says that the next 2, 4, 8, `least` bytes are in the alphabet
        if len(marks) <= shift:
            return []
        marks = marks[: len(marks) - shift] & marks[shift:]
    places = np.flatnonzero(marks)
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) > 1)
    starts = places[np.concatenate([[0], breaks + 1])]
    ends = places[np.concatenate([breaks, [len(places) - 1]])] + least
    return list(zip(starts.tolist(), ends.tolist()))


def _printable_runs(data: bytes) -> tuple[bytes, list[int], list[int]]:
    """The runs of printable bytes in binary data, one per line, and the position of each in this text and in `data`.

    Each occurs three times: whole, and without its first one and two bytes. A string is preceded by its type and length, which may be
    printable as well and would then hide it from rules that match whole words.
    """
    parts, places, origins, length = [], [0], [0], 0
    for start, end in _runs(data, PRINTABLE, RUN):
        for shift in range(3):
            places.append(length)
            origins.append(start + shift)
            parts.append(data[start + shift : end])
            length += end - start - shift + 1
    return b"\n".join(parts), places, origins


def _base64_runs(text: bytes) -> Iterator[tuple[int, bytes]]:
    """Start and letters of each run of base64; consecutive lines of at least 48 letters are joined."""
    start, letters, last = 0, bytearray(), -1
    for first, end in _runs(text, LETTERS, 16):
        if letters and not (len(letters) >= 48 and text[last:first] in (b"\n", b"\r\n")):
            yield start, bytes(letters)
            letters = bytearray()
        if not letters:
            start = first
        letters += text[first:end]
        last = end
        if end - first >= 48 and (rest := REST.match(text, end)) and len(rest[1]) < 16:
            letters += rest[1]
    if letters:
        yield start, bytes(letters)


def _decoded(text: bytes):  # type: ignore[no-untyped-def]
    """Decoded contents of a text: (start, decoded bytes, function from a position in them to an offset from `start`)."""
    if ESCAPE.search(text):
        yield _unescaped(text)
    for start, run in _base64_runs(text):
        if len(run) < 24:
            continue
        letters = run.translate(bytes.maketrans(b"-_", b"+/"))
        # A window may begin in the middle of a group of four letters.
        for phase in range(4 if start == 0 and len(run) > 1000 else 1):
            part = letters[phase:]
            decoded = base64.b64decode(part + b"A" * (-len(part) % 4))
            if _worth_reading(decoded):
                yield start, decoded, lambda place: 0
            for unpacked in _unpacked(decoded):
                yield start, unpacked, lambda place: 0


def _worth_reading(decoded: bytes) -> bool:
    """Whether decoded bytes look like text or an archive; words of prose are valid base64 too, and decode to noise."""
    return len(decoded) > 256 or bool(re.search(rb"[\x20-\x7e]{%d}|(?:[\x20-\x7e]\x00){6}" % RUN, decoded))


def _unpacked(decoded: bytes) -> Iterator[bytes]:
    """Unpacked contents of decoded base64; what cannot be unpacked is no archive."""
    if decoded[:3] == b"\x1f\x8b\x08" or decoded[:4] == b"PK\3\4":
        budget = Budget("", len(decoded))
        try:
            for where, stream in streams(io.BytesIO(decoded), budget):
                if where:
                    yield stream.read(WINDOW)
        except ValueError:
            return


def _unescaped(text: bytes):  # type: ignore[no-untyped-def]
    parts, places, origins, last, length = [], [0], [0], 0, 0
    for found in ESCAPE.finditer(text):
        code = found[1] or found[2]
        letter = bytes.fromhex(code.decode()) if code else SIMPLE.get(found[3], found[3])
        parts += [text[last : found.start()], letter]
        length += found.start() - last + 1
        last = found.end()
        places.append(length)
        origins.append(last)
    parts.append(text[last:])

    def origin(place: int) -> int:
        index = bisect_right(places, place) - 1
        return origins[index] + place - places[index]

    return 0, b"".join(parts), origin
