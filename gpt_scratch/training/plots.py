"""Plots of a run, drawn from the log that Trainer keeps: `trainer_state.json` is all that is needed."""

from collections.abc import Mapping, Sequence
from functools import partial
from operator import mul
from pathlib import Path

from ..files import atomic_path

History = Sequence[Mapping[str, float]]


def series(history: History, key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The pairs (x, value) of all log entries that hold both."""
    points = [(entry[x], entry[key]) for entry in history if key in entry and x in entry]
    return [point[0] for point in points], [point[1] for point in points]


def plot_losses(history: History, path: str | Path, title: str = "", warning_step: int | None = None) -> list[Path]:
    """Training and validation loss against steps, with tokens seen on a second axis; as PNG and PDF.

    Args:
        history: `trainer.state.log_history`.
        path: without a suffix; `.png` and `.pdf` are written, whole or not at all.
        title: heading.
        warning_step: step from which validation loss rose while training loss fell, marked by a line.

    Returns the two files.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # Figure and canvas by hand: pyplot would keep every figure of a long run and may look for a display.
    figure = Figure(figsize=(7, 4.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = {
        "loss": "training (mean since the last point)",
        "train_eval_loss": "training (evaluated)",
        "eval_loss": "validation",
    }
    for key, label in labels.items():
        steps, losses = series(history, key)
        if steps:
            axes.plot(steps, losses, label=label, marker="." if len(steps) < 60 else None, linewidth=1.2)
    if warning_step is not None:
        axes.axvline(warning_step, color="gray", linestyle="--", linewidth=0.8, label=f"overfitting from step {warning_step}")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    steps, tokens = series(history, "num_input_tokens_seen")
    if steps and steps[-1] > 0:
        per_step = tokens[-1] / steps[-1]
        upper = axes.secondary_xaxis("top", functions=(partial(mul, per_step), partial(mul, 1 / per_step)))
        upper.set_xlabel("tokens seen")
    written = []
    for suffix in (".png", ".pdf"):
        target = Path(path).with_suffix(suffix)
        with atomic_path(target) as temporary:
            figure.savefig(temporary)
        written.append(target)
    return written
