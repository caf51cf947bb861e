"""Which directories may be replaced: only those that this package wrote. Each refusal leaves every file as it is.

Everything happens in a temporary directory that is also the home directory; places outside of it are only asked about, never written.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from project_home import LIGHT, snapshot, write, write_ours

from gpt_scratch import files
from gpt_scratch.errors import UserError
from gpt_scratch.files import MARK, atomic_directory

# How the output is spelled (HOME stands for the home directory) -> what the refusal says of it.
REFUSED = {
    ".": "is the current directory",
    "./": "is the current directory",
    "": "is the current directory",
    "./.": "is the current directory",
    "notes/..": "is the current directory",
    "../project": "is the current directory",
    "HOME/project": "is the current directory",
    "HOME/elsewhere/": "is a link to",
    "HOME/elsewhere/.": "is a link to",
    "HOME/elsewhere/notes/..": "is the current directory",
    "link_to_here": "is a link to",
    "..": "contains the current directory",
    "../": "contains the current directory",
    "a/../..": "contains the current directory",
    "link_to_home": "is a link to",
    "link_to_home/project/..": "contains the current directory",
    "../..": "contains the current directory",
    "HOME": "contains the current directory",
    "~": "contains the current directory",
    "~/project": "is the current directory",
    "notes": "contains 'notes.txt'",
    "notes/": "contains 'notes.txt'",
    "./notes/.": "contains 'notes.txt'",
    "a/b/../../notes": "contains 'notes.txt'",
    "HOME/elsewhere/notes": "contains 'notes.txt'",
    "a": "contains 'b'",
    "hub_model": "contains 'config.json', 'model.safetensors'",
    "mixed": "contains 'diary.txt'",
    "run": "contains 'checkpoint-5'",
    "with_link": "contains 'data'",
    "forged": "contains '.gpt_scratch.json', 'model.safetensors'",
    "listed_only": "contains '.gpt_scratch.json', 'x'",
    "only_empty_folder": "contains 'keep'",
    "link_to_ours": "is a link to ours",
    "link_to_ours/": "is a link to ours",
    "link_to_ours/.": "is a link to ours",
    "link_to_notes//": "is a link to notes",
    "link_to_empty": "is a link to empty",
    "dangling": "is a link to nowhere",
    "loop": "is a link to loop",
    "loop/out": "cannot write to",
    "thesis.tex": "is not a directory",
    "thesis.tex/": "is not a directory",
    "thesis.tex/out": "cannot write to",
    "x" * 300: "cannot write to",
    "x" * 250: "cannot write to",
    "source": "is the source",
    "source/": "is the source",
    "./source/../source": "is the source",
    "HOME/elsewhere/source": "is the source",
    "source/inside": "is inside the source",
    "HOME/elsewhere/source/inside": "is inside the source",
    "/proc/self/cwd": "is a link to",
    "/proc/self/cwd/.": "is a link to",
    "/proc/self/cwd/notes": "contains 'notes.txt'",
    "/proc/self/cwd/source": "is the source",
    "/proc/self/cwd/..": "contains the current directory",
    "/proc/self/rootHOME/project": "is the current directory",
    "/proc/self/fd": "which this package did not write",
    "caf\u00e9": "contains 'mine.txt'",
    "ours ": "white space",
    " ours": "white space",
    "ours\n": "white space",
    "ours/\n": "white space",
    "source\t": "white space",
    " ": "white space",
    "ours\0": "null byte",
}


@pytest.mark.fault("--overwrite of {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("shape", REFUSED)
def test_other_directories_are_not_replaced(home, shape):
    before = snapshot(home.parent)
    with pytest.raises(UserError) as refusal, atomic_directory(shape.replace("HOME", str(home)), True, ["source"]):
        pytest.fail("the block must not run")
    assert REFUSED[shape] in str(refusal.value) and "\n" not in str(refusal.value)
    assert snapshot(home.parent) == before


# How the output is spelled -> where it is written.
WRITTEN = {
    "new": "new",
    "new/": "new",
    "./new": "new",
    "new/deep/er": "new/deep/er",
    "~/new": "../new",
    "HOME/project/new": "new",
    "HOME/elsewhere/new": "new",
    "nowhere/../new": "new",
    "ours": "ours",
    "ours/": "ours",
    "./ours/.": "ours",
    "notes/../ours": "ours",
    "../project/ours": "ours",
    "HOME/elsewhere/ours": "ours",
    "empty": "empty",
    "empty/": "empty",
    "Ours": "Ours",
    "[o]urs": "[o]urs",
    "two words": "two words",
    "--overwrite": "--overwrite",
    "source/new": "source/new",
}


@pytest.mark.parametrize("shape", WRITTEN)
def test_what_is_new_empty_or_ours_is_written(home, shape):
    project, place = home / "project", os.path.normpath(f"project/{WRITTEN[shape]}")
    gone = {name for name in snapshot(home) if name.startswith(f"{place}/")}
    expected = {name: text for name, text in snapshot(home).items() if name not in gone}
    with atomic_directory(shape.replace("HOME", str(home)), True, ["source"]) as folder:
        (folder / "written").write_text("new", encoding="utf-8")
    assert set(os.listdir(project / WRITTEN[shape])) == {"written", MARK}
    found = snapshot(home)
    assert expected.items() <= found.items()
    assert {name for name in found.keys() - expected.keys() if not place.startswith(name)} <= {
        f"{place}/written",
        f"{place}/{MARK}",
    }


@pytest.mark.fault("--overwrite of the root or mount point {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("place", ["/", "//", "/..", "/proc", "/proc/", "/sys", "/dev"])
def test_roots_and_mount_points_are_not_replaced(place, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if not os.path.ismount(place):
        pytest.skip(f"{place} is no mount point here")
    with pytest.raises(UserError, match="is a mount point, which is never replaced"):
        files.check_target(place, overwrite=True)


MOUNT = (
    LIGHT
    + """
