"""An ASGI app in front of transformers' server that validates requests: known fields within limits, for one model, one at a time.

Everything else is refused: unknown routes with 404, fields with 400, hosts and origins with 403. `/health` needs no key and never waits.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from ..errors import UserError
from .limits import LOAD_MODEL, RequestReader
from .refusal import Refusal
from .served_model import Generation, GenerationEnded, ModelFailed, ServedModel
from .worker import Answer, Turns, Worker

logger = logging.getLogger("gpt_scratch.serving")

GRACE = 5.0  # seconds for a generation to stop after it was asked to
DISCARDED_BYTES = (
    4 * 2**20
)  # of a refused request: a client that is still sending when the connection closes may not see the response
READ = ("/health", "/v1/models")
# The stock app writes a failure into the stream without escaping it.
STREAMED_ERROR = re.compile(rb'(?:\A|(?<=\n\n))data: \{"error": "(.*)"\}\n\n\Z', re.DOTALL)
ENDED = "the client disconnected"


class Guard:
    """The ASGI app that the server runs.

    Args:
        worker: runs the stock app.
        served: the model.
        reader: validates requests and has the limits.
        key: the required API key; `None` for none.
        hosts: allowed Host headers, without the port; `None` allows any.
        origins: other allowed origins (CORS), such as `https://example.org`.
    """

    def __init__(
        self,
        worker: Worker,
        served: ServedModel,
        reader: RequestReader,
        key: str | None = None,
        hosts: Collection[str] | None = (),
        origins: Collection[str] = (),
    ):
        self.worker, self.served, self.reader, self.limits = worker, served, reader, reader.limits
        self.key = None if key is None else key.encode()
        self.hosts, self.origins = hosts, origins
        self.turns = Turns(self.limits.max_waiting)
        self.releasing: set[asyncio.Task] = set()  # references, so that they are not garbage-collected

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await self._handle(exchange)
        except Refusal as refusal:
            await exchange.discard(DISCARDED_BYTES, self.limits.send_seconds)
            await exchange.refuse(refusal)
        except Exception:
            logger.exception("a request failed")
            await exchange.refuse(Refusal(500, "the server failed; its log says why"))

    async def _handle(self, exchange: "Exchange") -> None:
        path, method = exchange.path, exchange.scope["method"]
        if path == "/health" and method == "GET":
            return await exchange.json({"status": "ok"})
        self._check_caller(exchange)
        if (path not in READ and path not in self.reader.schemas) or not path.startswith("/"):
            raise Refusal(404, "unknown address", code="not_found")
        if method != ("GET" if path in READ else "POST"):
            raise Refusal(405, f"{path} takes {'GET' if path in READ else 'POST'} requests only", code="method_not_allowed")
        if path == "/v1/models":
            model = {"id": self.reader.model, "object": "model", "created": 0, "owned_by": "local"}
            return await exchange.json({"object": "list", "data": [model]})
        data = await exchange.body(self.limits.max_body_bytes, self.limits.send_seconds)
        body, sample = self.reader.read(path, data)
        if path == LOAD_MODEL:  # requested first by `transformers chat`; nothing is loaded
            event = {"status": "ready", "model": self.reader.model, "cached": True}
            return await exchange.whole(200, b"data: " + json.dumps(event).encode() + b"\n\n", "text/event-stream")
        await self._answer(exchange, path, json.dumps(body).encode(), Generation(sample))

    def _check_caller(self, exchange: "Exchange") -> None:
        """Check Host and Origin, which protect a server on loopback from web pages of other origins, and the API key.

        Raises:
            Refusal: with 400, 401 or 403.
        """
        host = host_name(exchange.header(b"host"))
        if host is None:
            raise Refusal(400, "the Host header is missing or invalid", code="bad_host")
        if self.hosts is not None and host not in self.hosts:
            raise Refusal(403, "the Host header is not allowed; see --allowed_hosts", code="bad_host")
        origin = exchange.header(b"origin")
        if origin is not None and origin not in self.origins and netloc(origin) != exchange.header(b"host"):
            raise Refusal(403, "the origin is not allowed; see --allowed_origins", code="bad_origin")
        if self.key is None:
            return
        scheme, _, given = (exchange.header(b"authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self.key):
            raise Refusal(401, "the API key is missing or wrong", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    async def _answer(self, exchange: "Exchange", path: str, body: bytes, generation: Generation) -> None:
        """Wait for the turn, generate, and release the turn when nothing of this request is running any more."""
        turn = self.turns.take()
        gone = asyncio.ensure_future(exchange.gone())
        try:
            await asyncio.wait({turn, gone}, timeout=self.limits.time_limit, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                if gone.done():
                    return
                raise self.turns.busy(f"the request has waited {self.limits.time_limit:g} s")
            generation.started = time.monotonic()
            if gone.done():
                return self.turns.finished(generation)
            gone.add_done_callback(lambda _: _end(generation, ENDED))
            self.served.current = generation
            answer = self.worker.start(path, body)
            release = asyncio.ensure_future(self._release(answer, generation))
            self.releasing.add(release)
            release.add_done_callback(self.releasing.discard)
            await self._forward(answer, exchange, generation)
        finally:
            turn.cancel()
            gone.cancel()

    async def _release(self, answer: Answer, generation: Generation) -> None:
        """Stop the generation at the time limit; release the turn once it has ended."""
        try:
            async with asyncio.timeout(self.limits.time_limit):
                await answer.done.wait()
        except TimeoutError:
            _end(generation, f"the time limit of {self.limits.time_limit:g} s is exceeded")
            await answer.done.wait()
        self.turns.finished(generation)

    async def _forward(self, answer: Answer, exchange: "Exchange", generation: Generation) -> None:
        """Forward the app's response; failures become one JSON error.

        Raises:
            Refusal: if the response has not started.
        """
        try:
            async with asyncio.timeout(self.limits.time_limit + GRACE):
                first = await answer.messages.get()
                if first["type"] == "end" or first["status"] >= 400:
                    raise await _failure(answer, first)
                await exchange.send(first)
                while (message := await answer.messages.get())["type"] != "end":
                    body = STREAMED_ERROR.sub(lambda match: _streamed_error(generation, match), message["body"])
                    await exchange.send(message | {"body": body})
        except TimeoutError:
            if not exchange.started:
                raise Refusal(504, "the model did not respond in time", code="time_limit") from None


class Exchange:
    """One request and its response."""

    def __init__(self, scope: dict[str, Any], receive: Callable, send: Callable):
        self.scope, self.receive, self._send = scope, receive, send
        self.path: str = scope["path"]
        self.started = False
        self.begin = time.monotonic()
        self.read = scope["method"] in ("GET", "HEAD", "OPTIONS")  # whether the whole body has been received

    def header(self, name: bytes) -> str | None:
        """A header; `None` if it is missing or repeated."""
        values = [value for key, value in self.scope["headers"] if key == name]
        return values[0].decode("latin-1") if len(values) == 1 else None

    async def body(self, max_bytes: int, seconds: float) -> bytes:
        """Receive the JSON body.

        Raises:
            Refusal: not JSON, too long, or too slow.
        """
        kind = (self.header(b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json" or self.header(b"content-encoding") is not None:
            raise Refusal(415, "send JSON, not compressed, as Content-Type: application/json", code="not_json")
        length = self.header(b"content-length")
        too_long = Refusal(413, f"the request is longer than the limit of {max_bytes:,} bytes", code="too_long")
        if length is not None and (not length.isdecimal() or int(length[:20]) > max_bytes):
            raise too_long
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(seconds):
                while not self.read:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, ENDED)
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > max_bytes:
                        raise too_long
                    self.read = not message.get("more_body", False)
        except TimeoutError:
            raise Refusal(408, f"the request was not complete after {seconds:g} s", code="too_slow") from None
        return b"".join(parts)

    async def discard(self, max_bytes: int, seconds: float) -> None:
        """Receive and discard the body until it ends, up to `max_bytes` bytes or `seconds` since the start of the request."""
        try:
            async with asyncio.timeout(seconds - (time.monotonic() - self.begin)):
                while not self.read and max_bytes > 0:
                    message = await self.receive()
                    max_bytes -= len(message.get("body", b""))
                    self.read = message["type"] == "http.disconnect" or not message.get("more_body", False)
        except TimeoutError:
            pass

    async def gone(self) -> None:
        """Return when the client has disconnected; call it after the body was received."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def send(self, message: dict[str, Any]) -> None:
        """Send one ASGI message of the response."""
        self.started = True
        await self._send(message)

    async def whole(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        """A short answer."""
        every = {"content-type": kind, "content-length": str(len(body)), "x-content-type-options": "nosniff"} | (headers or {})
        if not self.read:
            every["connection"] = "close"  # otherwise the rest of the body would be taken for the next request
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in every.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": lines})
        await self.send({"type": "http.response.body", "body": body})

    async def json(self, value: Any) -> None:
        """Send a JSON response."""
        await self.whole(200, json.dumps(value).encode(), "application/json")

    async def refuse(self, refusal: Refusal) -> None:
        """Send the refusal as the response; if a response has started, send nothing, and the server closes the connection."""
        if not self.started:
            await self.whole(refusal.status, refusal.body(), "application/json", refusal.headers)


def _end(generation: Generation, reason: str) -> None:
    generation.ended = generation.ended or reason


async def _failure(answer: Answer, first: dict[str, Any]) -> Refusal:
    """The refusal for a failed app, whose exception follows a response with status 500."""
    parts: list[bytes] = []
    message = first
    while message["type"] != "end":
        parts.append(message.get("body", b""))
        message = await answer.messages.get()
    if message["error"] is not None:
        return _explain(message["error"])
    try:
        detail = json.loads(b"".join(parts))["detail"]
    except (ValueError, KeyError, TypeError):
        detail = "the server failed"
    return Refusal(first["status"], detail if isinstance(detail, str) else json.dumps(detail))


def _explain(error: Exception) -> Refusal:
    """The refusal for an exception."""
    if isinstance(error, GenerationEnded):
        return Refusal(504, str(error), code="time_limit")
    if isinstance(error, UserError):
        return Refusal(400, str(error))
    if isinstance(error, ModelFailed):
        return Refusal(500, str(error))
    logger.error("the server failed", exc_info=error)
    return Refusal(500, f"the server failed ({type(error).__name__}); its log says why")


def _streamed_error(generation: Generation, match: re.Match) -> bytes:
    refusal = Refusal(500, match[1].decode("utf-8", "replace")) if generation.error is None else _explain(generation.error)
    return b"data: " + refusal.body() + b"\n\n"


def host_name(host: str | None) -> str | None:
    """The name in a Host header, in lower case and without the port; `None` if it is invalid."""
    try:
        parts = urlsplit(f"//{host}")
        parts.port  # noqa: B018  raises if it is out of range
    except ValueError:
        return None
    if host is None or not parts.hostname or parts.netloc != host or "@" in host:
        return None
    return parts.hostname.rstrip(".")


def netloc(origin: str) -> str | None:
    """Host and port of an origin; `None` if it is invalid, such as `null`."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None
