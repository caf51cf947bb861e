"""ASGI middleware in front of Gradio's app that admits only short requests to the routes that the page needs, and no other origins.

Gradio's app also accepts uploads, serves files, fetches URLs on behalf of clients, describes and serves an API, and more. The page uses
none of that; such requests get 404.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from typing import Any
from urllib.parse import parse_qs

from ..inference.guard import host_name, netloc

MAX_BODY_BYTES = 256 * 1024  # 20,000 characters, each escaped as up to twelve bytes (`\\ud83d\\ude42`), and some more
BODY_SECONDS = 10.0  # time for a client to send a request body
MAX_VALUES = 16  # values in one request
MAX_SESSION_CHARACTERS = 100
MAX_REQUESTS = 128  # open at once; each visitor holds up to three
MAX_CONNECTIONS = 512
SEND_SECONDS = 10.0  # time for a client to send its headers, and to read each part of a response
UNREAD_SECONDS = 20.0  # time that messages to a session are kept while nobody reads them

READ = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/pwa_icon(/\d{1,4})?|/(static|assets|svelte)/[^\\]*"
    r"|/gradio_api/(startup-events|app_id|theme\.css|queue/data|heartbeat/[\w.-]{1,100})"
)
WRITE = re.compile(r"/gradio_api/(queue/join|cancel|reset/?)")


class PageGuard:
    """The middleware.

    Args:
        app: Gradio's app.
        hosts: names allowed in the Host header, without the port; None allows any name and any origin.
        functions: ids of the page's functions that a request may call.
        forget: cancels a session's requests and drops its messages.
    """

    def __init__(
        self,
        app: Callable,
        hosts: Collection[str] | None,
        functions: Collection[int],
        forget: Callable[[str], Coroutine[Any, Any, None]] | None = None,
    ):
        self.app, self.hosts, self.functions, self.forget, self.open = app, hosts, functions, forget, 0
        self.readers: Counter[str] = Counter()  # open streams per session
        self.unread: dict[str, asyncio.Task] = {}

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # Gradio's page uses no web sockets
            return await send({"type": "websocket.close", "code": 1008})
        if self.open >= MAX_REQUESTS:
            return await _refuse(send, 503, "too many requests are open; try again later")
        self.open += 1
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                return await _refuse(send, *refusal)
            if scope["method"] == "POST":
                body = await _read(receive)
                refusal = body if isinstance(body, tuple) else self._malformed(scope["path"], body)
                if refusal is not None:
                    return await _refuse(send, *refusal)
                receive = _replay(body, receive)  # type: ignore[arg-type]  # not refused, so it is bytes
                if scope["path"].endswith("/join"):
                    self._watch(str(json.loads(body).get("session_hash")))  # type: ignore[arg-type]
            if scope["path"].endswith("/queue/data"):
                await self._stream(scope, receive, send)
            else:
                await self.app(scope, receive, send)
        finally:
            self.open -= 1

    async def _stream(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Pass the stream of messages to a session."""
        session = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("session_hash", [""])[0]
        self.readers[session] += 1
        self._watch(session)
        try:
            await self.app(scope, receive, send)
        finally:
            self.readers[session] -= 1
            self._watch(session)

    def _watch(self, session: str) -> None:
        """Forget a session that nobody reads for a while, since Gradio keeps its messages until they are read."""
        waiting = self.unread.pop(session, None)
        if waiting is not None:
            waiting.cancel()
        if self.readers[session] <= 0:
            del self.readers[session]
            if self.forget is not None:
                self.unread[session] = asyncio.get_running_loop().create_task(self._forget(session))

    async def _forget(self, session: str) -> None:
        await asyncio.sleep(UNREAD_SECONDS)
        del self.unread[session]
        assert self.forget is not None
        await self.forget(session)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None:
            if host_name(headers.get(b"host")) not in self.hosts:
                return 403, "the Host header names another machine"
            origin = headers.get(b"origin")
            if origin is not None and netloc(origin) != headers[b"host"]:
                return 403, "pages of other origins may not call this one"
        path, method = scope["path"], scope["method"]
        allowed = READ if method in ("GET", "HEAD") else WRITE if method == "POST" else None
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            return 404, "this page has no such address"
        return None

    def _malformed(self, path: str, body: bytes) -> tuple[int, str] | None:
        """Why a body is refused, if it is. Gradio would log a traceback, and searches nested values for files and components."""
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            return 400, "the request is not JSON, or nested too deeply"
        if not isinstance(given, dict) or not _is_short(given.get("session_hash")) or not _is_short(given.get("event_id", "")):
            return 400, "the request must be an object with a session_hash"
        if path.endswith("/join"):
            if type(given.get("fn_index")) is not int or given["fn_index"] not in self.functions:
                return 404, "this page has no such function"
            data = given.get("data")
            if not isinstance(data, list) or len(data) > MAX_VALUES or any(isinstance(value, (dict, list)) for value in data):
                return 400, f"data must be a list of at most {MAX_VALUES} texts and numbers"
        return None


def _is_short(name: Any) -> bool:
    return name is None or (isinstance(name, str) and len(name) <= MAX_SESSION_CHARACTERS)


async def _read(receive: Callable) -> bytes | tuple[int, str]:
    """The request body, or the status and message with which it is refused."""
    parts: list[bytes] = []
    size = 0

    async def read() -> tuple[int, str] | None:
        nonlocal size
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return 400, "the client went away"
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > MAX_BODY_BYTES:
                return 413, f"the request is longer than the {MAX_BODY_BYTES:,} bytes that this page takes"
            more = message.get("more_body", False)
        return None

    try:
        refusal = await asyncio.wait_for(read(), BODY_SECONDS)
    except asyncio.TimeoutError:
        return 408, f"the request did not arrive within {BODY_SECONDS:g} s"
    return refusal or b"".join(parts)


def _replay(body: bytes, receive: Callable) -> Callable:
    """A `receive` that gives the app the whole body first, then later messages."""
    pending = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return pending.pop() if pending else await receive()

    return replayed


async def _refuse(send: Callable, status: int, why: str) -> None:
    body = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # The rest of the request is not read: the connection closes.
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})
