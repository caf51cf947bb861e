"""When a run counts as overfitting."""

from gpt_scratch.analysis.overfitting import overfitting_step


def history(validation: list[float], training: list[float]) -> list[dict]:
    rows: list[dict] = []
    for step, (v, t) in enumerate(zip(validation, training), start=1):
        rows += [{"step": step, "loss": t}, {"step": step, "eval_loss": v, "num_input_tokens_seen": 100 * step}]
    return rows


def test_overfitting_is_three_rises_in_a_row_while_training_loss_falls():
    falling = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.3, 3.4], falling)) == 5
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.15, 3.3], falling)) is None  # two rises, a fall
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.3, 3.4], [5, 5, 6, 6, 6, 6])) is None  # diverging, not overfitting
    assert overfitting_step([]) is None


def test_evaluated_training_loss_is_preferred_to_the_running_mean():
    rows = history([4, 3, 3.1, 3.2, 3.3], [1, 1, 1, 1, 1])
    for row, value in zip([row for row in rows if "eval_loss" in row], [5, 4, 3, 2, 1]):
        row["train_eval_loss"] = value
    assert overfitting_step(rows) == 5
