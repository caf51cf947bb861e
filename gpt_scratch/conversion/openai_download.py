"""Downloads OpenAI's GPT-2 checkpoints: seven files per size, from OpenAI's server or a mirror.

A file is downloaded to a `.part` file that is renamed when it is complete. An interrupted download is resumed (HTTP Range), from any of
the servers. Sizes are checked here; the weights are verified by their own checksums when they are read. Source of the list of files:
openai/gpt-2 `download_model.py`.
"""

import http.client
import os
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ..errors import UserError, one_line
from ..watched_http import Deadline
from .tensorflow_bundle import INDEX_BYTES, TensorFlowCheckpoint

SIZES = ("124M", "355M", "774M", "1558M")
# Tried in this order. The second is the mirror of the book "Build a Large Language Model (From Scratch)".
BASE_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
DATA = "model.ckpt.data-00000-of-00001"
# Small files first, so that errors appear before gigabytes are downloaded; the index contains the size of the data.
FILES = (
    "checkpoint",
    "hparams.json",
    "model.ckpt.index",
    "vocab.bpe",
    "encoder.json",
    "model.ckpt.meta",
    DATA,
)
KNOWN_BYTES = {"encoder.json": 1_042_301, "vocab.bpe": 456_318}  # the same for all model sizes
# Maximum sizes of the other files; for the data, more than the 6,230,000,000 of 1558M.
LARGEST_BYTES = {DATA: 7 * 10**9, "model.ckpt.index": INDEX_BYTES, "model.ckpt.meta": 1 << 26}
LARGEST_OTHER = 1 << 22
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0  # for connection and headers, and for each SLOWEST_BYTES of the body
SLOWEST_BYTES = 1 << 16


class TransferError(Exception):
    """A download from one server failed; another server may succeed."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in (urllib.parse.urlsplit(req.full_url).scheme, "https"):
            raise TransferError(f"the server redirects to {one_line(scheme, 20)}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download_openai_checkpoint(size: str, directory: str | os.PathLike, base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Download the seven files of a checkpoint; complete files are kept, partial downloads are resumed.

    Args:
        size: "124M", "355M", "774M" or "1558M" (0.5, 1.4, 3.1 and 6.2 GB).
        directory: target directory, created if it is missing.
        base_urls: servers, in the order in which they are tried; a file is at `BASE_URL/SIZE/FILE`.

    Returns:
        `directory`.

    Raises:
        UserError: an unknown size, a directory that cannot be written, too little disk space, a file of a wrong size, or a file that
            could not be downloaded: names each URL and the reason. Partial downloads are kept for the next attempt.
    """
    if size not in SIZES:
        raise UserError(f"there is no GPT-2 of size {size}: choose one of {', '.join(SIZES)}")
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error.strerror}") from error
    for name in FILES:
        file = directory / name
        known_bytes = data_bytes(directory) if name == DATA else KNOWN_BYTES.get(name)
        if not file.exists():
            fetch([f"{base.rstrip('/')}/{size}/{name}" for base in base_urls], file, known_bytes)
        elif known_bytes is not None and file.stat().st_size != known_bytes:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes instead of {known_bytes:,}: delete it and run again")
    return directory


def data_bytes(directory: Path) -> int:
    """The size of the data file according to its index: the end of the last tensor (497,759,232 for 124M)."""
    tensors = TensorFlowCheckpoint(directory / "model.ckpt.index").tensors
    return max((info.offset + info.size for info in tensors.values()), default=0)


def fetch(urls: Sequence[str], file: Path, known_bytes: int | None) -> None:
    """Download one file from the first of `urls` that succeeds.

    Raises:
        UserError: all failed, or there is too little disk space.
    """
    part = file.with_name(file.name + ".part")
    failures = []
    for url in urls:
        try:
            transfer(url, part, known_bytes)
        except TransferError as error:
            failures.append(f"{url}: {error}")
            if part.exists() and not part.stat().st_size:
                part.unlink()
        else:
            os.replace(part, file)
            return
    fetched = f"; {part.stat().st_size:,} bytes are kept in {part}: run again to resume" if part.exists() else ""
    raise UserError(f"cannot download {file.name}: {'; '.join(failures)}{fetched}")


def transfer(url: str, part: Path, known_bytes: int | None) -> None:
    """Download a file to `part`, resuming after the bytes that it already contains.

    Raises:
        TransferError: the server returns an error, closes the connection, or has a file of another size.
        UserError: the file cannot be written.
    """
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    deadline = Deadline(TIMEOUT_SECONDS)
    try:
        with (
            deadline,
            urllib.request.build_opener(_Redirects, deadline).open(request, timeout=TIMEOUT_SECONDS) as response,
        ):
            deadline.cancel()
            if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
                raise TransferError("the server returned a web page")
            start, total = placement(response, start)
            largest = LARGEST_BYTES.get(part.stem, LARGEST_OTHER)
            if known_bytes is not None and total != known_bytes:
                raise TransferError(f"the file has {total:,} bytes instead of {known_bytes:,}")
            if total > largest:
                raise TransferError(f"the file has {total:,} bytes, more than the limit of {largest:,}")
            receive(response, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing after `start`: the partial download is not from this file
            part.unlink()
            return transfer(url, part, known_bytes)
        raise TransferError(f"HTTP {error.code} {one_line(error.reason, 150)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if deadline.expired or isinstance(reason, TimeoutError):
            raise TransferError(f"no response within {TIMEOUT_SECONDS:g} s") from error
        raise TransferError(one_line(reason)) from error


def placement(response: http.client.HTTPResponse, start: int) -> tuple[int, int]:
    """The offset of the bytes of a response, and the size of the file.

    A server may ignore the requested range and respond with status 200 and the whole file.
    """
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", content_range)
        if not found or int(found[1]) != start:
            raise TransferError(
                f"the server responded with the range {one_line(content_range, 100)!r} to a request for bytes from {start:,} on"
            )
        return start, int(found[2])
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal() or len(length) > 18:
        raise TransferError("the server does not send the size of the file, so it cannot be checked")
    return 0, int(length)


def receive(response: http.client.HTTPResponse, part: Path, start: int, total: int) -> None:
    """Write the body of a response after the first `start` bytes of `part`, with a progress bar.

    Raises:
        TransferError: the body is shorter or longer than `total`, is a web page, or arrives too slowly.
        UserError: the file cannot be written.
    """
    free = shutil.disk_usage(part.parent).free
    if total - start > free:
        raise UserError(
            f"{part.parent} has {free:,} bytes of free space, but {part.stem} needs {total - start:,} more: free some space"
        )
    try:
        file = part.open("ab" if start else "wb")
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from error
    with file, tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        window, received = time.monotonic(), 0
        while chunk := response.read1(CHUNK_BYTES):
            if not file.tell() and chunk.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise TransferError("the server returned a web page")
            if file.tell() + len(chunk) > total:
                file.truncate(start)  # discard the response
                raise TransferError(f"the server sent more than the {total:,} bytes that it declared")
            try:
                file.write(chunk)
            except OSError as error:
                raise UserError(f"cannot write {part}: {error.strerror}") from error
            bar.update(len(chunk))
            received += len(chunk)
            if received >= SLOWEST_BYTES:
                window, received = time.monotonic(), 0
            elif time.monotonic() - window > TIMEOUT_SECONDS:
                raise TransferError(f"the download is too slow: {received:,} bytes in {TIMEOUT_SECONDS:g} s")
        size = file.tell()
    if size != total:
        raise TransferError(f"the connection was closed at byte {size:,} of {total:,}")
