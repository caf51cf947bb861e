"""The curves that are drawn from a run's log."""

from gpt_scratch.plots import plot_losses, series


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
