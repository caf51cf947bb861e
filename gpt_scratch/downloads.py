"""Downloads by huggingface_hub with a bound: a Hub may send no more than it says, and no more than the disk has room for.

huggingface_hub compares a file with its size when it has been written, however long that takes. Its client may be replaced
(`set_client_factory`), which counts the bytes of each answer while they come.
"""

import functools
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, set_client_factory

from .errors import UserError, one_line

try:
    import httpx2 as httpx  # of huggingface_hub 2
except ImportError:
    import httpx  # type: ignore[no-redef]

ROOM = 1 << 30  # bytes of disk that a download leaves free
UNCLAIMED = 50 * 2**30  # of an answer that does not say its size, as behind some proxies
ANSWER = 256 * 2**20  # of an answer that is no download: JSON


@functools.cache
def bound_downloads() -> None:
    """From now on, in this process. Calling it again changes nothing."""
    set_client_factory(bounded_client)


def bounded_client() -> Any:
    """huggingface_hub's own client, whose answers are counted, and which sends the token to the Hub alone.

    The Hub may name another host where to confirm a large file.
    """
    try:
        from huggingface_hub.utils._http import default_client_factory  # not public; run with 2.4 on 2026-11-27
    except ImportError:
        print("note: downloads are not bounded with this release of huggingface_hub", file=sys.stderr)
        return httpx.Client(follow_redirects=True, timeout=constants.DEFAULT_REQUEST_TIMEOUT)
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _keep_token, _request_uncompressed],
        "response": [*hooks["response"], _bound],
    }
    return client


def free_bytes() -> int:
    """Of the disk of the cache, or of where it will be made."""
    folder = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _bound(response: Any) -> None:
    """Of an answer whose body is still to come."""
    request = response.request
    if request.method != "GET" or response.status_code not in (200, 206):
        return
    name = f"{request.url.host}{request.url.path}"[-200:]
    length = response.headers.get("content-length", "")
    claimed = int(length) if length.isdecimal() and len(length) < 20 else None
    if _is_answer(request):
        limit = ANSWER
    elif (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise UserError(f"{name}: the Hub packs a file by {one_line(encoding, 20)}, although it was asked not to")
    else:
        free = free_bytes()
        if (claimed or 0) > free - ROOM:
            raise UserError(f"{name} has {claimed:,} bytes, and {free:,} are free on the disk of {constants.HF_HUB_CACHE}")
        limit = min(UNCLAIMED, free - ROOM) if claimed is None else claimed
    response.stream = _Counted(response.stream, limit, name)


def _keep_token(request: Any) -> None:
    hub = urlsplit(constants.ENDPOINT)
    if (request.url.scheme, request.url.netloc.decode()) != (hub.scheme, hub.netloc):
        request.headers.pop("authorization", None)


def _is_answer(request: Any) -> bool:
    """And no file."""
    return request.url.path.startswith("/api/")


def _request_uncompressed(request: Any) -> None:
    """What unpacks to a thousand times its size could not be counted."""
    if request.method == "GET" and not _is_answer(request):
        request.headers["accept-encoding"] = "identity"


class _Counted(httpx.SyncByteStream):
    """The stream of an answer, ended where it has more than `limit` bytes."""

    def __init__(self, stream: Any, limit: int, name: str):
        self.stream, self.left, self.limit, self.name = stream, limit, limit, name

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.stream:
            self.left -= len(piece)
            if self.left < 0:
                raise UserError(f"{self.name}: the Hub sends more than {self.limit:,} bytes")
            yield piece

    def close(self) -> None:
        """As the stream's own."""
        self.stream.close()
