"""Reads the contents of compressed files in an upload: zip (including .pth, .npz and .docx), tar, gzip, bzip2, xz and PDF.

They may be nested up to three levels deep. Everything is read as a stream; a file that unpacks to far more than its size is refused.
"""

import bz2
import gzip
import io
import lzma
import re
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, cast

from ..errors import UserError, one_line

DEPTH = 3
FREE, RATIO = 256 * 2**20, 10  # limits of the total unpacked size of a file: bytes, and a multiple of its size
DIRECTORY = 32 * 2**20  # bytes of a zip file's central directory, which is read at once
MEMBERS = 100_000
PIECE = 2**20
PDF_BYTES = 64 * 2**20  # maximum size of a PDF, which is read at once
DAMAGE = (
    zlib.error, EOFError, zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, OSError, NotImplementedError, RuntimeError,
    ValueError, struct.error, OverflowError, MemoryError,
)  # fmt: skip
PDF_DICTIONARY = 4096  # maximum bytes of the dictionary before a stream
PDF_STREAM = re.compile(rb">>\s{0,100}stream\r?\n")  # the end of its dictionary, and its keyword (ISO 32000-1, 7.3.8)
PDF_FILTER = re.compile(rb"/Filter\s*(?:/(\w+)|\[([^]]{0,200})\])")
# Formats that are not unpacked here. They are reported, so that nobody assumes that they were checked.
SEALED = {
    b"PAR1": "parquet", b"ARROW1": "Arrow", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "Zstandard", b"%PDF": "PDF",
    b"\x04\x22\x4d\x18": "LZ4", b"\xff\x06\x00\x00sNaPpY": "Snappy",
}  # fmt: skip


class Budget:
    """How much a file may still unpack to."""

    def __init__(self, name: str, size: int):
        self.name, self.left = name, FREE + RATIO * size

    def take(self, count: int) -> None:
        """Deduct `count` bytes.

        Raises:
            UserError: the budget is exhausted.
        """
        self.left -= count
        if self.left < 0:
            raise UserError(
                f"{self.name} unpacks to more than {RATIO} times its size and cannot be checked for secrets: "
                "leave it out by --exclude, or unpack it"
            )


def streams(file: BinaryIO, budget: Budget, where: str = "", depth: int = 0) -> Iterator[tuple[str, BinaryIO]]:
    """Yield `file` and everything packed in it, each with its path within (empty for `file` itself). Read each before the next.

    Args:
        file: seekable, at its start.

    Raises:
        UserError: contents that cannot be checked: damaged, encrypted, too deeply nested or too large.
    """
    yield where, file
    file.seek(0)
    kind = _kind(file)
    if kind is None:
        return
    place = f"{budget.name}{where and ': '}{where}"
    if depth == DEPTH:
        raise UserError(f"{place} is packed more than {DEPTH} times and cannot be checked for secrets: leave it out by --exclude")
    try:
        for number, (name, member, plain) in enumerate(_members(kind, file)):
            if number == MEMBERS:
                raise ValueError(f"more than {MEMBERS:,} members")
            inner = f"{where}{where and ' > '}{name}"
            stream = cast(BinaryIO, io.BufferedReader(_Counted(member, budget, place, kind), PIECE))
            if _kind(stream) is not None:
                with tempfile.SpooledTemporaryFile(max_size=8 * PIECE) as copy:
                    while piece := stream.read(PIECE):
                        copy.write(piece)
                    copy.seek(0)
                    yield from streams(cast(BinaryIO, copy), budget, inner, depth + 1)
            elif not plain:  # otherwise it has been read as part of the file
                yield inner, stream
    except UserError:
        raise
    except DAMAGE as error:
        raise _refusal(place, kind, error) from error


def _refusal(place: str, kind: str, error: BaseException) -> UserError:
    return UserError(
        f"{place} is a {kind} file that cannot be unpacked, and so not be checked for secrets "
        f"({one_line(error)}): leave it out by --exclude, or write it again"
    )


class _Counted(io.RawIOBase):
    """A member's content, deducted from the budget. Errors in it appear only here, while it is read."""

    def __init__(self, stream: BinaryIO, budget: Budget, place: str, kind: str):
        self.stream, self.budget, self.place, self.kind = stream, budget, place, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        try:
            piece = self.stream.read(len(buffer))
        except DAMAGE as error:
            raise _refusal(self.place, self.kind, error) from error
        self.budget.take(len(piece))
        buffer[: len(piece)] = piece
        return len(piece)


class _Xz(io.RawIOBase):
    """Like `lzma.open`, but with a limit on the memory that a header may request."""

    def __init__(self, file: BinaryIO):
        self.file, self.decoder = file, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 * 2**20)

    def read(self, count: int = -1) -> bytes:
        while True:
            data = self.decoder.unused_data if self.decoder.eof else self.file.read(PIECE) if self.decoder.needs_input else b""
            if self.decoder.eof:
                data = (data or self.file.read(PIECE)).lstrip(b"\0")  # padding between streams
                if not data:
                    return b""
                self.decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 * 2**20)
            elif not data and self.decoder.needs_input:
                raise EOFError("it is truncated")
            if piece := self.decoder.decompress(data, count):
                return piece


