"""HTTP by the standard library whose connections can be ended at a deadline.

A timeout of `urllib` applies to each read: a server that sends a byte now and then, in its headers too, never reaches it.
"""

import contextlib
import http.client
import socket
import threading
import urllib.request
from collections.abc import Callable


class Deadline(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """A handler for [`urllib.request.build_opener`], and a context: its connections are shut down `seconds` after it is entered.

    Args:
        seconds: until then; leaving the context, or [`Deadline.cancel`], cancels it.

    Attributes:
        expired: whether it has passed.
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
        """As the base class, with connections that the deadline can end."""
        return self.do_open(self._connection(http.client.HTTPConnection), req)  # type: ignore[arg-type]

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As the base class, with connections that the deadline can end."""
        return self.do_open(self._connection(http.client.HTTPSConnection), req)  # type: ignore[arg-type]
