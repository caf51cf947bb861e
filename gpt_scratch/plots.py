"""Plots of a run from Trainer's log, and the figure used by every plot of this package."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import mul
from pathlib import Path
from typing import Any, TypeAlias

from .errors import innermost, one_line
from .files import atomic_path

History: TypeAlias = Sequence[Mapping[str, float]]


def curve_style(key: str) -> dict[str, str]:
    """Colour and line style of a column of Trainer's log, the same in every plot: training blue and dashed, validation orange, evaluated
    training loss green and dotted.
    """
    if key.startswith("train_eval"):
        return {"color": "C2", "linestyle": ":"}
    if key.startswith("eval_") or key == "perplexity":
        return {"color": "C1", "linestyle": "-"}
    return {"color": "C0", "linestyle": "-" if key in ("learning_rate", "grad_norm") else "--"}


def series(history: History, key: str, x: str = "step") -> tuple[list[float], list[float]]:
    """The pairs (x, value) of all log entries that have both."""
    points = [(entry[x], entry[key]) for entry in history if key in entry and x in entry]
    return [point[0] for point in points], [point[1] for point in points]


def plot_losses(history: History, path: str | Path, title: str = "", warning_step: float | None = None) -> list[Path]:
    """Plot training and validation loss against steps, with tokens seen on a second axis; PNG and PDF.

    Args:
        history: `trainer.state.log_history`.
        path: without a suffix; `.png` and `.pdf` are written atomically.
        title: heading.
        warning_step: step from which validation loss rises while training loss falls, marked by a line.

    Returns the two files.
    """
    figure, axes = new_figure()
    labels = {
        "loss": "training (mean since the last point)",
        "train_eval_loss": "training (evaluated)",
        "eval_loss": "validation",
    }
    for key, label in labels.items():
        steps, losses = series(history, key)
        if steps:
            axes.plot(steps, losses, label=label, marker="." if len(steps) < 60 else None, linewidth=1.2, **curve_style(key))
    if warning_step is not None:
        axes.axvline(warning_step, color="gray", linestyle="-.", linewidth=0.8, label=f"overfitting from step {warning_step:g}")
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
    return save_figure(figure, path)


def save_lines(history: History, labels: Mapping[str, str], x: str, path: str | Path, x_label: str, y_label: str) -> list[Path]:
    """Plot one line for each key of `labels` in the log against its column `x`; PNG and PDF."""
    figure, axes = new_figure()
    for key, label in labels.items():
        xs, values = series(history, key, x)
        if xs:
            axes.plot(xs, values, label=label, marker="." if len(xs) < 60 else None, linewidth=1.2, **curve_style(key))
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return save_figure(figure, path)


def new_figure(size: tuple[float, float] = (7, 4.2), grid: tuple[int, int] | None = None):
    """A figure with one set of axes, or with a grid of rows x columns. pyplot is not used: it keeps all figures in memory and may need a
    display.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot() if grid is None else figure.subplots(*grid, squeeze=False)


def save_figure(figure, path: str | Path, suffixes: Sequence[str] = (".png", ".pdf")) -> list[Path]:
    """Write the figure to `path` with each suffix, atomically; returns the files.

    All text in the figure is literal: a `$` in a name does not start a formula.
    """
    from matplotlib.text import Text
    from matplotlib.ticker import LogFormatter

    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    powers = {
        label
        for axis in axes
        if isinstance(axis.get_major_formatter(), LogFormatter)
        for label in axis.get_ticklabels(which="both")
    }
    for text in figure.findobj(Text):
        text.set_parse_math(text in powers)  # tick labels of a logarithmic axis are formulas
    written = []
    for suffix in suffixes:
        target = Path(f"{path}{suffix}")
        with atomic_path(target) as temporary:
            figure.savefig(temporary, format=suffix[1:])
        written.append(target)
    return written


def plot_or_warn(plot: Callable[..., Any], *args: Any) -> None:
    """Call `plot(*args)`; errors become a warning, so that a failed plot does not end a training run."""
    try:
        plot(*args)
    except Exception as error:
        print(f"warning: a plot could not be drawn and is skipped: {one_line(innermost(error))}")
