"""Start-up: the commands are those of a user, and one that fails is reported."""

from pathlib import Path

import pytest
from tiny_benchmark import run

from gpt_scratch.benchmarking.start import run_python
from gpt_scratch.errors import UserError


@pytest.mark.slow
def test_start_up(script):
    rows = {(row["contender"], row["part"]): row["lowest_s"] for row in run(script, "start", "--repetitions", "1")}
    assert rows["generate.py --help", "total"] < rows["import torch", "total"]
    assert 0 < rows["pretrain.py, one step", "first step"] < rows["pretrain.py, one step", "total"]
    assert {name for name, _ in rows} >= {"import gpt_scratch", "generate.py, one token", "the same, --weights int8"}


@pytest.mark.thorough
def test_first_loss_and_failure_of_a_command(tmp_path):
    assert run_python(["-c", "print(1)"], tmp_path) == {}
    parts = run_python(["-c", "import time; print('step 1 of 9: loss 6.9', flush=True); time.sleep(2)"], Path())
    assert 0 < parts["first step"] < 2
    with pytest.raises(UserError, match="-c .* fails: SystemExit: nothing to do|nothing to do"):
        run_python(["-c", "raise SystemExit('nothing to do')"], tmp_path)
