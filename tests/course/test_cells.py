"""Reading lessons, and the command that runs them."""

import re
import sys
from pathlib import Path

import pytest
from modules import load_file

COURSE = Path(__file__).resolve().parents[2] / "scripts" / "course"
sys.path.insert(0, str(COURSE))
from cells import lesson, lesson_files, read_cells  # noqa: E402

LESSON = """# %% [markdown]
# # A lesson
#
# - text

# %% tags=["parameters"]
small = False

# %% tags=["compare", "figure"]
x = 1


# %%
def f(): ...
"""


def run_module():
    return load_file(COURSE / "run.py", "course_run")


def test_cells_of_a_lesson(tmp_path):
    path = tmp_path / "01_x.py"
    path.write_text(LESSON)
    cells = read_cells(path)
    assert [(cell.markdown, cell.tags) for cell in cells] == [
        (True, ()),
        (False, ("parameters",)),
        (False, ("compare", "figure")),
        (False, ()),
    ]
    assert cells[0].source == "# A lesson\n\n- text" and cells[2].source == "x = 1" and cells[3].source == "def f(): ..."
    lines = LESSON.splitlines()
    assert all(lines[cell.line - 1].removeprefix("# ") == cell.source.splitlines()[0] for cell in cells)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# %% [markdwon]\n# x\n", "line 1: '# %% \\[markdwon\\]' is no cell marker"),
        ("x = 1\n# %%\n", "line 1: text before the first cell"),
    ],
)
def test_a_broken_lesson_is_refused_by_its_line(tmp_path, text, message):
    path = tmp_path / "01_x.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_cells(path)


def test_a_lesson_gives_what_it_defined_without_running():
    four = lesson(4)
    assert four.Attention(8, 2).H == 2 and not hasattr(four, "words") and not hasattr(four, "check_1")
    assert "tokens.weight" in lesson(6).NAMES


def test_lessons_are_numbered_without_gaps():
    assert [int(path.stem[:2]) for path in lesson_files()] == list(range(1, 14))


def test_an_unknown_lesson_ends_in_one_line(tmp_path, capsys):
    assert run_module().main([str(tmp_path / "out"), "--lessons", "4", "99"]) == 1
    assert capsys.readouterr().err.startswith("error: --lessons 99: the lessons are 1, 2, 3") and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("Traceback\nNameError: x"), "NameError: x"),
        (AssertionError(), "AssertionError, without a message"),
        (TimeoutError("A cell timed out.\nThe cell:\n-----"), "A cell timed out."),
    ],
)
def test_a_lesson_that_fails_ends_in_one_line(tmp_path, capsys, monkeypatch, error, line):
    module = run_module()

    def fail(path, parameters):
        raise error

    monkeypatch.setattr(module, "execute", fail)
    assert module.main([str(tmp_path / "out"), "--lessons", "4"]) == 1
    assert capsys.readouterr().err == f"error: 04_attention.py: {line}\n"


def test_a_page_links_to_the_table_its_file_and_the_next_lesson(tmp_path):
    module = run_module()
    first, last = module.links("01_tokens", COURSE / "pages"), module.links("13_native", COURSE / "pages")
    assert (
        "(../README.md)" in first
        and "(../01_tokens.py)" in first
        and "[next: lesson 2](02_rows.md)" in first
        and "next" not in last
    )
    for path in lesson_files():
        lines = (COURSE / "pages" / f"{path.stem}.md").read_text(encoding="utf-8").splitlines()
        assert lines[0].startswith("# Lesson ") and module.links(path.stem, COURSE / "pages") in lines[:4], path.stem


def test_the_pages_hold_the_text_of_their_lessons():
    """A page whose lesson was changed afterwards is out of date: `make course` writes it again."""
    for path in lesson_files():
        page = (COURSE / "pages" / f"{path.stem}.md").read_text(encoding="utf-8")
        for cell in read_cells(path):
            lines = [line.rstrip() for line in cell.source.splitlines() if line.strip()]
            assert all(line in page for line in lines), f"{path.name} line {cell.line}"


@pytest.mark.parametrize("path", lesson_files(), ids=lambda path: path.stem)
def test_the_pages_hold_nothing_of_one_machine_or_one_run(path):
    page = (COURSE / "pages" / f"{path.stem}.md").read_text(encoding="utf-8")
    assert "PosixPath(" not in page and " at 0x" not in page
    for figure in re.findall(r"\(figures/([^)]+)\)", page):
        assert (COURSE / "pages" / "figures" / figure).is_file(), figure


@pytest.mark.thorough
def test_a_page_is_written_without_the_cell_of_its_parameters(tmp_path):
    pytest.importorskip("nbconvert")
    module = run_module()
    notebook = module.notebook_of(COURSE / "06_model.py", {"checkpoint": Path("folder-of-one-machine")})
    module.write(notebook, "06_model", tmp_path / "out", tmp_path / "pages")
    assert "folder-of-one-machine" in (tmp_path / "out" / "06_model.ipynb").read_text(encoding="utf-8")
    assert "folder-of-one-machine" not in (tmp_path / "pages" / "06_model.md").read_text(encoding="utf-8")


def test_parameters_are_replaced_after_the_cell_that_sets_them():
    pytest.importorskip("nbformat")
    notebook = run_module().notebook_of(COURSE / "06_model.py", {"checkpoint": Path("elsewhere")})
    tagged = next(number for number, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ()))
    assert notebook.cells[tagged + 1].source.endswith("checkpoint = PosixPath('elsewhere')")
