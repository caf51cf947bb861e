"""Size limits for downloads by huggingface_hub: a response may not exceed its declared size or the free disk space.

huggingface_hub checks the size of a file only after it has been written. Its HTTP client can be replaced (`set_client_factory`); the
client here counts the bytes of each response while they arrive.
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

ROOM = 1 << 30  # bytes of disk space that a download leaves free
UNCLAIMED = 50 * 2**30  # maximum size of a response without Content-Length, as from some proxies
ANSWER = 256 * 2**20  # maximum size of a JSON response


@functools.cache
def bound_downloads() -> None:
    """Install the limits in this process. Calling it again has no effect."""
    set_client_factory(bounded_client)


def bounded_client() -> Any:
    """huggingface_hub's default client, with limits on its responses. The token is sent to the Hub only.

    The Hub may redirect the confirmation of a large file to another host.
    """
    try:
        from huggingface_hub.utils._http import default_client_factory  # not public; run with 2.4 on 2026-11-27
    except ImportError:
        print("note: download sizes are not limited with this release of huggingface_hub", file=sys.stderr)
        return httpx.Client(follow_redirects=True, timeout=constants.DEFAULT_REQUEST_TIMEOUT)
    client = default_client_factory()
    hooks = client.event_hooks
    client.event_hooks = {
        "request": [*hooks["request"], _keep_token, _request_uncompressed],
        "response": [*hooks["response"], _bound],
    }
    return client


def free_bytes() -> int:
    """Free space on the disk of the Hub's cache."""
    folder = Path(constants.HF_HUB_CACHE).absolute()
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _bound(response: Any) -> None:
    """Response hook that limits the body, which has not been read yet."""
    request = response.request
    if request.method != "GET" or response.status_code not in (200, 206):
        return
    name = f"{request.url.host}{request.url.path}"[-200:]
    length = response.headers.get("content-length", "")
    claimed = int(length) if length.isdecimal() and len(length) < 20 else None
    if _is_answer(request):
        limit = ANSWER
    elif (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise UserError(f"{name}: the Hub compresses a file with {one_line(encoding, 20)} although identity was requested")
    else:
        free = free_bytes()
        if (claimed or 0) > free - ROOM:
            raise UserError(f"{name} has {claimed:,} bytes, but only {free:,} are free on the disk of {constants.HF_HUB_CACHE}")
        limit = min(UNCLAIMED, free - ROOM) if claimed is None else claimed
    response.stream = _Counted(response.stream, limit, name)


def _keep_token(request: Any) -> None:
    hub = urlsplit(constants.ENDPOINT)
    if (request.url.scheme, request.url.netloc.decode()) != (hub.scheme, hub.netloc):
        request.headers.pop("authorization", None)


def _is_answer(request: Any) -> bool:
    """Whether the response is JSON of the API and not a file."""
    return request.url.path.startswith("/api/")


def _request_uncompressed(request: Any) -> None:
    """Request files uncompressed: decompressed bytes could exceed the limit a thousand times."""
    if request.method == "GET" and not _is_answer(request):
        request.headers["accept-encoding"] = "identity"


class _Counted(httpx.SyncByteStream):
    """The stream of a response; raises after more than `limit` bytes."""

    def __init__(self, stream: Any, limit: int, name: str):
        self.stream, self.left, self.limit, self.name = stream, limit, limit, name

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.stream:
            self.left -= len(piece)
            if self.left < 0:
                raise UserError(f"{self.name}: the Hub sends more than {self.limit:,} bytes")
            yield piece

    def close(self) -> None:
        """Close the wrapped stream."""
        self.stream.close()
