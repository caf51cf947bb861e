"""Slow connections to a server whose answers take long: real sockets, an app of ten lines."""

import asyncio
import socket
import threading
import time

import pytest

from gpt_scratch.inference.limits import Limits

uvicorn = pytest.importorskip("uvicorn", reason='serving needs pip install "gpt_scratch[serving]"')

SECONDS = 0.5  # that a client may take to send, or to read a part
BOUNDS = {"seconds": 20, "mebibytes": 100}


class Server:
    """In a thread; `running` is the number of answers that are being written, `written` the bytes that the app has handed over."""

    def __init__(self):
        from gpt_scratch.inference.connections import MAX_HEADER_BYTES, bounded_protocol

        self.running, self.written = 0, 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        protocol = bounded_protocol(Limits(send_seconds=SECONDS, time_limit=0.1, max_connections=20), long_streams=True)
        config = uvicorn.Config(
            self.app,
            interface="asgi3",
            http=protocol,
            lifespan="off",
            log_level="critical",
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)

    async def app(self, scope, receive, send):
        """/slow ends after 3 s; /much is 50 MB; /once is 5 MB in one piece."""
        self.running += 1
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            size, pieces = {"/slow": (10, 30), "/much": (10_000, 5_000), "/once": (5_000_000, 1)}[scope["path"]]
            gone = asyncio.create_task(self.until_gone(receive))
            for _ in range(pieces):
                if gone.done():
                    break
                await send({"type": "http.response.body", "body": b"x" * size, "more_body": True})
                self.written += size
                await asyncio.sleep(0.1 if size == 10 else 0)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.running -= 1

    async def until_gone(self, receive):
        while (await receive())["type"] != "http.disconnect":
            pass

    def open(self, text: str) -> socket.socket:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", self.port))
        connection.settimeout(10)
        connection.sendall(text.encode())
        return connection


@pytest.fixture
def server():
    server = Server()
    server.thread.start()
    while not server.server.started:
        time.sleep(0.01)
    yield server
    server.server.should_exit = True
    server.thread.join(10)


def until(met, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.02)


def get(path: str) -> str:
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.fault("clients that read nothing of an answer without end, or of one in a single piece", **BOUNDS)
def test_an_unread_answer_is_ended(server):
    connections = [server.open(get(path)) for path in ("/much", "/once") * 4]
    until(lambda: server.written > 0)
    until(lambda: not server.server.server_state.connections)
    until(lambda: server.running == 0)
    assert server.written < 4 * 5_000_000 + 4 * 10_000_000  # of 220 million: what the buffers of the system take
    for connection in connections:
        connection.close()


@pytest.mark.thorough
def test_an_answer_that_is_read_may_take_its_time(server):
    with server.open(get("/slow")) as connection:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += connection.recv(1000)
    assert received.count(b"x" * 10) == 30


@pytest.mark.fault("headers that drip, connections that say nothing, and more than a server takes", **BOUNDS)
def test_slow_senders_are_ended(server):
    connections = [server.open("" if number % 2 else "GET /slow HTTP/1.1\r\nX-A: ") for number in range(40)]
    answers = []
    for connection in connections:
        try:
            answers.append(connection.recv(1000))
        except OSError:  # reset
            answers.append(b"")
        connection.close()
    assert sum(b" 503 " in answer for answer in answers) >= 10 and not any(b" 200 " in answer for answer in answers)
    until(lambda: not server.server.server_state.connections)
