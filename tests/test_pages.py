"""The Markdown pages: links lead somewhere, every script has its section, the first page stays short and its layout is true."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).resolve().parents[1]
IGNORED = {"runs", "build", "dist"}  # never part of the repository, and neither are hidden folders
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)  # what is shown as it is holds no links


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in IGNORED]
        found += [Path(folder, name) for name in files if name.endswith(".md")]
    return sorted(found)


PAGES = pages()


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them.

    Lower case, without markup and punctuation, hyphens for spaces, and a number behind what comes again.
    """
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE):
        heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        anchor = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        again = sum(other == anchor or re.fullmatch(re.escape(anchor) + r"-\d+", other) is not None for other in found)
        found.add(f"{anchor}-{again}" if again else anchor)
    return found


def broken_links(page: Path) -> list[str]:
    """The links of a page to files and headings that are not there."""
    broken = []
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):  # elsewhere
            continue
        name, _, anchor = unquote(link).partition("#")
        target = page.parent / name if name else page
        if target.is_dir() and anchor:
            target = target / "README.md"
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert not broken_links(page)


def test_a_broken_link_is_found(tmp_path):
    (tmp_path / "other.md").write_text("# Its `title`, here\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "[a](other.md#its-title-here) [b](other.md#twice-1) [c](#me) ![d](none.png) [e](other.md#none) `[f](code.md)` "
        "[g](https://example.org/none.md)\n\n```\n[h](none.md)\n```\n\n## Me\n",
        encoding="utf-8",
    )
    assert broken_links(page) == ["none.png", "other.md#none"]


def test_every_script_has_a_row_and_a_section():
    text = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in (ROOT / "scripts").glob("[!_]*.py")}
    assert set(re.findall(r"^## (\w+\.py)$", text, re.MULTILINE)) == scripts
    assert set(re.findall(r"^\| \[`(\w+\.py)`\]", text, re.MULTILINE)) == scripts


def test_the_first_page_is_short_and_reaches_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in LINK.findall(text)}
    written = {page for page in PAGES if page.name == "README.md" and page.parent.parent != ROOT / "model_cards"}
    # samples are described where they lie
    assert not written - linked - {ROOT / "README.md", ROOT / "gpt_scratch" / "data" / "samples" / "README.md"}


def test_the_layout_lists_the_folders_in_the_order_of_their_imports():
    """A folder imports those above it, never those below, as the first page says."""
    order = re.findall(r"^  (\w+)/", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    package = ROOT / "gpt_scratch"
    assert sorted(order) == sorted(path.parent.name for path in package.glob("*/__init__.py"))
    upward = [
        f"{path.relative_to(package)} imports {name}"
        for path in package.glob("*/*.py")
        for name in re.findall(r"^\s*from \.\.(\w+)[. ]", path.read_text(encoding="utf-8"), re.MULTILINE)
        if name in order and order.index(name) > order.index(path.parent.name)
    ]
    assert not upward


@pytest.mark.parametrize(
    "page", ["scripts", "scripts/benchmark_results", "model_cards", "gpt_scratch", "gpt_scratch/inference", "tests"]
)
def test_a_long_page_opens_with_a_sentence_and_its_contents(page):
    text = (ROOT / page / "README.md").read_text(encoding="utf-8")
    opening, _, rest = text.partition("\n## ")
    assert re.match(r"# .+\n\n[A-Z].*\.", opening)
    listed = set(re.findall(r"\(#([^)]+)\)", opening))
    assert listed >= anchors("## " + re.sub(r"^###+ .*$", "", rest, flags=re.MULTILINE))
