"""Every check of this folder on checkpoints that `write_checkpoints.py` wrote; the program that runs in each environment.

    python tests/versions/check_checkpoint.py FOLDER RESULTS.json

The package must not be importable here: all that a checkpoint needs is in it. `RESULTS.json` holds, by check, "ok", "-: reason" where the release does
not have what is checked, or the style and the last line of the exception.
"""

import importlib.util
import json
import sys
from pathlib import Path

if importlib.util.find_spec("gpt_scratch") is not None:
    sys.exit("gpt_scratch can be imported here: this would prove nothing about its checkpoints")

import checks_of_generation
import checks_of_loading
import checks_of_outputs
import checks_of_training
from case import Absent, Case

STYLES = ("gpt2_like", "llama_like")
CHECKS = (*checks_of_loading.CHECKS, *checks_of_outputs.CHECKS, *checks_of_generation.CHECKS, *checks_of_training.CHECKS)


def last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[-1]}".replace(sys.prefix, "")


def outcome(check, cases: dict[str, Case]) -> str:
    """What one check finds on all styles; the first that fails, if any."""
    for style, case in cases.items():
        try:
            check(case)
        except Absent as reason:
            return f"-: {reason}"
        except Exception as error:
            return f"{style}: {last_line(error)}"
    return "ok"


if __name__ == "__main__":
    root, results = map(Path, sys.argv[1:])
    cases = {style: Case(root, style) for style in STYLES}
    found = {check.__name__.replace("_", " "): outcome(check, cases) for check in CHECKS}
    results.write_text(json.dumps(found, indent=1), encoding="utf-8")
