"""The table of faults: each test marked `fault` becomes a row of FAULTS.md, with the time and memory that it allows.

    python tests/faults_table.py            # writes tests/FAULTS.md; `make faults`

A mark says what was tried: `@pytest.mark.fault("a GGUF file with 10^9 layers", seconds=20, mebibytes=900)`. In a parametrized test, `{}` stands for the
name of the case. conftest.py holds the test to these bounds. `test_faults_table.py` compares the table with the tests whenever all are collected.
"""

import contextlib
import io
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TABLE = HERE / "FAULTS.md"
HEADING = """# Faults tried

Hostile and broken input that the tests try. Every row is held: refused in one line, or harmless. A test fails if it takes longer, or needs more
memory, than its row says. Written by `make faults` from the tests.

| | tried | seconds | MiB | run by | test |
|---|---|---|---|---|---|
"""


def row_of(item: pytest.Item) -> tuple[str, ...] | None:
    """What was tried, seconds, MiB, which command runs it and the test's id; `None` for a test that is not marked."""
    mark = item.get_closest_marker("fault")
    if mark is None:
        return None
    case = item.callspec.id if hasattr(item, "callspec") else ""
    what = mark.args[0].replace("{}", case.encode("ascii", "backslashreplace").decode()).replace("|", "\\|").replace("\n", "\\n")
    seconds, mebibytes = (f"{mark.kwargs[name]:g}" for name in ("seconds", "mebibytes"))
    kind = next((kind for kind in ("slow", "thorough") if item.get_closest_marker(kind)), None)
    command = f"make test-{kind}" if kind else "make test"
    return what, seconds, mebibytes, command, f"{item.path.relative_to(HERE)}::{getattr(item, 'originalname', item.name)}"


def table_of(items: Iterable[pytest.Item]) -> str:
    """FAULTS.md for these tests."""
    rows = sorted({row for row in map(row_of, items) if row is not None}, key=lambda row: (row[-1], row))
    return HEADING + "".join(f"| {number} | {' | '.join(row)} |\n" for number, row in enumerate(rows, 1))


class Collector:
    """A pytest plugin that keeps the tests which are collected, the slow ones too."""

    items: list[pytest.Item]

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.items = list(items)


def main() -> int:
    collector = Collector()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = pytest.main(["--collect-only", "-q", str(HERE)], [collector])
    if status != pytest.ExitCode.OK:
        print(said.getvalue()[-2000:], file=sys.stderr)
        return int(status)
    text = table_of(collector.items)
    TABLE.write_text(text, encoding="utf-8")
    print(f"{text.count('::')} faults in {TABLE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
