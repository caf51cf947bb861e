"""Beside the scripts: their flags are read before torch and transformers are imported, so that `--help` and mistakes take no time."""

import importlib.util
import sys
from pathlib import Path


def check(script: str, description: str | None) -> None:
    """Print the help or refuse the command line, and exit; or else return, with the package imported as ever.

    The package's own `__init__` is what imports torch and transformers: it runs last.
    """
    spec = importlib.util.find_spec("gpt_scratch")
    assert spec is not None and spec.loader is not None
    package = sys.modules["gpt_scratch"] = importlib.util.module_from_spec(spec)
    from gpt_scratch.command_line import check_command_line
    from gpt_scratch.errors import run_script

    run_script(lambda: check_command_line(Path(script).stem, sys.argv[1:], description))
    spec.loader.exec_module(package)
