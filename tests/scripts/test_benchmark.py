"""The command line of the benchmark. What each subject measures: tests/benchmarking/."""

import pytest
from tiny_benchmark import TINY, run

from gpt_scratch.errors import UserError


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rival", "mine"], "expected NAME=path/to/file.py:factory"),
        (["--repetitions", "0"], "--repetitions is 0: it must be between 1"),
    ],
)
def test_bad_input(script, flags, message):
    with pytest.raises(UserError, match=message):
        run(script, "step", *TINY, *flags)
