"""Detects overfitting in Trainer's log."""

from itertools import pairwise

from ..plots import History


def overfitting_step(history: History, evaluations: int = 3) -> float | None:
    """The first step at which validation loss had risen `evaluations` times in a row while training loss fell; or `None`.

    Training loss is `train_eval_loss` if it was measured, else the last `loss` logged before each evaluation.

    >>> rows = [{"loss": 5 - i, "step": i} | {"eval_loss": v, "step": i} for i, v in enumerate([4, 3, 3.1, 3.2, 3.3])]
    >>> overfitting_step(rows)
    4
    """
    points: list[tuple[float, float, float]] = []  # step, validation loss, training loss
    training = None
    for entry in history:
        training = entry.get("train_eval_loss", entry.get("loss", training))
        if "eval_loss" in entry and training is not None:
            points.append((entry["step"], entry["eval_loss"], training))
    for last in range(evaluations, len(points)):
        window = points[last - evaluations : last + 1]
        rising = all(later[1] > earlier[1] for earlier, later in pairwise(window))
        if rising and window[-1][2] < window[0][2]:
            return window[-1][0]
    return None
