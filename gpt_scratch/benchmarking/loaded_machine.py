"""Training on a machine whose cores are also used by other programs: seconds per step with torch's default threads, one, and ours."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from ..analysis.runs import read_history
from .time_to_loss import seconds_per_step
from .whole_run import flags, run_until_saved

# (settings of pretrain.py, tokens per row, rows, steps); the second is the quickstart's model.
MODELS: dict[str, tuple[dict[str, int], int, int, int]] = {
    "0.2M": ({"n_embd": 64, "n_layer": 2, "n_head": 2}, 64, 8, 200),
    "1M": ({"n_embd": 128, "n_layer": 4, "n_head": 4}, 128, 8, 100),
    "11M": ({"n_embd": 384, "n_layer": 6, "n_head": 6}, 128, 8, 20),
}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Processes that take a core each."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def loaded_machine(scripts: Path, models: Sequence[str], repetitions: int) -> list[dict[str, Any]]:
    """A row per model, number of other busy processes (0 to the number of cores), and number of threads of pretrain.py.

    Threads: "all" is torch's default, one per core; "chosen" is what pretrain.py chooses by measuring a few steps. Each run is a command of
    its own; the repetitions of all settings alternate.

    Args:
        scripts: the folder with pretrain.py, in a clone of the repository.
        models: keys of `MODELS`.

    Returns:
        `s_per_step` (median over the repetitions of the median step) with its range; `slowdown`, that time divided by the fastest setting's
        without other processes; `fair`, the slowdown of a program that gets its share of the cores: (cores + busy processes) / cores; and
        `threads_chosen`, the number chosen in each repetition.
    """
    cores = len(os.sched_getaffinity(0))
    threads = {"all": str(cores), "one": "1", "chosen": None}
    settings = list(product(models, range(cores + 1), threads))
    times: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    chosen: dict[tuple[str, int, str], list[int]] = defaultdict(list)
    for _ in range(repetitions):
        for setting in settings:
            model, busy, name = setting
            with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as folder, busy_processes(busy):
                run_until_saved(command(scripts, model, f"{folder}/model"), f"{folder}/model", {"OMP_NUM_THREADS": threads[name]})
                times[setting].append(seconds_per_step(read_history(f"{folder}/model")))
                found = re.search(r"^threads: (\d+) of", Path(folder, "log.txt").read_text(encoding="utf-8"), re.MULTILINE)
                chosen[setting] += [int(found[1])] if found else []
    fastest = {model: min(statistics.median(times[model, 0, name]) for name in threads) for model in models}
    return [
        {
            "model": model,
            "busy": busy,
            "threads": name,
            "s_per_step": statistics.median(times[model, busy, name]),
            "lowest": min(times[model, busy, name]),
            "highest": max(times[model, busy, name]),
            "slowdown": statistics.median(times[model, busy, name]) / fastest[model],
            "fair": (cores + busy) / cores,
            "threads_chosen": " ".join(map(str, chosen[model, busy, name])),
        }
        for model, busy, name in settings
    ]


def command(scripts: Path, model: str, output: str) -> list[str]:
    """pretrain.py with one of `MODELS` on the bundled stories, without evaluations, checkpoints and samples."""
    sizes, length, rows, steps = MODELS[model]
    stories = scripts.parent / "gpt_scratch/data/samples/stories.jsonl"
    overrides = ",".join(f"{name}={value}" for name, value in sizes.items())
    settings = {
        "train_file": str(stories),
        "vocab_size": 1000,
        "block_size": length,
        "config_overrides": overrides,
        "per_device_train_batch_size": rows,
        "max_steps": steps,
        "logging_steps": steps // 10,
        "eval_strategy": "no",
        "save_strategy": "no",
        "sample_tokens": 0,
        "use_cpu": True,
        "output_dir": output,
    }
    return [str(scripts / "pretrain.py"), *flags(settings)]
