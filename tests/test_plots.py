"""The curves that are drawn from a run's log."""

import pytest

from gpt_scratch import plots
from gpt_scratch.analysis import runs
from gpt_scratch.analysis.runs import plot_histories
from gpt_scratch.plots import plot_losses, save_lines, series


def test_series_and_plot_files(tmp_path):
    rows = [
        {"step": 1, "loss": 5},
        {"step": 1, "eval_loss": 4, "num_input_tokens_seen": 100},
        {"step": 2, "loss": 4},
        {"step": 2, "eval_loss": 3, "num_input_tokens_seen": 200},
    ]
    assert series(rows, "eval_loss") == ([1, 2], [4, 3])
    assert series(rows, "eval_loss", x="num_input_tokens_seen") == ([100, 200], [4, 3])
    png, pdf = plot_losses(rows, tmp_path / "loss", "title", warning_step=2)
    assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.pdf", "loss.png"]  # no temporary file is left


def test_a_curve_has_one_colour_in_every_plot(monkeypatch):
    figures = []
    for module in (plots, runs):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: figures.append(figure) or [])
    log = [{"step": step, "loss": 3.0, "eval_loss": 4.0, "train_eval_loss": 2.0} for step in (1, 2)]
    plot_losses(log, "loss")
    plot_losses([{name: value for name, value in entry.items() if name != "train_eval_loss"} for entry in log], "loss")
    save_lines(log, {"eval_loss": "validation"}, "step", "loss", "step", "loss")
    runs.plot_histories({"run": log}, "runs")
    looks = [
        {line.get_ydata()[0]: (line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines} for figure in figures
    ]
    assert looks[0] == looks[3] == {3.0: ("C0", "--"), 4.0: ("C1", "-"), 2.0: ("C2", ":")}
    assert looks[1] == {3.0: ("C0", "--"), 4.0: ("C1", "-")} and looks[2] == {4.0: ("C1", "-")}


@pytest.mark.fault("names of runs and models that are formulas which matplotlib cannot read, in plots", seconds=30, mebibytes=300)
def test_names_are_not_read_as_formulas(tmp_path):
    log = [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}]
    name = "a$\\frac$b"
    assert len(plot_histories({name: log}, tmp_path / "runs", title=name)) == 2
    assert len(plot_losses(log, tmp_path / "losses", title=name)) == 2
