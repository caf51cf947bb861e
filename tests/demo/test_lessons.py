"""Each tab of the page leads to a lesson of the course, which exists."""

import re
from pathlib import Path

import pytest

from gpt_scratch.demo.lessons import FOLDER, LESSONS, lesson_line

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "gpt_scratch" / "demo" / "page.py").read_text(encoding="utf-8")


def test_every_tab_shows_its_lesson():
    tabs = re.findall(r'gr\.Tab\("(\w+)"', PAGE)
    assert sorted(tabs) == sorted(LESSONS) and sorted(re.findall(r'gr\.Markdown\(lesson_line\("(\w+)"\)\)', PAGE)) == sorted(tabs)


@pytest.mark.parametrize("tab", LESSONS)
def test_the_lesson_exists_under_its_title(tab):
    file, title = LESSONS[tab]
    heading = (ROOT / FOLDER / file).read_text(encoding="utf-8").splitlines()[0]
    assert heading.removeprefix("# ").lower() == title.replace(", ", ": ").lower()
    assert f"{FOLDER}/{file}" in lesson_line(tab, project_page="") and "](" not in lesson_line(tab, project_page="")
    assert f"[{title}](https://example.org/p/blob/main/{FOLDER}/{file})" in lesson_line(tab, "https://example.org/p")


def test_the_page_holds_these_lines():
    pytest.importorskip("gradio")
    from gpt_scratch.demo.page import build_page

    shown = [component["props"].get("value") for component in build_page([]).config["components"]]
    assert all(lesson_line(tab) in shown for tab in LESSONS)
