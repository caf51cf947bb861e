"""The matrix of releases, without an index and without environments: which releases, what counts as a failure, and what the table shows."""

import re
import subprocess
import sys
from pathlib import Path

import environments
import pytest
import run_matrix

INDEX = [
    "5.1.0",
    "5.0.1",
    "5.0.0",
    "5.0.0rc1",
    "5.10.0",
    "5.9.2",
    "5.11.0rc0",
    "4.57.6",
    "4.57.10",
    "4.56.2",
    "4.46.3",
    "4.45.0",
    "3.5.1",
]


def test_the_last_patch_of_each_supported_minor_release():
    assert environments.supported_releases(INDEX) == ["4.46.3", "4.57.10", "5.0.1", "5.1.0", "5.9.2", "5.10.0"]


def test_columns_by_name(monkeypatch):
    answers = {"index": f"transformers (5.10.0)\nAvailable versions: {', '.join(INDEX)}\n  INSTALLED: 5.1.0\n"}
    monkeypatch.setattr(environments, "pip", lambda *arguments: answers[arguments[2]])
    monkeypatch.setattr(environments, "newest_release", lambda python: "5.10.0")
    monkeypatch.setattr(environments, "pinned_versions", lambda: {"transformers": "5.10.0", "tokenizers": "0.23.3"})
    columns = environments.resolve(["newest", "pinned", "oldest", "5.9.2", "5.9.2"], "python3")
    assert columns == {
        environments.OLDEST: [f"transformers=={environments.OLDEST}", "accelerate"],
        "5.9.2": ["transformers==5.9.2", "accelerate"],
        "5.10.0": ["transformers==5.10.0", "accelerate"],  # not pinned, although it is the same release
        "5.10.0 pinned": ["transformers==5.10.0", "tokenizers==0.23.3"],
    }
    assert list(environments.resolve(["all"], "python3")) == environments.supported_releases(INDEX)


def test_an_invalid_release_name_is_refused():
    with pytest.raises(
        environments.BuildError, match="--releases 5.x: give a version such as 5.0.0, or one of oldest, newest, all, pinned"
    ):
        environments.resolve(["5.x"], "python3")


def test_pins_are_those_of_the_constraints():
    lines = environments.CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    assert environments.pinned_versions().keys() == set(environments.PINNED)
    assert all(f"{name}=={version}" in lines for name, version in environments.pinned_versions().items())


def test_a_failed_command_is_one_line():
    with pytest.raises(environments.BuildError, match=r"^\S*python\S* -c .* \.\.\.: ValueError: no such thing$"):
        environments.run(sys.executable, "-c", "raise ValueError('no such thing')")


def test_torch_is_shared_and_other_packages_are_not(tmp_path):
    base = environments.Base(sys.executable, tmp_path)
    links = {path.name for path in base.link().iterdir()}
    assert {"torch", "numpy", "sympy"} <= links and base.link().joinpath("torch", "__init__.py").is_file()
    differ = ("gpt_scratch", "peft", "trl", *environments.PINNED)
    assert not [name for name in links if name.split("-")[0] in differ]


CHECKERS = {  # program: its lines
    "healthy": "open(sys.argv[1], 'w').write(json.dumps({'logits': 'ok', 'static cache': '-: since 9.9'}))",
    "wrong": "open(sys.argv[1], 'w').write(json.dumps({'logits': 'off by 1', 'static cache': 'ok'}))",
    "dies": "open(sys.argv[1], 'w').write(json.dumps({'logits': 'ok'})); sys.exit('out of memory')",
    "sees": "assert not any(name.startswith('PYTHON') for name in sys.argv[2:]); import gpt_scratch_of_pythonpath",
}


def column(kind: str, tmp_path: Path, monkeypatch) -> dict:
    """The column of an "environment" that is this Python, with one of CHECKERS."""
    program = tmp_path / f"{kind}.py"
    if kind in CHECKERS:
        program.write_text(f"import json, sys\n{CHECKERS[kind]}\n", encoding="utf-8")
    monkeypatch.setattr(run_matrix, "PROGRAMS", {"checks": (None, f"{program} {{results}}")})
    return {"versions": {}, "rows": run_matrix.check("checks", Path(sys.executable), tmp_path)}


def test_rows_of_a_checker(tmp_path, monkeypatch):
    expected = {"checks": "ok", "logits": "ok", "static cache": "-: since 9.9"}
    assert column("healthy", tmp_path, monkeypatch)["rows"] == expected


def test_a_checker_that_is_not_there_has_failed(tmp_path, monkeypatch):
    rows = column("absent", tmp_path, monkeypatch)["rows"]
    assert list(rows) == ["checks"] and "No such file" in rows["checks"]


def test_a_checker_sees_no_pythonpath(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "gpt_scratch_of_pythonpath.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    assert column("sees", tmp_path, monkeypatch)["rows"] == {
        "checks": "ModuleNotFoundError: No module named 'gpt_scratch_of_pythonpath'"
    }


def test_a_missing_row_is_a_failure(tmp_path, monkeypatch):
    columns = {f"5.{i}.0": column(kind, tmp_path, monkeypatch) for i, kind in enumerate(("healthy", "wrong", "dies"))}
    matrix = {"date": "2026-01-02", "python": "3.11", "torch": "2.13.0", "columns": columns}
    run_matrix.complete(columns)
    assert run_matrix.cells(matrix, "✗") == [
        "5.1.0 | logits | off by 1",
        "5.2.0 | checks | out of memory",
        "5.2.0 | static cache | not run",
    ]
    assert run_matrix.cells(matrix, "–") == ["5.0.0 | static cache | -: since 9.9"]
    table = run_matrix.as_table(matrix)
    assert table.startswith(
        "2026-01-02, Python 3.11, torch 2.13.0\n\n| transformers | 5.0.0 | 5.1.0 | 5.2.0 |\n|---|---|---|---|\n"
    )
    assert table.endswith("| checks | ✓ | ✓ | ✗ |\n| logits | ✓ | ✗ | ✓ |\n| static cache | – | ✓ | ✗ |\n")


def test_checkpoints_are_not_checked_where_the_package_is_importable(tmp_path):
    program = Path(run_matrix.__file__).parent / "check_checkpoint.py"
    command = [sys.executable, str(program), str(tmp_path), str(tmp_path / "results.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and re.match("gpt_scratch can be imported here", done.stderr)
    assert not (tmp_path / "results.json").exists()
