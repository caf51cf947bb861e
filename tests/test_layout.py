"""A module's tests lie at its path with `test_` before its name, or README.md says where: both trees and both tables are compared."""

import re
from fnmatch import fnmatch
from pathlib import Path

TESTS = Path(__file__).resolve().parent
PAGE = (TESTS / "README.md").read_text(encoding="utf-8")
PACKAGE, SCRIPTS = TESTS.parent / "gpt_scratch", TESTS.parent / "scripts"
MODULES = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py") if path.name != "__init__.py"}
MODULES |= {path.relative_to(SCRIPTS.parent).with_suffix("") for path in SCRIPTS.glob("[!_]*.py")}
FILES = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py") if "fixtures" not in path.parts}
TABLE = {
    Path(module): re.findall(r"`([^`]+)`", files)
    for module, files in re.findall(
        r"^\| `([\w/]+)` \| (`.+`) \|$", PAGE.partition("### Tested through")[2].partition("\n## ")[0], re.MULTILINE
    )
}


def file_of(module: Path) -> Path:
    return module.with_name(f"test_{module.name}.py")


def test_each_module_has_its_file_or_a_row_of_the_table():
    without = {module for module in MODULES if file_of(module) not in FILES}
    assert TABLE.keys() == without, "missing in the table, or there without need: " + ", ".join(map(str, TABLE.keys() ^ without))


def test_the_table_names_files_that_exist():
    assert all(files for files in TABLE.values())
    assert {Path(file) for files in TABLE.values() for file in files} <= FILES


def test_each_file_is_named_after_a_module_or_the_page_names_it():
    subjects = re.findall(
        r"`([\w/*]*test_[\w*]+\.py)`", PAGE.partition("Tests of a subject")[2].partition("Shared code and data:")[0]
    )
    stems = {str(file_of(module).with_suffix("")) for module in MODULES}
    others = {str(file) for file in FILES if not any(f"{file.with_suffix('')}_".startswith(f"{stem}_") for stem in stems)}
    lost = {file for file in others if not any(fnmatch(file, pattern) for pattern in subjects)}
    assert not lost, f"neither a module nor README.md says what they test: {sorted(lost)}"
    gone = [pattern for pattern in subjects if not any(fnmatch(file, pattern) for file in others)]
    assert not gone, f"README.md names files that are not there, or have a module's name: {gone}"