import os, sys
from gpt_scratch.errors import UserError
from gpt_scratch.files import atomic_directory
for path in ("empty", "ours"):
    try:
        with atomic_directory(path, True) as folder:
            (folder / "new").write_text("")
        print("written")
    except UserError as error:
        print(error)
"""
)


@pytest.mark.skipif(shutil.which("unshare") is None, reason="mounting in a test needs unshare")
@pytest.mark.parametrize("kind", ["--bind {0}/notes {1}", "-t tmpfs none {1}"])
def test_a_mount_at_or_in_the_output_is_not_replaced(home, kind):
    project = home / "project"
    (project / "ours" / "adapter").mkdir()
    marked = json.loads((project / "ours" / MARK).read_text())["files"]
    (project / "ours" / MARK).write_text(json.dumps({"files": [*marked, "adapter", "adapter/notes.txt"]}))
    mounts = " && ".join("mount " + kind.format(project, project / name) for name in ("empty", "ours/adapter"))
    before = snapshot(home)
    (home.parent / "program.py").write_text(MOUNT, encoding="utf-8")
    command = f"{mounts} || exit 99; {sys.executable} {home.parent / 'program.py'}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], cwd=project, capture_output=True, text=True)
    if done.returncode in (1, 99) and "unshare" in done.stderr + "unshare" * (done.returncode == 99):
        pytest.skip(f"no mounts here: {done.stderr}")
    assert "written" not in done.stdout and done.stdout.count("\n") == 2, done
    assert snapshot(home) == before


def test_an_output_that_holds_the_source_is_not_replaced(home):
    """The source itself, by other names: a file in it, a prefix of TensorFlow's, a link to it, links in it."""
    project = home / "project"
    write_ours(project / "weights", "model.ckpt.index", "model.pth")
    (project / "linked").symlink_to("weights")
    (project / "snapshot").mkdir()
    (project / "snapshot" / "model.safetensors").symlink_to("../weights/model.pth")
    before = snapshot(home)
    for source in ("weights/model.pth", "weights/model.ckpt", "linked", "linked/model.pth", "snapshot", "~/project/weights"):
        with pytest.raises(UserError, match="the source"), atomic_directory("weights", True, [None, source]):
            pytest.fail("the block must not run")
    assert snapshot(home) == before
    with atomic_directory("weights", True, [None, "user/name-on-the-hub"]):
        pass


def test_another_unicode_normalization_is_another_directory_or_the_same_and_nothing_is_lost(home):
    """Of the same letters: e with an accent is one character, or two. Linux takes them for two names, macOS for one."""
    same = Path("cafe\u0301").exists()
    with pytest.raises(UserError) if same else contextlib.nullcontext(), atomic_directory("cafe\u0301", True):
        pass
    assert Path("caf\u00e9/mine.txt").read_text(encoding="utf-8") == "mine"


def test_a_hard_link_of_what_is_replaced_keeps_its_file(home):
    write_ours(home / "project" / "linked", "weights.pth")
    os.link("linked/weights.pth", "source/weights.pth")
    with atomic_directory("linked", True, ["source"]) as folder:
        (folder / "weights.pth").write_text("new", encoding="utf-8")
    assert Path("source/weights.pth").read_text(encoding="utf-8") == "ours"
    with pytest.raises(UserError, match="the source"), atomic_directory("linked", True, ["linked/weights.pth"]):
        pytest.fail("the block must not run")


def test_on_a_disk_that_ignores_case_another_spelling_is_the_same_directory(home, monkeypatch):
    """Directories are compared by device and inode. A hard link of a directory cannot be made here: samefile stands in for the disk."""
    (home / "project" / "SOURCE").mkdir()
    same = os.path.samefile
    monkeypatch.setattr(os.path, "samefile", lambda a, b: same(a, b) or str(a).lower() == str(b).lower())
    with pytest.raises(UserError, match="is the source"):
        files.check_target("SOURCE", True, ["source"])


def test_a_conversion_by_the_first_release_is_replaced_and_nothing_like_it(home):
    old = home / "project" / "old"
    write(
        *(old / name for name in ("config.json", "model.safetensors", "modeling_gpt_scratch.py", "tokenizer.json", "README.md"))
    )
    with pytest.raises(UserError, match="contains 'README.md', 'config.json'"):
        files.check_target("old", True)
    (old / "conversion.json").write_text('{"format": "hf", "head": "lm", "proof": {}}')
    write(old / "mine.txt")
    with pytest.raises(UserError, match="contains 'mine.txt', which this"):
        files.check_target("old", True)
    (old / "mine.txt").unlink()
    with atomic_directory("old", True):
        pass
    assert os.listdir(old) == [MARK]
