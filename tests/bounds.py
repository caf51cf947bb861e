"""Run a command or a piece of Python within bounds of time and memory, and measure both: for tests of hostile input.

Torch maps far more address space than it uses, so no limit is set on that: the resident memory of the process and its children is watched, and all of
them are killed at the bound.
"""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import warm

PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass
class Outcome:
    """What a bounded run did. `seconds` is wall time; `mebibytes` the peak of resident memory of the process and its children."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    mebibytes: float
    exceeded: str | None  # the bound at which it was killed

    @property
    def last_line(self) -> str:
        return (self.stderr.strip().splitlines() or [""])[-1]


def tree(pid: int) -> list[int]:
    """A process and all of its descendants; Linux only."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        try:
            for task in Path(f"/proc/{found[-1]}/task").iterdir():
                todo += [int(child) for child in (task / "children").read_text().split()]
        except OSError:  # it ended meanwhile
            continue
    return found


def resident(pid: int) -> int:
    """Resident memory of a process and all of its descendants, in bytes; Linux only."""
    total = 0
    for one in tree(pid):
        try:
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * PAGE
        except OSError:
            continue
    return total


def processor_seconds(pid: int) -> float:
    """Processor time of a process and all of its descendants, those that have ended too; Linux only."""
    ticks = 0
    for one in tree(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))  # proc(5): utime, stime, and the same of children that have ended
    return ticks / os.sysconf("SC_CLK_TCK")


def run_bounded(
    command: Sequence[str | Path],
    seconds: float,
    mebibytes: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    stdin: str = "",
) -> Outcome:
    """Run `command` (for Python code: `[sys.executable, "-c", code]`); it and its children are killed at either bound.

    The bound is on processor time, or on four times as much wall time, since a command waits for its turn on a loaded machine.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (env or {})
    start, peak, exceeded = time.monotonic(), 0, None
    with ExitStack() as files:
        given, stdout, stderr = (files.enter_context(tempfile.TemporaryFile()) for _ in range(3))
        given.write(stdin.encode("utf-8", "surrogateescape"))
        given.seek(0)
        process = warm.start(command, given, stdout, stderr, cwd, environment)
        while True:
            try:
                process.wait(timeout=0.05)
                break
            except subprocess.TimeoutExpired:
                peak = max(peak, resident(process.pid))
                if peak > mebibytes * 2**20:
                    exceeded = f"{peak / 2**20:.0f} MiB"
                elif processor_seconds(process.pid) > seconds or time.monotonic() - start > 4 * seconds:
                    exceeded = f"{seconds:g} s"
                if exceeded:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    break
        said = [warm.written(stream) for stream in (stdout, stderr)]
    return Outcome(process.returncode, *said, time.monotonic() - start, peak / 2**20, exceeded)


def refused_in_one_line(outcome: Outcome, *words: str) -> None:
    """Assert that a command ended within its bounds, with a non-zero status and a last line that begins with "error:" and holds `words`."""
    assert outcome.exceeded is None, f"killed at {outcome.exceeded}: {outcome.stderr[-2000:]}"
    assert outcome.status not in (0, -signal.SIGSEGV, -signal.SIGKILL, -signal.SIGABRT), (outcome.status, outcome.stderr[-2000:])
    assert "Traceback" not in outcome.stderr, outcome.stderr[-3000:]
    assert outcome.last_line.startswith("error:"), outcome.stderr[-2000:]
    for word in words:
        assert word in outcome.last_line, outcome.last_line
