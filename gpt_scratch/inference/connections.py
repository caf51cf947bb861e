"""uvicorn's HTTP/1.1 protocol with a time limit for every phase of a connection. uvicorn itself has none for headers that arrive slowly,
clients that do not read the response, or connections that are idle after the first request.

`H11Protocol` is given to `uvicorn.Config(http=...)`, which takes any protocol class; overridden are the callbacks of
`asyncio.Protocol`, and `handle_events` and `on_response_complete`, which uvicorn does not document; run with 0.54.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .limits import Limits
from .refusal import Refusal

MAX_HEADER_BYTES = 16_384
MARGIN = 10.0  # seconds for everything except sending, waiting and generation


class BoundedProtocol(H11Protocol):
    """One connection. [`bounded_protocol`] sets the limits, since uvicorn creates the instances."""

    limits: Limits
    long_streams: bool
    request_seconds: float | None  # for a whole request with its response
    busy: bytes  # the response if there are too many connections

    deadline: asyncio.TimerHandle | None = None
    idle = True
    stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._end_after(self.limits.send_seconds)
        if len(self.connections) > self.limits.max_connections:
            transport.write(self.busy)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_after(None)
        self._resumed()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.idle and self.cycle is not None:  # the first bytes of another request
            self._end_after(self.limits.send_seconds)
        self.idle = False
        super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._end_after(self.request_seconds)

    def on_response_complete(self) -> None:
        self.idle = self.conn.our_state is h11.DONE
        # Also covers unread data: closing waits until everything is sent, aborting does not.
        self._end_after(self.limits.send_seconds)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Called when 64 KiB are buffered because the client does not read."""
        super().pause_writing()
        if self.long_streams and self.stalled is None:
            self.stalled = self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._resumed()

    def _resumed(self) -> None:
        if self.stalled is not None:
            self.stalled.cancel()
            self.stalled = None

    def _end_after(self, seconds: float | None) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
        self.deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)


def bounded_protocol(limits: Limits, long_streams: bool = False) -> type[H11Protocol]:
    """The protocol class with the bounds of `limits`.

    Args:
        limits: `send_seconds`, `time_limit` and `max_connections` are used.
        long_streams: responses may take any time while the client reads them; clients that stop reading for `send_seconds` are closed.
    """
    body = Refusal(503, "too many connections", code="busy").body()
    busy = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    busy += b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    seconds = None if long_streams else limits.send_seconds + 2 * limits.time_limit + MARGIN
    settings = {"limits": limits, "long_streams": long_streams, "request_seconds": seconds, "busy": busy}
    return type("BoundedProtocol", (BoundedProtocol,), settings)
