"""Long work is reported by name; quick work is not."""

import io
import sys
import time

import pytest

from gpt_scratch import progress
from gpt_scratch.progress import bar, named


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.2)


def test_a_log_gets_one_line_for_work_that_takes_long_and_none_for_other_work(capsys):
    assert list(bar([1, 2, 3], "quick work")) == [1, 2, 3]
    assert [time.sleep(0.12) or item for item in bar(range(4), "slow work")] == [0, 1, 2, 3]
    with named("compiling"):
        time.sleep(0.5)
    with pytest.raises(ValueError), named("failing"):
        raise ValueError
    time.sleep(0.3)
    assert capsys.readouterr().err == "slow work ...\ncompiling ...\n"


def test_a_terminal_gets_a_bar_with_the_name(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert [time.sleep(0.15) or item for item in bar(iter(range(4)), "measuring", "rows", 4)] == [0, 1, 2, 3]
    assert "measuring:  " in terminal.getvalue() and "/4 [" in terminal.getvalue() and "rows/s" in terminal.getvalue()
