"""Training beside busy processes: real commands, real load."""

import os
import subprocess
import time

import pytest
from tiny_benchmark import run

from gpt_scratch.benchmarking import loaded_machine


def test_busy_processes_take_a_core_each_and_end():
    def seconds() -> list[float]:
        listing = subprocess.run(["ps", "-eo", "ppid,times,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listing.splitlines()]
        return [
            float(used) for parent, used, args in rows[1:] if parent == str(os.getpid()) and args.endswith("while True: pass")
        ]

    with loaded_machine.busy_processes(2):
        time.sleep(0.5)
        assert len(seconds()) == 2
    assert not seconds()
    with pytest.raises(KeyboardInterrupt), loaded_machine.busy_processes(1):
        raise KeyboardInterrupt
    assert not seconds()


@pytest.mark.slow
def test_rows(script, monkeypatch):
    cores = len(os.sched_getaffinity(0))
    sizes, *_ = loaded_machine.MODELS["0.2M"]
    monkeypatch.setitem(loaded_machine.MODELS, "0.2M", (sizes, 64, 8, 30))
    rows = run(script, "load", "--models", "0.2M", "--repetitions", "1")
    assert [(row["busy"], row["threads"]) for row in rows] == [(b, t) for b in range(cores + 1) for t in ("all", "one", "chosen")]
    assert min(row["slowdown"] for row in rows if row["busy"] == 0) == 1
    assert [row["fair"] for row in rows[::3]] == [(cores + busy) / cores for busy in range(cores + 1)]
    assert all(row["threads_chosen"] in ("1", str(cores)) for row in rows if row["threads"] == "chosen")
    assert not any(row["threads_chosen"] for row in rows if row["threads"] != "chosen")
    assert all(0 < row["lowest"] <= row["s_per_step"] <= row["highest"] for row in rows)
