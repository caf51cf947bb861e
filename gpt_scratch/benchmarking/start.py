"""Start-up: seconds from a command to its help, the first training step and the first token, and how many of them are imports."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .harness import Contender, measure, summarize

# The quickstart's first step, without anything before it that a user can omit.
FIRST_STEP = (
    "max_steps=1 logging_steps=1 eval_on_start=false eval_strategy=no save_strategy=no sample_tokens=1 eval_train_blocks=0"
)


def start_up(scripts: Path, repetitions: int) -> list[dict[str, Any]]:
    """A row per command, each in new processes, run alternately: seconds until it ends; of training, also until the loss of a step.

    The first row is a program that only imports GPT-2 from transformers, the reference of the speedups.

    Args:
        scripts: the folder with pretrain.py and generate.py, in a clone of the repository.

    Raises:
        UserError: a command fails.
    """
    imports = ("from transformers import GPT2LMHeadModel", "import torch", "import gpt_scratch")
    with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as folder:

        def train() -> dict[str, float]:
            output = ["--output_dir", tempfile.mkdtemp(dir=folder) + "/model"]
            return run_python(
                [str(scripts / "pretrain.py"), str(scripts / "configs/quickstart.yaml"), *output, *FIRST_STEP], scripts.parent
            )

        def command(name: str, *arguments: str) -> Contender:
            return Contender(name, lambda: run_python(arguments, scripts.parent))

        train()
        model = next(Path(folder).glob("*/model"))
        generate = [str(scripts / "generate.py"), str(model), "--prompt", "One day", "--max_new_tokens", "1"]
        contenders = [command(code, "-c", code) for code in imports]
        contenders += [command("generate.py --help", generate[0], "--help"), Contender("pretrain.py, one step", train)]
        contenders += [
            command("generate.py, one token", *generate),
            command("the same, --weights int8", *generate, "--weights", "int8"),
        ]
        return summarize(measure(contenders, repetitions), imports[0])


def run_python(arguments: Sequence[str], folder: Path) -> dict[str, float]:
    """Run Python with these arguments in `folder`; seconds until the line of its output with the loss of the first step, if there is one.

    Raises:
        UserError: it fails, with its last line.
    """
    parts: dict[str, float] = {}
    lines, start = [""], time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 1 of") and not parts:
                parts["first step"] = time.perf_counter() - start
            lines.append(line.strip() or lines[-1])
    if process.returncode:
        raise UserError(f"{' '.join(arguments)} fails: {lines[-1]}")
    return parts
