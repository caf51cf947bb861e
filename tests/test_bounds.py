"""The bounds of tests of hostile input hold: a command and its children are killed at its time and at its memory."""

import sys

import pytest
from bounds import refused_in_one_line, run_bounded


def test_a_command_that_ends_is_reported_as_it_ended():
    outcome = run_bounded([sys.executable, "-c", "import sys; print(input()); sys.exit(3)"], 20, 900, stdin="x" * 100_000 + "\n")
    assert (outcome.status, len(outcome.stdout), outcome.exceeded) == (3, 100_001, None)


def test_a_command_that_reads_late_gets_all_of_its_input():
    code = "import sys, time; time.sleep(0.3); print(len(sys.stdin.read()))"
    assert run_bounded([sys.executable, "-c", code], 20, 900, stdin="x" * 300_000).stdout == "300000\n"


def test_time_is_bounded():
    outcome = run_bounded([sys.executable, "-c", "while True: pass"], 0.5, 900)
    assert outcome.exceeded == "0.5 s" and outcome.seconds < 5 and outcome.status == -9


def test_memory_of_a_child_is_bounded():
    grow = "a = []\nwhile True: a.append(bytes(range(256)) * 4096)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}])"
    outcome = run_bounded([sys.executable, "-c", code], 60, 900)
    assert outcome.exceeded and "MiB" in outcome.exceeded and outcome.mebibytes < 2000


@pytest.mark.parametrize("code", ["raise ValueError('error: no')", "pass", "import os; os.kill(os.getpid(), 11)"])
def test_a_traceback_a_success_and_a_crash_are_no_refusals(code):
    with pytest.raises(AssertionError):
        refused_in_one_line(run_bounded([sys.executable, "-c", code], 20, 900))
