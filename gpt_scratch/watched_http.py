"""HTTP requests of the standard library with an overall deadline.

The timeout of `urllib` applies to each read: a server that sends single bytes, even of its headers, never exceeds it.
"""

import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable


class Deadline(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """A handler for [`urllib.request.build_opener`] and a context manager that shuts its connections down after `seconds`.

    Args:
        seconds: time limit, from entering the context; leaving the context, or [`Deadline.cancel`], cancels it.

    Attributes:
        expired: whether the deadline has passed.
    """

    def __init__(self, seconds: float):
        super().__init__()
        self.sockets: list[socket.socket] = []
        self.expired = False
        self.timer = threading.Timer(seconds, self._shut_down)
        self.timer.daemon = True

    def __enter__(self) -> "Deadline":
        self.timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Cancel the deadline."""
        self.timer.cancel()

    def _shut_down(self) -> None:
        self.expired = True
        for each in self.sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # ends a blocked read

    def _connection(self, kind: type[http.client.HTTPConnection]) -> Callable[..., http.client.HTTPConnection]:
        sockets = self.sockets

        class Connection(kind):  # type: ignore[valid-type, misc]
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return Connection

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open with connections that the deadline can shut down."""
        return self.do_open(self._connection(http.client.HTTPConnection), req)  # type: ignore[arg-type]

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Open with connections that the deadline can shut down."""
        return self.do_open(self._connection(http.client.HTTPSConnection), req)  # type: ignore[arg-type]
