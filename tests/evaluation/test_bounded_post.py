"""Requests to a judge are bounded in time, and go to HTTP addresses alone. Answers of other forms: test_hostile_judge.py."""

import contextlib
import socket
import threading
import time

import pytest
from raw_http import endless

from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.judge import Judge, judge_replies

SECONDS = 4.0  # that the judge of these tests has for an answer


@pytest.mark.thorough
def test_headers_that_drip_do_not_end_in_time(tmp_path):
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with contextlib.suppress(OSError):
            endless(connection, b"HTTP/1.1 200 OK\r\nX: ", b"x", 0.05)

    threading.Thread(target=serve, daemon=True).start()
    judge, start = Judge(f"http://127.0.0.1:{listener.getsockname()[1]}", "judge", timeout=SECONDS, retries=0), time.monotonic()
    with pytest.raises(UserError, match="did not end in time"):
        judge_replies(judge, [{"instruction": "a", "output": "b"}], ["c"], tmp_path / "v.jsonl", progress=False)
    assert time.monotonic() - start < 5
    listener.close()


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://127.0.0.1/", "127.0.0.1:80"])
def test_an_address_of_another_scheme_is_refused(tmp_path, url):
    with pytest.raises(UserError, match="neither http:// nor https://"):
        judge_replies(Judge(url, "judge"), [{"instruction": "a", "output": "b"}], ["c"], tmp_path / "v.jsonl", progress=False)
