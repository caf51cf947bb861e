"""A small load test of the server, which must fail where the server does."""

import sys
import threading
from contextlib import contextmanager

import load_server
import pytest
from bounds import run_bounded
from served import ROOT

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow


@pytest.mark.fault("20 clients at once, valid and hostile requests mixed", seconds=120, mebibytes=1800)
def test_a_small_load():
    command = [sys.executable, ROOT / "tests" / "inference" / "load_server.py", "--clients", "20", "--seconds", "5"]
    outcome = run_bounded(command, 120, 1800, env={"PYTHONPATH": str(ROOT)})
    assert outcome.exceeded is None and outcome.status == 0, outcome.stderr[-2000:]
    assert "| headers that drip |" in outcome.stdout and "ran until SIGTERM" in outcome.stdout


def test_too_much_memory_fails(capsys):
    assert load_server.main(["--clients", "2", "--seconds", "1", "--mebibytes", "10"]) == 1
    assert "MiB, more than 10" in capsys.readouterr().err


def test_a_server_that_crashes_fails(monkeypatch, capsys):
    @contextmanager
    def killed(*arguments):
        with serving(*arguments) as server:
            timer = threading.Timer(2, server.process.kill)
            timer.start()
            yield server
            timer.join()

    serving = load_server.serving
    monkeypatch.setattr(load_server, "serving", killed)
    assert load_server.main(["--clients", "4", "--seconds", "4"]) == 1
    printed = capsys.readouterr()
    assert "the server ended with status -9" in printed.err and "/health was not answered" in printed.err
    assert "The server ended by itself" in printed.out
