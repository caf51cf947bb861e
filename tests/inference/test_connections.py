"""Connections to the server: slow ones are ended, clients that leave or do not read block no others, and their number is limited."""

import json
import socket
import time

import pytest
from served import LIMITS, MEBIBYTES, head, read_all, server_socket

from gpt_scratch.inference.limits import COMPLETIONS

pytestmark = pytest.mark.thorough

pytest.importorskip("uvicorn")
pytest.importorskip("openai")


@pytest.mark.fault("a chunked body of 10 MB without a length", seconds=2, mebibytes=MEBIBYTES)
def test_a_body_without_a_length_is_bounded(server):
    with server_socket(server) as connection:
        connection.sendall(head(server, COMPLETIONS, "Transfer-Encoding: chunked"))
        start = time.monotonic()
        try:
            for _ in range(160):
                connection.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        except OSError:  # the server has closed the connection
            pass
        answer = read_all(connection)
    assert time.monotonic() - start < 2 and server.mebibytes < MEBIBYTES
    assert answer == b"" or b" 413 " in answer  # the answer is lost where the kernel resets first
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize(
    "start, drip",
    [
        pytest.param("", "", marks=pytest.mark.fault("a connection that sends nothing", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("POST /v1/completions HTTP/1.1\r\n", "X-A: b\r\n", marks=pytest.mark.fault("headers that drip (slowloris)", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("body", " ", marks=pytest.mark.fault("a body that drips", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("second", "X-A: b\r\n", marks=pytest.mark.fault("headers of a second request that drip", seconds=8, mebibytes=MEBIBYTES)),
    ],
)  # fmt: skip
def test_slow_connections_are_ended(server, start, drip):
    with server_socket(server) as connection:
        connection.settimeout(0.1)
        first = {
            "body": head(server, COMPLETIONS, "Content-Length: 10000").decode(),
            "second": "GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\n",
        }.get(start, start)
        connection.sendall(first.encode())
        begin, received = time.monotonic(), b""
        while time.monotonic() - begin < 8:
            try:
                connection.sendall(drip.encode())
                part = connection.recv(4096)
                if not part:
                    break
                received += part
            except TimeoutError:
                continue
            except OSError:
                break
        took = time.monotonic() - begin
    assert took < 5, received
    assert (b" 408 " in received) == (start == "body")


@pytest.mark.fault("a client that never reads the reply it asked for", seconds=20, mebibytes=MEBIBYTES)
def test_a_client_that_does_not_read_blocks_no_other(server, question):
    body = json.dumps(question | {"max_tokens": 3000, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head(server, COMPLETIONS, f"Content-Length: {len(body)}") + body)
        time.sleep(0.3)
        start = time.monotonic()
        assert server.ask(COMPLETIONS, question)[0] == 200  # after its turn or its 2 s
        assert time.monotonic() - start < 4


@pytest.mark.fault("200 open connections that say nothing", seconds=10, mebibytes=MEBIBYTES)
def test_connections_are_limited_and_released(server):
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        time.sleep(0.5)
        refused = sum(b" 503 " in read_all(connection, 0.01) for connection in connections[60:])
        assert refused > 100
        time.sleep(LIMITS.send_seconds + 0.5)
        assert server.ask("/health")[0] == 200
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.fault("HTTP that is none: binary noise, two lengths, an endless header, HTTP/2", seconds=5, mebibytes=MEBIBYTES)
def test_requests_that_are_not_http_are_refused(server):
    for noise in (
        b"\x16\x03\x01\x02\x00" * 50,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    ):
        with server_socket(server) as connection:
            connection.settimeout(3)
            connection.sendall(noise)
            answer = read_all(connection)
            assert b"websocket" in noise or b" 400 " in answer or answer == b"", answer
    assert server.ask("/health")[0] == 200 and server.mebibytes < MEBIBYTES
