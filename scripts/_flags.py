"""Checks the flags of the scripts before torch and transformers are imported, so that `--help` and errors appear at once."""

import importlib.util
import sys
from pathlib import Path


def check(script: str, description: str | None) -> None:
    """Print the help or an error and exit, or return with the package imported as usual.

    The `__init__` of the package imports torch and transformers, so it is executed last.
    """
    spec = importlib.util.find_spec("gpt_scratch")
    assert spec is not None and spec.loader is not None
    package = sys.modules["gpt_scratch"] = importlib.util.module_from_spec(spec)
    from gpt_scratch.command_line import check_command_line
    from gpt_scratch.errors import run_script

    run_script(lambda: check_command_line(Path(script).stem, sys.argv[1:], description))
    spec.loader.exec_module(package)
