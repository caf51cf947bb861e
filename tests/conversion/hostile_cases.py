"""Open hostile checkpoints one after the other in one process, within bounds of time and memory; each must be refused in one line."""

import json
import sys
from pathlib import Path

from bounds import run_bounded

DRIVER = """
import json, sys, time
from gpt_scratch.conversion.formats import recognize
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.errors import UserError

for line in sys.stdin:
    start = time.perf_counter()
    try:
        recognize(json.loads(line), Options())
        said = None
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.perf_counter() - start]), flush=True)
"""


def run_cases(cases: list[tuple[str, Path, str]], seconds: float, mebibytes: float) -> None:
    outcome = run_bounded(
        [sys.executable, "-c", DRIVER], seconds, mebibytes, stdin="".join(json.dumps(str(p)) + "\n" for _, p, _ in cases)
    )
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    reached = cases[min(len(answers), len(cases) - 1)][0]
    assert outcome.exceeded is None and outcome.status == 0, (reached, outcome.exceeded, outcome.stderr[-2000:])
    for (name, _, words), (said, took) in zip(cases, answers, strict=True):
        assert said is not None and words in said and "\n" not in said and len(said) < 1_000, (name, said)
        assert took < 10, (name, took)
