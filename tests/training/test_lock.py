"""Two runs never share an output directory, and a killed one does not leave it locked."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.training import lock
from gpt_scratch.training.arguments import check_output_directory
from gpt_scratch.training.lock import LOCK, lock_output_directory
from gpt_scratch.training.run import checkpoint_to_resume

# Without what gpt_scratch/__init__.py imports: a fresh process starts in milliseconds.
RUN = f"""
import os, sys, types
for name, folder in (("gpt_scratch", {str(Path(lock.__file__).parents[1])!r}), ("gpt_scratch.training", {str(Path(lock.__file__).parent)!r})):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from gpt_scratch.errors import run_script
from gpt_scratch.training.lock import lock_output_directory
def main():
    lock_output_directory(sys.argv[1])
    if "worker" in sys.argv:
        worker = os.fork()
        if not worker:  # says itself that it runs: by then it has let go of the lock
            import time; print(os.getpid(), flush=True); time.sleep(60)
        os.waitpid(worker, 0)
    print("running", flush=True)
    sys.stdin.readline()
run_script(main)
"""


def start(folder: Path, *more: str, **environment: str) -> subprocess.Popen:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", RUN, folder, *more], text=True, env=os.environ | environment, **pipes)


@pytest.fixture
def running(tmp_path):
    run = start(tmp_path)
    assert run.stdout.readline() == "running\n"
    yield run
    run.kill()
    run.communicate()


def test_a_second_run_is_refused_in_one_line_that_names_the_first(running, tmp_path):
    second = start(tmp_path)
    output, error = second.communicate(timeout=60)
    assert (second.returncode, output) == (2, "") and error.count("\n") == 1
    assert error.startswith(f"error: --output_dir {tmp_path} is in use by another run, process {running.pid} on ")
    with pytest.raises(UserError, match=f"process {running.pid}"):
        check_output_directory(str(tmp_path), resume=None)
    (tmp_path / ".replaced-checkpoint-5").mkdir()
    with pytest.raises(UserError, match=f"process {running.pid}"):
        checkpoint_to_resume(str(tmp_path), "latest")
    assert (tmp_path / ".replaced-checkpoint-5").is_dir()  # the first run is about to replace it


@pytest.mark.fault("a run killed while it holds its directory: signal {}", seconds=120, mebibytes=200)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_lock(running, tmp_path, number):
    running.send_signal(number)
    running.wait(timeout=60)
    assert (tmp_path / LOCK).is_file()
    check_output_directory(str(tmp_path), resume=None)  # nor does the file count as a run


def test_a_killed_run_whose_workers_live_on_leaves_no_lock(tmp_path):
    run = start(tmp_path, "worker")
    worker = int(run.stdout.readline())
    run.kill()
    run.wait(timeout=60)
    try:
        os.kill(worker, 0)  # it lives
        lock_output_directory(str(tmp_path))
    finally:
        os.kill(worker, signal.SIGKILL)
        run.communicate()


def test_the_processes_of_one_run_share_it(running, tmp_path):
    other = start(tmp_path, RANK="1")
    assert other.stdout.readline() == "running\n"
    other.kill()
    other.communicate()


def test_a_process_may_resume_its_own_run(tmp_path):
    lock_output_directory(str(tmp_path))
    lock_output_directory(f"{tmp_path}/.")
    second = start(tmp_path)
    assert "is in use by another run" in second.communicate(timeout=60)[1]
    (tmp_path / LOCK).unlink()  # by a user who wants it gone: the next call locks anew
    lock_output_directory(str(tmp_path))
    assert "is in use by another run" in start(tmp_path).communicate(timeout=60)[1]


def test_without_locks_there_is_a_warning(tmp_path, monkeypatch, capsys):
    def flock(handle, flags):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    lock_output_directory(str(tmp_path))
    assert f"warning: {tmp_path} cannot be locked (No locks available)" in capsys.readouterr().err


def test_a_link_in_place_of_the_lock_is_not_written_through(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run" / LOCK).symlink_to("../mine")
    with pytest.raises(UserError, match="cannot write to --output_dir"):
        lock_output_directory(str(tmp_path / "run"))
    assert (tmp_path / "mine").read_text() == "mine"
