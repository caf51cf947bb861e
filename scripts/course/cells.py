"""Lessons in the percent format: their cells, and what an earlier lesson defined.

A cell begins with a line `# %%`, followed by `[markdown]` for text and `tags=[...]` for what the cell is for:

    parameters  paths and sizes, which whoever runs the lesson may replace in a cell after it
    figure      draws; left out by the quick tests
    compare     from here on the package may be imported; asserts that both compute the same
    exercise    a gap to fill in
    check       prints "Right", "Wrong" with the reason, or that there is no answer yet
"""

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

COURSE = Path(__file__).resolve().parent
_MARKER = re.compile(r"# %%(?P<markdown> \[markdown\])?(?: tags=\[(?P<tags>[^\]]*)\])?\s*")


@dataclass
class Cell:
    """One cell: its text or code, and the line of the file where that begins (1 is the first)."""

    markdown: bool
    tags: tuple[str, ...]
    source: str
    line: int


def lesson_files() -> list[Path]:
    """The lessons in order."""
    return sorted(COURSE.glob("[0-9][0-9]_*.py"))


def read_cells(path: str | Path) -> list[Cell]:
    """The cells of a lesson. What stands before the first marker must be empty."""
    cells: list[Cell] = []
    lines: list[str] = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("# %%"):
            marker = _MARKER.fullmatch(line)
            if marker is None:
                raise ValueError(f"{path} line {number}: {line!r} is no cell marker")
            lines = []
            tags = tuple(tag.strip().strip('"') for tag in (marker["tags"] or "").split(",") if tag.strip())
            cells.append(Cell(marker["markdown"] is not None, tags, "", number + 1))
        elif not cells and line.strip():
            raise ValueError(f"{path} line {number}: text before the first cell")
        if cells and not line.startswith("# %%"):
            lines.append(
                line.removeprefix("# ") if cells[-1].markdown and line != "#" else line if not cells[-1].markdown else ""
            )
            cells[-1].source = "\n".join(lines).strip("\n")
    return cells


def lesson(number: int) -> SimpleNamespace:
    """What lesson `number` defined before it turned to the package: its functions, classes and CONSTANTS, without running the rest.

    A name of one capital letter is a size (B, T, C), and stays behind.
    """
    (path,) = COURSE.glob(f"{number:02}_*.py")
    names: dict = {"__name__": path.stem}
    for cell in read_cells(path):
        if "compare" in cell.tags:
            break
        if cell.markdown or {"exercise", "check", "figure"} & set(cell.tags):
            continue
        tree = ast.parse(cell.source)
        tree.body = [statement for statement in tree.body if _defines(statement)]
        ast.increment_lineno(tree, cell.line - 1)
        exec(compile(tree, path, "exec"), names)
    return SimpleNamespace(**names)


def _defines(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return all(isinstance(target, ast.Name) and target.id.isupper() and len(target.id) > 1 for target in statement.targets)
    return isinstance(statement, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)
