"""Runs are compared by their logs, which may be anybody's."""

import json

import pytest

from gpt_scratch.analysis import runs
from gpt_scratch.benchmarking.time_to_loss import evaluated_history
from gpt_scratch.errors import UserError


def test_two_runs_differ_in_colour_and_their_curves_in_line(monkeypatch):
    figures = []
    monkeypatch.setattr(runs, "save_figure", lambda figure, path: figures.append(figure) or [])
    log = [{"step": step, "loss": 3.0, "eval_loss": 4.0} for step in (1, 2)]
    runs.plot_histories({"one": log, "two": log}, "runs")
    looks = [(line.get_ydata()[0], line.get_color(), line.get_linestyle()) for line in figures[0].axes[0].lines]
    assert looks == [(3.0, "C0", "--"), (4.0, "C0", "-"), (3.0, "C1", "--"), (4.0, "C1", "-")]
    assert [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()] == ["one", "two"]


def run(script, *argv: str) -> dict:
    analyze = script("analyze")
    return analyze.main(analyze.parse(argv))


def write_run(path, losses: list[float]) -> str:
    path.mkdir()
    history: list[dict] = []
    for step, loss in enumerate(losses, start=1):
        history.append(
            {"step": step, "loss": 5.0 - step, "learning_rate": 0.1 / step, "grad_norm": 1.0, "num_input_tokens_seen": 64 * step}
        )
        history.append({"step": step, "eval_loss": loss, "num_input_tokens_seen": 64 * step})
    (path / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
    return str(path)


def test_runs_are_compared_by_their_logs_alone(script, tmp_path):
    runs = [write_run(tmp_path / "a", [4, 3, 3.1, 3.2, 3.3]), write_run(tmp_path / "b", [4, 3, 2])]
    output = str(tmp_path / "compared")
    assert run(script, "runs", *runs, "--x", "num_input_tokens_seen", "--output", output)["files"] == [
        f"{output}.png",
        f"{output}.pdf",
    ]
    for flags, message in [
        ((str(tmp_path),), "neither trainer_state.json nor metrics.json"),
        ((*runs, "--labels", "one"), "1 different labels for 2 runs"),
        ((runs[0], "--x", "epoch"), "nothing to plot against epoch: a"),
    ]:
        with pytest.raises(UserError, match=message):
            run(script, "runs", *flags)
    (tmp_path / "a" / "trainer_state.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="does not contain the log of a run"):
        run(script, "runs", runs[0])


HOSTILE_LOGS = {
    "a list": "[]",
    "nested 200,000 deep": "[" * 200_000,
    "no JSON": "\x00",
    "a log that is a text": '{"log_history": "text"}',
    "a log of numbers": '{"log_history": [5]}',
    "metrics that are a list": '{"metrics": []}',
    "a curve that is a number": '{"metrics": {"curve": 5}}',
    "an entry without a step": '{"log_history": [{"loss": 1, "eval_loss": 2}]}',
    "a step that is a text": '{"log_history": [{"step": "1", "eval_loss": 2}]}',
    "a step that is NaN": '{"log_history": [{"step": NaN, "eval_loss": 2}]}',
    "a loss that is a list": '{"log_history": [{"step": 1, "eval_loss": [2]}]}',
    "a loss that is null": '{"log_history": [{"step": 1, "eval_loss": null}]}',
    "a loss of 400 digits": '{"log_history": [{"step": 1, "eval_loss": ' + "9" * 400 + "}]}",
    "a step of 5,000 digits": '{"log_history": [{"step": ' + "9" * 5_000 + "}]}",
    "an epoch of 1e300": '{"log_history": [{"step": 1, "epoch": 1e300, "eval_loss": 2}]}',
}


@pytest.mark.fault(
    "a trainer_state.json or metrics.json of a stranger's run, drawn: lists, texts, NaN, huge numbers", seconds=20, mebibytes=400
)
def test_a_hostile_log_is_refused_in_one_line(script, tmp_path):
    for name, text in HOSTILE_LOGS.items():
        (tmp_path / "trainer_state.json").write_text(text, encoding="utf-8")
        with pytest.raises(UserError) as refusal:
            run(script, "runs", str(tmp_path))
        assert (
            "does not contain the log of a run" in str(refusal.value)
            and "\n" not in str(refusal.value)
            and len(str(refusal.value)) < 500
        ), name
        with pytest.raises(UserError):
            evaluated_history(str(tmp_path))
    log = [{"step": step, "eval_loss": loss} for step, loss in enumerate([3.0, float("inf"), float("nan"), 1e29, 2])]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}), encoding="utf-8")
    assert len(run(script, "runs", str(tmp_path), "--output", str(tmp_path / "drawn"))["files"]) == 2
