"""Peak memory of a training step, each contender in a process of its own."""

import pytest
import torch
from tiny_benchmark import TINY, run


@pytest.mark.slow
def test_memory_of_each_in_a_process_of_its_own(script):
    larger_than_any = torch.ones(2**29)  # 2 GiB in this process, which belong to no contender
    rows = run(script, "memory", *TINY, "--vocab_size", "20000", "--shape", "8x64")
    assert [row["contender"] for row in rows] == ["transformers", "gpt_scratch", "gpt_scratch, full loss"]
    assert rows[0]["share_of_transformers"] == 1 and rows[1]["above_mib"] < rows[0]["above_mib"]  # 41 MB of logits, several times
    assert rows[0]["above_mib"] < larger_than_any.nbytes / 2**21
