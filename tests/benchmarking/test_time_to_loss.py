"""Time to a loss, on histories small enough to do by hand."""

import json

import pytest

from gpt_scratch.benchmarking.time_to_loss import seconds_per_step, steps_to, time_to_loss
from gpt_scratch.errors import UserError

HISTORY = [
    {"step": 5, "loss": 9.0, "train_runtime": 10.0},
    {"step": 10, "loss": 8.0, "train_runtime": 20.0},
    {"step": 10, "eval_loss": 6.0, "eval_runtime": 100.0},
    {"step": 15, "loss": 7.0, "train_runtime": 130.0},  # 10 s of steps and 100 s of evaluation
    {"step": 20, "loss": 5.0, "train_runtime": 140.0},
    {"step": 20, "eval_loss": 4.0, "eval_runtime": 100.0},
]


def test_steps_and_seconds_by_hand():
    assert steps_to(HISTORY, 4.5) == 17.5 and steps_to(HISTORY, 3.9) is None and steps_to(HISTORY, 6.5) == 10
    assert seconds_per_step(HISTORY) == 2.0


def test_runs_are_compared_with_the_mean_of_the_baseline(tmp_path):
    def run(name: str, losses: list[float], seconds: float) -> str:
        history = [{"step": step, "loss": 1.0, "train_runtime": step * seconds} for step in range(1, 4)]
        history += [{"step": 10 * (i + 1), "eval_loss": loss} for i, loss in enumerate(losses)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": history}), encoding="utf-8")
        return str(tmp_path / name)

    baseline = [run("a", [5.0, 4.0, 3.0, 2.0], 1.0), run("b", [5.0, 4.0, 3.0, 3.0], 1.5)]  # beside something else
    rows = time_to_loss(baseline, [run("c", [3.0, 2.0], 2.0), run("d", [9.0, 8.0], 3.0)])
    assert [row["target"] for row in rows] == [2.5] * 4
    assert (rows[2]["steps"], rows[2]["seconds"], rows[1]["seconds"]) == (15, 30, 40)
    assert rows[3]["steps"] is None and "times_less" not in rows[3]
    assert rows[2]["times_fewer_steps"] == pytest.approx(40 / 15) and rows[2]["times_less"] == pytest.approx(40 / 30)
    with pytest.raises(UserError, match="found neither trainer_state.json nor metrics.json"):
        time_to_loss(baseline, [str(tmp_path)])
