"""Plots of finished runs from `trainer_state.json` or `metrics.json`: loss, perplexity, learning rate, gradient norm."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError, one_line
from ..files import read_json_object
from ..plots import History, curve_style, new_figure, save_figure, series
from .overfitting import overfitting_step

PANELS = {
    "loss (nats per token)": {"loss": "training", "train_eval_loss": "training (evaluated)", "eval_loss": "validation"},
    "perplexity": {"perplexity": "validation"},
    "learning rate": {"learning_rate": ""},
    "gradient norm": {"grad_norm": ""},
}
XS = ("step", "epoch", "num_input_tokens_seen")
LARGEST = 1e30  # largest value that matplotlib can draw; gradient norms in float32 stay below it
STYLES = "training dashed, training (evaluated) dotted, validation solid"


def read_history(name: str) -> list[dict]:
    """Read the log of a run, given its directory or one of the two files.

    Raises:
        UserError: neither file exists, or the file cannot be read.
    """
    path = Path(name)
    candidates = [path / "trainer_state.json", path / "metrics.json"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise UserError(f"{name}: found neither trainer_state.json nor metrics.json")
    try:
        content = read_json_object(found[0])
        if "log_history" not in content and not isinstance(content.get("metrics"), dict):
            raise ValueError("it contains neither log_history nor metrics")
        history = content["log_history"] if "log_history" in content else content["metrics"].get("curve")
        if not isinstance(history, list):
            raise ValueError("the log is not a list")
        for number, entry in enumerate(history):
            _check_entry(entry, f"entry {number} of the log")
        return history
    except (ValueError, OSError) as error:
        raise UserError(f"{found[0]} does not contain the log of a run: {one_line(error)}") from error


def _check_entry(entry: Any, place: str) -> None:
    """Check that the plotted values are numbers that can be drawn; other keys are not read. A loss may be NaN or infinite."""
    if not isinstance(entry, dict) or "step" not in entry:
        raise ValueError(f"{place} is not an object with a step")
    for key in (*XS, *(key for keys in PANELS.values() for key in keys)):
        value = entry.get(key, 0)
        if type(value) not in (int, float):
            raise ValueError(f"{place}: {key} must be a number, not {str(value)[:40]!r}")
        drawn = abs(value) < LARGEST if key in XS else abs(value) < LARGEST or abs(value) == math.inf or value != value
        if not drawn:
            raise ValueError(f"{place}: {key} is {str(value)[:40]}, which is out of range")


def plot_histories(runs: Mapping[str, History], path: str | Path, x: str = "step", title: str = "") -> list[Path]:
    """Plot loss, perplexity, learning rate and gradient norm of several runs; PNG and PDF.

    Each run has a colour, each curve a line style; a single run has the colours of its own plots.
    A vertical line marks the step at which overfitting begins: validation loss rises for three evaluations while training loss falls.

    Args:
        runs: name to log, as returned by [`read_history`].
        path: without a suffix.
        x: column on the horizontal axis: step, epoch or num_input_tokens_seen.

    Raises:
        UserError: no run has both that column and a value to plot.
    """
    drawn = {name: [_with_perplexity(entry) for entry in history] for name, history in runs.items()}
    panels = {
        panel: curves
        for panel, curves in PANELS.items()
        if any(series(history, key, x)[0] for history in drawn.values() for key in curves)
    }
    if not panels:
        raise UserError(f"nothing to plot against {x}: {', '.join(runs)}")
    figure, grid = new_figure(size=(7, 1 + 2.6 * len(panels)), grid=(len(panels), 1))
    alone = len(drawn) == 1
    for axes, (panel, curves) in zip(grid[:, 0], panels.items()):
        for number, (name, history) in enumerate(drawn.items()):
            label = name
            for key, curve in curves.items():
                xs, values = series(history, key, x)
                if xs:
                    style = curve_style(key) if alone else curve_style(key) | {"color": f"C{number}"}
                    axes.plot(xs, values, label=curve if alone else label, linewidth=1.2, **style)
                    label = ""  # only once in the legend
            step = overfitting_step(history) if "loss" in curves else None
            places = [entry[x] for entry in history if entry.get("step") == step and x in entry] if step is not None else []
            if places:
                color, of = ("gray", "") if alone else (f"C{number}", f"{name}: ")
                axes.axvline(places[0], color=color, linestyle="-.", linewidth=0.8, label=f"{of}overfitting from {places[0]:g}")
        axes.set_ylabel(panel)
        axes.grid(alpha=0.3)
        if panel == "perplexity":
            axes.set_yscale("log")
    for text in grid[0, 0].legend(fontsize=8).get_texts():
        text.set_parse_math(False)  # directory names may contain dollar signs
    grid[0, 0].set_title(title or (next(iter(runs)) if alone else STYLES), fontsize=9, parse_math=False)
    grid[-1, 0].set_xlabel(x.replace("num_input_tokens_seen", "tokens seen"))
    return save_figure(figure, path)


def _with_perplexity(entry: Mapping[str, float]) -> dict[str, float]:
    loss = entry.get("eval_loss")
    return {**entry, "perplexity": math.exp(min(loss, 700))} if loss is not None else dict(entry)