class _Inflated(io.RawIOBase):
    """Inflates the deflate stream that begins at `start`; the stream marks its own end."""

    def __init__(self, data: bytes, start: int):
        self.data, self.place, self.decoder = data, start, zlib.decompressobj()

    def read(self, count: int = -1) -> bytes:
        while not self.decoder.eof:
            piece = self.decoder.unconsumed_tail or self.data[self.place : self.place + PIECE]
            if not self.decoder.unconsumed_tail:
                self.place += len(piece)
                if not piece:
                    raise EOFError("it is truncated")
            if found := self.decoder.decompress(piece, max(count, 1)):
                return found
        return b""


def _pdf_streams(data: bytes) -> Iterator[tuple[list[bytes], int]]:
    """The filters and the start of each stream in a PDF."""
    for found in PDF_STREAM.finditer(data):
        before = data[max(0, found.start() - PDF_DICTIONARY) : found.start()]
        named = PDF_FILTER.search(before, before.rfind(b"obj"))
        yield re.findall(rb"\w+", named[1] or named[2] or b"") if named else [], found.end()


def pdf_is_readable(file: BinaryIO) -> bool:
    """Whether all streams of a PDF are plain or deflated, as matplotlib writes them."""
    file.seek(0)
    data = file.read(PDF_BYTES + 1)
    file.seek(0)
    plain = len(data) <= PDF_BYTES and b"/Encrypt" not in data
    filters = [named for named, _ in islice(_pdf_streams(data), MEMBERS + 1)] if plain else []
    return plain and len(filters) <= MEMBERS and all(named in ([], [b"FlateDecode"]) for named in filters)


def _kind(stream: BinaryIO) -> str | None:
    """The format of the data at the current position, which does not change."""
    if isinstance(stream, io.BufferedReader) and not stream.seekable():
        head = stream.peek(512)[:512]
        if head.startswith(b"%PDF"):
            return "PDF"  # tentative: checked again once it can be read twice
    else:
        head = stream.read(512)
        stream.seek(0)
        if head.startswith(b"%PDF") and pdf_is_readable(stream):
            return "PDF"
        if b"PK\5\6" in _tail(stream) and zipfile.is_zipfile(stream):  # also if something precedes it
            stream.seek(0)
            return "zip"
        stream.seek(0)
    if head[257:262] == b"ustar":
        return "tar"
    magic = {b"PK\3\4": "zip", b"PK\5\6": "zip", b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz"}
    return next((kind for start, kind in magic.items() if head.startswith(start)), None)


def _tail(stream: BinaryIO) -> bytes:
    end = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, end - 65_557))  # zip's end record and the longest comment after it
    return stream.read()


def _members(kind: str, file: BinaryIO) -> Iterator[tuple[str, BinaryIO, bool]]:
    """Name, content, and whether it is stored uncompressed."""
    if kind == "zip":
        _check_directory(_tail(file), file)
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    with archive.open(entry) as member:
                        yield entry.filename, cast(BinaryIO, member), entry.compress_type == zipfile.ZIP_STORED
    elif kind == "tar":
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for item in tar:
                tar.members = []  # type: ignore[attr-defined]  # otherwise tarfile keeps every member in memory
                content = tar.extractfile(item) if item.isreg() else None
                if content is not None:
                    yield item.name, cast(BinaryIO, content), True
    elif kind == "PDF":
        for number, (filters, start) in enumerate(_pdf_streams(data := file.read())):
            if filters:
                yield f"stream {number}", cast(BinaryIO, _Inflated(data, start)), False
    elif kind == "xz":
        yield "unpacked", cast(BinaryIO, _Xz(file)), False
    else:
        with gzip.GzipFile(fileobj=file, mode="rb") if kind == "gzip" else bz2.BZ2File(file) as unpacked:
            yield "unpacked", cast(BinaryIO, unpacked), False


def _check_directory(tail: bytes, file: BinaryIO) -> None:
    """Refuse a central directory that would exhaust memory, before `zipfile` reads it (PKWARE's appnote.txt, 4.3.14 to 4.3.16)."""
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("its list of members is missing")
    size = int.from_bytes(tail[end + 12 : end + 16], "little")
    if end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":  # zip64
        file.seek(int.from_bytes(tail[end - 12 : end - 4], "little"))
        record = file.read(56)
        if record[:4] != b"PK\6\6":
            raise zipfile.BadZipFile("its list of members is missing")
        size = int.from_bytes(record[40:48], "little")
    if size > DIRECTORY:
        raise zipfile.BadZipFile(f"its list of members takes {size:,} bytes")
    file.seek(0)


def sealed(file: BinaryIO) -> str | None:
    """The name of the file's format if it is a packed one that is not read here."""
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"%PDF") and pdf_is_readable(file):
        return None
    return next((name for start, name in SEALED.items() if head.startswith(start)), None)
