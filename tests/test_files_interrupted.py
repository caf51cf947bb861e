"""A directory that is replaced while something fails: an error, a kill, another program that writes there. The old one or the new one is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from project_home import LIGHT, snapshot, write

from gpt_scratch.errors import UserError
from gpt_scratch.files import MARK, atomic_directory


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, UserError])
def test_after_any_error_the_old_directory_is_restored(home, monkeypatch, error):
    before = snapshot(home)
    with pytest.raises(error), atomic_directory("ours", True) as folder:
        (folder / "half").write_text("")
        raise error
    assert snapshot(home) == before
    rename = os.rename

    def fail(source, target):
        if str(source).endswith("-unfinished"):
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(error), atomic_directory("ours", True):
        pass
    assert snapshot(home) == before


def test_the_old_directory_is_kept_until_the_new_one_is_complete(home):
    with atomic_directory("ours", True) as folder:
        (folder / "new").write_text("")
        assert (home / "project" / "ours" / "model.safetensors").is_file()
    assert sorted(os.listdir("ours")) == [MARK, "new"]


def test_a_file_put_there_meanwhile_is_kept(home):
    for name in ("ours", "empty", "new"):
        with pytest.raises(UserError, match="changed by another process"), atomic_directory(name, True):
            write(home / "project" / name / "mine.txt")
        assert (home / "project" / name / "mine.txt").read_text() == "mine"
    assert not list((home / "project").glob(".*"))


KILLED = (
    LIGHT
    + """
import os, sys
from gpt_scratch.files import atomic_directory
rename = os.rename
def kill(source, target):
    if str(source).endswith("-unfinished"):
        os.kill(os.getpid(), 9)
    rename(source, target)
os.rename = kill
with atomic_directory("ours", True):
    pass
"""
)


def test_after_a_kill_between_the_renames_the_next_call_brings_the_old_directory_back(home, capsys):
    assert subprocess.run([sys.executable, "-c", KILLED]).returncode == -9
    assert not Path("ours").exists()
    with pytest.raises(UserError, match="pass --overwrite"), atomic_directory("ours"):
        pytest.fail("the block must not run")
    assert (home / "project" / "ours" / "model.safetensors").read_text() == "ours"
    assert "note: restored" in capsys.readouterr().err


RACER = (
    LIGHT
    + """
import sys, time
from gpt_scratch.errors import run_script
from gpt_scratch.files import atomic_directory
def main():
    with atomic_directory(sys.argv[1], True) as folder:
        for i in range(20):
            (folder / f"{sys.argv[2]}-{i}").write_text("")
        print("ready", flush=True)
        sys.stdin.readline()
run_script(main)
"""
)


@pytest.mark.fault("four programs that write one directory at once: {}", seconds=60, mebibytes=200)
@pytest.mark.parametrize("output", ["new", "ours", "empty"])
def test_one_of_several_writers_succeeds_and_the_others_end_in_one_line(home, output):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    racers = [subprocess.Popen([sys.executable, "-c", RACER, output, f"w{i}"], text=True, **pipes) for i in range(4)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    ends = [(racer.communicate()[1], racer.returncode) for racer in racers]
    assert sorted(code for _, code in ends) == [0, 2, 2, 2]
    assert all(text.startswith("error: ") and text.count("\n") == 1 for text, code in ends if code)
    winner = [code for _, code in ends].index(0)
    assert set(os.listdir(output)) == {MARK, *(f"w{winner}-{i}" for i in range(20))}
    assert not list((home / "project").glob(".*"))
