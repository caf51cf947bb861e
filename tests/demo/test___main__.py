"""The flags of the page."""

import pytest

from gpt_scratch.demo.__main__ import main, parse
from gpt_scratch.errors import UserError

BOUNDS = {"seconds": 20, "mebibytes": 300}


@pytest.mark.fault("a page for others without models, and ports that are none", **BOUNDS)
def test_flags():
    for flags, message in (
        (["--host", "0.0.0.0"], "give the models with --model"),
        (["--port", "0"], "--port is 0"),
        (["--port", "70000"], "--port is 70000"),
    ):
        with pytest.raises(UserError, match=message):
            main(parse(flags))
