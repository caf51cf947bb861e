"""A home directory with a project in it, for tests of what may be replaced and what must stay."""

import os
from pathlib import Path

import pytest

from gpt_scratch import files
from gpt_scratch.files import MARK, atomic_directory

# Without what gpt_scratch/__init__.py imports: a fresh process starts in milliseconds.
LIGHT = f"""
import sys, types
sys.modules["gpt_scratch"] = types.ModuleType("gpt_scratch")
sys.modules["gpt_scratch"].__path__ = [{str(Path(files.__file__).parent)!r}]
"""


def write_ours(path, *names: str) -> None:
    with atomic_directory(path) as folder:
        for name in names or ("model.safetensors",):
            (folder / name).write_text("ours", encoding="utf-8")


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine", encoding="utf-8")


def snapshot(folder: Path) -> dict[str, str | None]:
    """Every path below `folder`, with the content of a file and the target of a link."""
    found: dict[str, str | None] = {}
    for path in folder.rglob("*"):
        found[str(path.relative_to(folder))] = (
            os.readlink(path) if path.is_symlink() else path.read_text(encoding="utf-8") if path.is_file() else None
        )
    return found


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home directory with a project in it, which is the current directory."""
    home = tmp_path / "home"
    project = home / "project"
    write(home / "letters.txt", project / "thesis.tex", project / "notes" / "notes.txt", project / "a" / "b" / "deep.txt")
    write(project / "source" / "config.json", project / "hub_model" / "config.json", project / "hub_model" / "model.safetensors")
    write_ours(project / "ours")
    write_ours(project / "source" / "inside")
    write_ours(project / "mixed")
    write(project / "mixed" / "diary.txt", project / "caf\u00e9" / "mine.txt")
    write_ours(project / "run")
    write(project / "run" / "checkpoint-5" / "model.safetensors")
    write_ours(project / "holder")
    write(project / "holder" / "source" / "config.json")
    write_ours(project / "with_link")
    (project / "with_link" / "data").symlink_to(project / "notes")
    write_ours(project / "forged")
    (project / "forged" / MARK).write_text('{"files": 5}')
    (project / "listed_only" / "x").mkdir(parents=True)
    (project / "listed_only" / MARK).write_text("[" * 100_000)
    (project / "empty").mkdir()
    (project / "only_empty_folder" / "keep").mkdir(parents=True)
    for name, target in {
        "link_to_ours": "ours", "link_to_notes": "notes", "link_to_empty": "empty", "dangling": "nowhere", "loop": "loop",
        "link_to_here": ".", "link_to_home": "..",
    }.items():  # fmt: skip
        (project / name).symlink_to(target)
    (home / "elsewhere").symlink_to(project)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(project)
    return home
