"""A judge whose server sends arbitrary answers: the run continues, within bounds of time and memory, and unusable answers are counted as unanswered."""

import gzip
import json
import socket
import sys
import threading
import time

import pytest
from bounds import run_bounded
from raw_http import endless

from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.bounded_post import ANSWER_BYTES
from gpt_scratch.evaluation.judge import Judge, Verdict, judge_replies, parse_score, read_verdicts, summarize

SECONDS = 4.0  # that the judge of these tests has for an answer


def completion(content: object) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], "message": {"content": content}}).encode()


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"

# What the server does, and the message.
ANSWERS = {
    "a drip without end": (lambda c: endless(c, HEAD + b"\r\n{", b" ", 0.05), "did not end in time"),
    "gigabytes": (lambda c: endless(c, HEAD + b"\r\n", bytes(1 << 20), 0), "more than 1,048,576 bytes"),
    "2.5 GB promised": (lambda c: endless(c, HEAD + b"Content-Length: 2500000000\r\n\r\n", bytes(1 << 20), 0), "more than"),
    "gzip": (lambda c: c.sendall(reply(gzip.compress(bytes(10**8)), "Content-Encoding: gzip")), "is compressed (gzip)"),
    "a redirect": (lambda c: c.sendall(reply(b"", "Location: file:///etc/passwd", status="302 Found")), "redirects (status 302)"),
    "a kept redirect": (
        lambda c: c.sendall(reply(b"", "Location: http://127.0.0.1:9/", status="307 Go")),
        "redirects (status 307)",
    ),
    "html": (lambda c: c.sendall(reply(b"<html>Sign in</html>")), "is not JSON"),
    "nothing": (lambda c: c.sendall(reply(b"")), "is not JSON"),
    "null": (lambda c: c.sendall(reply(b"null")), "has no"),
    "a list": (lambda c: c.sendall(reply(b"[1, 2]")), "has no"),
    "a number": (lambda c: c.sendall(reply(b"7")), "has no"),
    "no choices": (lambda c: c.sendall(reply(b'{"choices": [], "message": {}}')), "has no"),
    "choices of null": (lambda c: c.sendall(reply(b'{"choices": null, "message": null}')), "has no"),
    "a text in place of a message": (lambda c: c.sendall(reply(b'{"choices": ["x"], "message": "x"}')), "has no"),
    "content of null": (lambda c: c.sendall(reply(completion(None))), "is NoneType, not text"),
    "content that is a list": (lambda c: c.sendall(reply(completion(["5"]))), "is list, not text"),
    "nested 200,000 deep": (lambda c: c.sendall(reply(b"[" * 200_000)), "is not JSON"),
    "5,000 digits in the form": (lambda c: c.sendall(reply(b"9" * 5_000)), "is not JSON"),
    "no UTF-8": (lambda c: c.sendall(reply(b"\xff\xfe\xfd")), "is not JSON"),
}

SCORED = {  # content that is text, and its score
    "5,000 digits": ("9" * 5_000, None),
    "a surrogate": ("\ud800 85", 85),
    "a number and 400,000 spaces": ("5" + " " * 400_000 + "x5", None),
    "a score": ("85", 85),
}

ASK = """
import json, sys
from gpt_scratch.evaluation.judge import Judge, judge_replies
given = json.load(sys.stdin)
names = given["names"]
records = [{"instruction": f"Say {name}.", "output": name} for name in names]
for api in ("openai", "ollama"):
    judge = Judge(given["url"], "judge", api, timeout=given["seconds"], retries=1, first_pause=0.01)
    replies = [f"case {i} " for i in range(len(names))]
    verdicts = judge_replies(judge, records, replies, given["folder"] + "/" + api, 4, progress=False)
    print(json.dumps([verdict.__dict__ for verdict in verdicts]))
"""


@pytest.fixture(scope="module")
def server():
    """Answers the question about `case N` with the Nth of ANSWERS, then of SCORED."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    cases = [answer for answer, _ in ANSWERS.values()]
    cases += [lambda c, content=content: c.sendall(reply(completion(content))) for content, _ in SCORED.values()]

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                data = b""
                while b"case " not in data or not data.endswith(b"}"):
                    data += connection.recv(1 << 16)
                cases[int(data.split(b"case ")[1].split()[0].rstrip(b"`"))](connection)
            except OSError:  # the judge has hung up
                pass

    def accept() -> None:
        while True:
            try:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    listener.close()


@pytest.mark.fault("a judge that never ends, sends gigabytes, redirects, or answers in 15 other forms", seconds=90, mebibytes=900)
@pytest.mark.thorough
def test_the_run_continues_whatever_the_judge_answers(server, tmp_path):
    names = [*ANSWERS, *SCORED]
    given = {"url": server, "names": names, "seconds": SECONDS, "folder": str(tmp_path)}
    outcome = run_bounded([sys.executable, "-c", ASK], 90, 900, stdin=json.dumps(given))
    assert outcome.exceeded is None and outcome.status == 0, (outcome.exceeded, outcome.stderr[-2000:])
    for api, line in zip(("openai", "ollama"), outcome.stdout.splitlines(), strict=True):
        verdicts = [Verdict(**values) for values in json.loads(line)]
        for name, verdict in zip(names, verdicts, strict=True):
            if name in ANSWERS:
                assert verdict.score is None and ANSWERS[name][1] in str(verdict.unanswered), (name, verdict)
            else:
                assert verdict.unanswered is None and verdict.score == SCORED[name][1], name
        assert summarize(verdicts) == {"judged": 23, "scored": 2, "unparsable": 2, "unanswered": 19, "mean_score": 85}
        assert len(read_verdicts(tmp_path / api)) == len(SCORED)  # the others are asked again


def test_a_judge_that_gives_no_usable_answer_at_all_is_an_error(server, tmp_path):
    number = list(ANSWERS).index("html")
    with pytest.raises(UserError, match="no answer that can be used to any of 1 questions: its answer is not JSON"):
        judge_replies(
            Judge(server, "judge"), [{"instruction": "a", "output": "b"}], [f"case {number} "], tmp_path / "v", progress=False
        )


@pytest.mark.parametrize(
    "line", ['{"key": [], "answer": "", "score": 1}', '{"key": "a", "answer": "", "score": "5"}', "[" * 200_000]
)
def test_a_file_of_verdicts_of_another_form_is_named(tmp_path, line):
    (tmp_path / "v.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"v.jsonl line 1 is not a verdict of an earlier run"):
        read_verdicts(tmp_path / "v.jsonl")


def test_a_score_is_found_in_bounded_time():
    start = time.monotonic()
    assert (
        parse_score("5" + " " * ANSWER_BYTES + "x5", "0-100") is None and parse_score("5" + " " * 4_000 + "x5", "0-100") is None
    )
    assert time.monotonic() - start < 5
