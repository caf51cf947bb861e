"""Notes about files, which are printed once per process, are printed in each test; and rows of a file that a test writes."""

import pytest

from gpt_scratch.data import opening
from gpt_scratch.data.opening import Reading
from gpt_scratch.data.tables import read_table


@pytest.fixture(autouse=True)
def notes_again(monkeypatch):
    monkeypatch.setattr(opening, "_printed", set())


@pytest.fixture
def rows_of(tmp_path):
    """Writes a file and reads its rows: `rows_of(name, content, **flags)`."""

    def read(name: str, content: str | bytes, **settings) -> list[dict]:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        names = ("encoding", "delimiter", "skip_empty", "replace_invalid")
        flags = {flag: settings.pop(flag) for flag in names if flag in settings}
        return [values for _, _, values in read_table(str(path), reading=Reading.of(Reading(**flags)), **settings)]

    return read
