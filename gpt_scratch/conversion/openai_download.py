"""Fetches OpenAI's GPT-2 checkpoints: seven files a size, from OpenAI's server or from a copy of it.

A transfer goes into a `.part` neighbour that takes the file's name when it is whole, so whatever carries its own name is complete, and a
transfer that broke off resumes where it stopped (HTTP Range), at whichever server answers. Sizes are checked here; the contents of
the weights by their own checksums, when they are read. Source of the list: openai/gpt-2 `download_model.py`.
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
# Asked in turn. The second is the copy that the book "Build a Large Language Model (From Scratch)" names.
BASE_URLS = (
    "https://openaipublic.blob.core.windows.net/gpt-2/models",
    "https://f001.backblazeb2.com/file/LLMs-from-scratch/gpt2",
)
DATA = "model.ckpt.data-00000-of-00001"
# Small files first, so that errors show before gigabytes are fetched; and the index gives the size of the data.
FILES = (
    "checkpoint",
    "hparams.json",
    "model.ckpt.index",
    "vocab.bpe",
    "encoder.json",
    "model.ckpt.meta",
    DATA,
)
KNOWN_BYTES = {"encoder.json": 1_042_301, "vocab.bpe": 456_318}  # the same at every size of the model
# At most, where the size is unknown; for the data more than the 6,230,000,000 of 1558M.
LARGEST_BYTES = {DATA: 7 * 10**9, "model.ckpt.index": INDEX_BYTES, "model.ckpt.meta": 1 << 26}
LARGEST_OTHER = 1 << 22
CHUNK_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0  # for a connection and the headers, and for each SLOWEST_BYTES after that
SLOWEST_BYTES = 1 << 16


class TransferError(Exception):
    """One server did not give the whole file; the next may."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme not in (urllib.parse.urlsplit(req.full_url).scheme, "https"):
            raise TransferError(f"the server redirects to {one_line(scheme, 20)}:, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download_openai_checkpoint(size: str, directory: str | os.PathLike, base_urls: Sequence[str] = BASE_URLS) -> Path:
    """Fetch the seven files of a checkpoint; those already there are left alone, those begun are finished.

    Args:
        size: "124M", "355M", "774M" or "1558M" (0.5, 1.4, 3.1 and 6.2 GB).
        directory: where the files go; made if it is missing.
        base_urls: servers to ask in turn; a file is at `BASE_URL/SIZE/FILE`.

    Returns:
        `directory`.

    Raises:
        UserError: an unknown size, a directory that cannot be written, too little space, a file of a wrong size, or a file that no server
            gave: names each URL and what was wrong with it. What was fetched so far stays, for the next attempt.
    """
    if size not in SIZES:
        raise UserError(f"OpenAI published no GPT-2 of size {size}: choose one of {', '.join(SIZES)}")
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
    """The size of the data file, by the index beside it: OpenAI's has nothing behind its last tensor (497,759,232 for 124M)."""
    tensors = TensorFlowCheckpoint(directory / "model.ckpt.index").tensors
    return max((info.offset + info.size for info in tensors.values()), default=0)


def fetch(urls: Sequence[str], file: Path, known_bytes: int | None) -> None:
    """Fetch one file from the first of `urls` that gives it whole.

    Raises:
        UserError: none did, or there is no room for it.
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
    fetched = f"; {part.stat().st_size:,} bytes are kept in {part}, run again to resume" if part.exists() else ""
    raise UserError(f"cannot fetch {file.name}: {'; '.join(failures)}{fetched}")


def transfer(url: str, part: Path, known_bytes: int | None) -> None:
    """Bring `part` to the size that the server states, continuing after what it holds already.

    Raises:
        TransferError: the server refuses, breaks off, or has a file of another size.
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
                raise TransferError("the server answers with a web page")
            start, total = placement(response, start)
            largest = LARGEST_BYTES.get(part.stem, LARGEST_OTHER)
            if known_bytes is not None and total != known_bytes:
                raise TransferError(f"the file has {total:,} bytes instead of {known_bytes:,}")
            if total > largest:
                raise TransferError(f"the file has {total:,} bytes, more than the {largest:,} that it may have")
            receive(response, part, start, total)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing there after `start`: what was begun is not a part of this file
            part.unlink()
            return transfer(url, part, known_bytes)
        raise TransferError(f"HTTP {error.code} {one_line(error.reason, 150)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if deadline.expired or isinstance(reason, TimeoutError):
            raise TransferError(f"nothing came within {TIMEOUT_SECONDS:g} s") from error
        raise TransferError(one_line(reason)) from error


def placement(response: http.client.HTTPResponse, start: int) -> tuple[int, int]:
    """Where the bytes of a response begin, and the size of the whole file.

    A server may ignore the wish for a range and answer 200 with everything.
    """
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        found = re.fullmatch(r"bytes ([0-9]{1,18})-[0-9]+/([0-9]{1,18})", content_range)
        if not found or int(found[1]) != start:
            raise TransferError(
                f"asked for the bytes from {start:,} on, the server answered with the range {one_line(content_range, 100)!r}"
            )
        return start, int(found[2])
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal() or len(length) > 18:
        raise TransferError("the server does not state the size of the file, so that it cannot be checked")
    return 0, int(length)


def receive(response: http.client.HTTPResponse, part: Path, start: int, total: int) -> None:
    """Write the body of a response after the first `start` bytes of `part`, with a progress bar.

    Raises:
        TransferError: the body ended before byte `total`, continues after it, is a web page, or comes too slowly.
        UserError: the file cannot be written.
    """
    free = shutil.disk_usage(part.parent).free
    if total - start > free:
        raise UserError(f"{part.parent} has room for {free:,} bytes, {part.stem} needs {total - start:,} more: make room")
    try:
        file = part.open("ab" if start else "wb")
    except OSError as error:
        raise UserError(f"cannot write {part}: {error.strerror}") from error
    with file, tqdm(desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        window, received = time.monotonic(), 0
        while chunk := response.read1(CHUNK_BYTES):
            if not file.tell() and chunk.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
                raise TransferError("the server answers with a web page")
            if file.tell() + len(chunk) > total:
                file.truncate(start)  # such a response is discarded
                raise TransferError(f"the server sends more than the {total:,} bytes that it promised")
            try:
                file.write(chunk)
            except OSError as error:
                raise UserError(f"cannot write {part}: {error.strerror}") from error
            bar.update(len(chunk))
            received += len(chunk)
            if received >= SLOWEST_BYTES:
                window, received = time.monotonic(), 0
            elif time.monotonic() - window > TIMEOUT_SECONDS:
                raise TransferError(f"the transfer is too slow: {received:,} bytes in {TIMEOUT_SECONDS:g} s")
        size = file.tell()
    if size != total:
        raise TransferError(f"the transfer broke off at byte {size:,} of {total:,}")
