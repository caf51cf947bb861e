"""Servers that send something other than the requested file: one line, within bounds of time and memory, and complete files are kept."""

import contextlib
import json
import socket
import sys
import threading
import time

import pytest
from bounds import run_bounded
from raw_http import endless

FETCH = """
import json, sys, time
from pathlib import Path
from gpt_scratch.conversion import openai_download
from gpt_scratch.errors import UserError

openai_download.TIMEOUT_SECONDS = 1.0
given = json.load(sys.stdin)
for number, name in enumerate(given["names"]):
    start = time.perf_counter()
    file = Path(given["folder"]) / str(number) / name
    try:
        openai_download.fetch([f"{given['url']}/{number}/"], file, None)
        said = None
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.perf_counter() - start]), flush=True)
"""
BODY = bytes(range(256)) * 40


def reply(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *headers]).encode() + b"\r\n\r\n"


def redirect(to: str, status: str = "302 Found"):
    return lambda c: c.sendall(reply(f"Location: {to}", "Content-Length: 0", status=status))


RANGE = f"Content-Range: bytes 100-{len(BODY) - 1}/{len(BODY)}"
# Name of the file, bytes of it that are there already, what the server does, what is said (None: fetched).
CASES = {
    "the file": ("hparams.json", 0, lambda c: c.sendall(reply(f"Content-Length: {len(BODY)}") + BODY), None),
    "the rest of the file": ("hparams.json", 100, lambda c: c.sendall(reply(RANGE, status="206 Partial Content") + BODY[100:]), None),
    "more than promised": ("hparams.json", 100, lambda c: c.sendall(reply(RANGE, status="206 Partial Content") + BODY * 2), "sent more than"),
    "gigabytes more than promised": (
        "hparams.json",
        100,
        lambda c: endless(c, reply(RANGE, status="206 Partial Content"), bytes(1 << 20), 0),
        "sent more than",
    ),
    "a size beyond reason": ("hparams.json", 0, lambda c: endless(c, reply(f"Content-Length: {10**12}"), bytes(1 << 20), 0), "more than the limit of 4,194,304"),
    "a size of 5,000 digits": ("hparams.json", 0, lambda c: c.sendall(reply("Content-Length: " + "9" * 5_000) + BODY), "does not send the size"),
    "a web page": ("hparams.json", 0, lambda c: c.sendall(reply("Content-Type: text/html", "Content-Length: 6") + b"<html>"), "a web page"),
    "a web page by another name": ("hparams.json", 0, lambda c: c.sendall(reply("Content-Length: 19") + b"\n <!DOCTYPE html>..."), "a web page"),
    "a redirect to a file": ("hparams.json", 0, redirect("file:///etc/passwd"), "HTTP 302"),
    "a redirect to ftp": ("hparams.json", 0, redirect("ftp://127.0.0.1/x"), "redirects to ftp:"),
    "a redirect to data": ("hparams.json", 0, redirect("data:text/plain,x"), "HTTP 302"),
    "redirects in a circle": ("hparams.json", 0, redirect("?", "307 Go"), "HTTP 307"),
    "a drip": ("hparams.json", 100, lambda c: endless(c, reply(RANGE, status="206 Partial Content"), b"x", 0.05), "too slow"),
    "headers that drip": ("hparams.json", 0, lambda c: endless(c, b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05), ""),
    "silence": ("hparams.json", 0, lambda c: time.sleep(30), "no response within 1 s"),
    "no HTTP": ("hparams.json", 0, lambda c: c.sendall(b"\0" * 1_000), ""),
}  # fmt: skip


@pytest.fixture
def server():
    """Answers a request for /N/ as the Nth of CASES."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    actions = [action for _, _, action, _ in CASES.values()]

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the other side hangs up
            data = b""
            while b"\r\n\r\n" not in data:
                data += connection.recv(1 << 16)
            actions[int(data.split(b"/")[1])](connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.mark.fault(
    "a download of more bytes than promised, a web page, a redirect to a file, a slow drip", seconds=40, mebibytes=900
)
@pytest.mark.thorough
def test_a_wrong_answer_is_refused_in_one_line_and_complete_files_are_kept(server, tmp_path):
    for number, (name, there, _, _) in enumerate(CASES.values()):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "vocab.bpe").write_bytes(b"whole")
        if there:
            (tmp_path / str(number) / f"{name}.part").write_bytes(BODY[:there])
    given = {"url": server, "folder": str(tmp_path), "names": [name for name, *_ in CASES.values()]}
    outcome = run_bounded([sys.executable, "-c", FETCH], 40, 900, stdin=json.dumps(given))
    assert outcome.exceeded is None and outcome.status == 0, (outcome.exceeded, outcome.stdout[-500:], outcome.stderr[-2000:])
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    for number, (case, (said, took)) in enumerate(zip(CASES, answers, strict=True)):
        name, there, _, words = CASES[case]
        folder = tmp_path / str(number)
        assert (folder / "vocab.bpe").read_bytes() == b"whole" and took < 5, (case, took)
        if words is None:
            assert said is None and (folder / name).read_bytes() == BODY, (case, said)
            continue
        assert said is not None and words in said and "\n" not in said, (case, said)
        assert not (folder / name).exists()
        part = folder / f"{name}.part"
        assert (part.read_bytes()[:there] if there else part.exists()) == (BODY[:there] if there else False), case
