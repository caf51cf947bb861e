"""Notes about files, which are printed once a process, are printed in each test."""

import pytest

from gpt_scratch.data import opening


@pytest.fixture(autouse=True)
def notes_again(monkeypatch):
    monkeypatch.setattr(opening, "_printed", set())
