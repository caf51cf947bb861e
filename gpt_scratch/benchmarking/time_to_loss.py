"""Time to a target loss: compares finished pretraining runs by the number of steps and the seconds per step."""

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..analysis.runs import read_history
from ..errors import UserError


def evaluated_history(folder: str) -> list[dict[str, Any]]:
    """Trainer's log of a run, given its directory.

    Raises:
        UserError: the directory contains no log with evaluations.
    """
    history = read_history(folder)
    if not any("eval_loss" in entry for entry in history):
        raise UserError(f"{folder}: the log contains no eval_loss: train with --eval_strategy steps")
    if not all(earlier["step"] <= later["step"] for earlier, later in pairwise(history)):
        raise UserError(f"{folder}: the steps in its log are not in ascending order")
    return history


def steps_to(history: Sequence[dict[str, Any]], target: float) -> float | None:
    """Steps until the validation loss first reaches `target`, interpolated between evaluations; `None` if it never does."""
    evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
    if evaluations[0][1] <= target:
        return float(evaluations[0][0])
    for (step, loss), (next_step, next_loss) in pairwise(evaluations):
        if next_loss <= target:
            return step + (next_step - step) * (loss - target) / (loss - next_loss)
    return None


def seconds_per_step(history: Sequence[dict[str, Any]]) -> float:
    """Median over the intervals between two log entries without an evaluation in between."""
    evaluated = {entry["step"] for entry in history if "eval_loss" in entry}
    logs = [(entry["step"], entry["train_runtime"]) for entry in history if "loss" in entry and "train_runtime" in entry]
    rates = [
        (seconds - earlier) / (step - before)
        for (before, earlier), (step, seconds) in pairwise(logs)
        if not any(before <= evaluation < step for evaluation in evaluated)
    ]
    return statistics.median(rates) if rates else float("nan")


def time_to_loss(baseline: Sequence[str], candidates: Sequence[str]) -> list[dict[str, Any]]:
    """A row per run. The target is the mean of the losses at which the baseline runs end.

    Args:
        baseline, candidates: output directories, of one recipe each: seeds or learning rates. The time of a step is then the same, and
            `seconds` are the steps of a run times the lowest median of its recipe: more was the load of a shared machine.

    Returns:
        `times_less` and `times_fewer_steps` against the mean of the baseline's.
    """
    histories = {folder: evaluated_history(folder) for folder in [*baseline, *candidates]}
    target = statistics.fmean([e["eval_loss"] for e in histories[folder] if "eval_loss" in e][-1] for folder in baseline)
    rates = {folder: seconds_per_step(history) for folder, history in histories.items()}
    rows = []
    for folder, history in histories.items():
        evaluations = [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
        # Some baseline runs end above the mean of their losses: for these, the whole run counts.
        steps = evaluations[-1][0] if folder in baseline else steps_to(history, target)
        rate = min(rates[other] for other in (baseline if folder in baseline else candidates))
        rows.append(
            {
                "run": Path(folder).name,
                "final_loss": evaluations[-1][1],
                "lowest_loss": min(loss for _, loss in evaluations),
                "target": target,
                "steps": steps,
                "seconds_per_step": rates[folder],
                "seconds": None if steps is None else steps * rate,
            }
        )
    theirs = rows[: len(baseline)]
    for row in rows:
        if row["steps"] is not None:
            row["times_fewer_steps"] = statistics.fmean(other["steps"] for other in theirs) / row["steps"]
            row["times_less"] = statistics.fmean(other["seconds"] for other in theirs) / row["seconds"]
    return rows
