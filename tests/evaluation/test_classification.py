"""Figures of a classifier against values worked out by hand, ties and missing classes included."""

import numpy as np
import pytest

from gpt_scratch.evaluation.classification import (
    calibration_error,
    class_report,
    classification_metrics,
    figures_by_class,
    roc_auc,
    softmax,
)
from gpt_scratch.hub.cards import _classes
from gpt_scratch.training.classification import ClassificationArguments, plot_confusion, warn_of_missed_classes


def test_figures_of_two_classes_by_hand():
    """Six rows: 2 true negatives, 1 false positive, 2 false negatives, 1 true positive. No two figures are equal by accident."""
    spam = np.array([0.1, 0.3, 0.8, 0.2, 0.4, 0.9])
    metrics = classification_metrics(np.stack([1 - spam, spam], -1), np.array([0, 0, 0, 1, 1, 1]))
    assert metrics["confusion_matrix"] == [[2, 1], [2, 1]]  # true class down, predicted class across
    assert metrics["accuracy"] == pytest.approx(3 / 6)
    assert (metrics["precision"], metrics["recall"]) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert metrics["f1"] == pytest.approx(2 / 5)
    assert metrics["precision_per_class"] == pytest.approx([2 / 4, 1 / 2])
    assert metrics["recall_per_class"] == pytest.approx([2 / 3, 1 / 3])
    assert metrics["f1_per_class"] == pytest.approx([4 / 7, 2 / 5])
    assert metrics["macro_precision"] == pytest.approx(1 / 2) and metrics["macro_recall"] == pytest.approx(1 / 2)
    assert metrics["macro_f1"] == pytest.approx((4 / 7 + 2 / 5) / 2)
    # Of 9 pairs (spam, ham) 6 are in the right order: 0.2 above 0.1; 0.4 above 0.1 and 0.3; 0.9 above all.
    assert metrics["roc_auc"] == pytest.approx(6 / 9)


def test_macro_figures_weigh_classes_and_not_rows():
    """Three classes of 4, 1 and 1 rows; the third is never predicted."""
    references = np.array([0, 0, 0, 0, 1, 2])
    metrics = classification_metrics(np.eye(3)[[0, 0, 0, 1, 1, 0]] * 0.8 + 0.2 / 3, references)
    assert metrics["confusion_matrix"] == [[3, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert metrics["precision_per_class"] == pytest.approx([3 / 4, 1 / 2, 0])
    assert metrics["recall_per_class"] == pytest.approx([3 / 4, 1, 0])
    assert metrics["f1_per_class"] == pytest.approx([3 / 4, 2 / 3, 0])
    assert metrics["macro_f1"] == pytest.approx((3 / 4 + 2 / 3) / 3)
    assert metrics["macro_precision"] == pytest.approx(5 / 12) and metrics["macro_recall"] == pytest.approx(7 / 12)
    # One class against the rest, ties counting half: 3 of 4 + 1/2 + ... of 8 pairs; 4 + 1/2 of 5; half of 5.
    assert metrics["roc_auc"] == pytest.approx(((3 * 1.5 + 0.5) / 8 + (4 + 0.5) / 5 + 2.5 / 5) / 3)
    assert not {"precision", "recall", "f1"} & metrics.keys()


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 1, 0, 1], 0.5),  # ties count half
        ([0.3, 0.5, 0.5, 0.7], [0, 0, 1, 1], 3.5 / 4),
        ([0.5, 0.5, 0.2], [1, 0, 0], 1.5 / 2),
        ([0.5, 0.2, 0.5], [0, 0, 1], 1.5 / 2),  # whatever the order of the rows
    ],
)
def test_roc_auc_by_hand(scores, positive, area):
    assert roc_auc(np.array(scores), np.array(positive, dtype=bool)) == pytest.approx(area)


def test_roc_auc_counts_pairs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores, positive = rng.integers(0, 5, 30) / 4, rng.permutation([True] * 11 + [False] * 19)
        ours, theirs = scores[positive][:, None], scores[~positive][None]
        assert roc_auc(scores, positive) == pytest.approx(float(((ours > theirs) + 0.5 * (ours == theirs)).mean()))


def test_roc_auc_is_left_out_where_a_class_is_missing():
    assert "roc_auc" not in classification_metrics(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0]))


def test_calibration_is_the_mean_gap_weighted_by_the_rows_of_a_bin():
    """Bins of a tenth: three rows at 0.55, of which one is right; one at 0.95, right."""
    scores, references = np.array([[0.55, 0.45]] * 3 + [[0.05, 0.95]]), np.array([0, 1, 1, 1])
    assert calibration_error(scores, references) == pytest.approx(3 / 4 * (0.55 - 1 / 3) + 1 / 4 * 0.05)
    assert calibration_error(scores, references, bins=1) == pytest.approx(abs((3 * 0.55 + 0.95) / 4 - 2 / 4))
    assert calibration_error(np.array([[1.0, 0.0]]), np.array([0])) == 0  # the last bin holds 1


def test_softmax_by_hand():
    assert softmax(np.array([[0.0, np.log(3)], [1000.0, 1000.0]])) == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5]]))


NAMES = ["Lob", "Kündi|gung", "$onst\n"]

MATRIX = [[6, 2, 0], [1, 3, 0], [2, 0, 0]]  # true class down, predicted across


def test_rates_by_hand():
    first, second, third = figures_by_class(MATRIX, NAMES)
    assert (first.texts, first.predicted, first.precision, first.recall) == (8, 9, pytest.approx(6 / 9), 0.75)
    assert first.f1 == pytest.approx(2 * (6 / 9) * 0.75 / (6 / 9 + 0.75))
    assert (second.texts, second.predicted, second.precision, second.recall) == (4, 5, 0.6, 0.75)
    assert (third.texts, third.predicted, third.precision, third.recall, third.f1) == (2, 0, 0.0, 0.0, 0.0)


def test_a_line_for_each_class():
    lines = class_report(figures_by_class(MATRIX, NAMES)).split("\n")
    assert lines[0].split() == ["class", "texts", "predicted", "precision", "recall", "F1"] and len(lines) == 4
    assert lines[1].split() == ["Lob", "8", "9", "66.7%", "75.0%", "0.706"]
    assert len({len(line) for line in lines}) == 1  # columns stand below one another


def test_the_card_holds_the_same_table():
    table = _classes({"test_confusion_matrix": MATRIX, "labels": NAMES})
    assert "| Lob | 8 | 9 | 0.667 | 0.750 | 0.706 |" in table and "| Kündi\\|gung | 4 | 5 |" in table
    assert _classes({}) == ""


def test_a_class_that_is_never_recognised_is_named_with_the_flag_that_helps():
    said = warn_of_missed_classes(MATRIX, NAMES, ClassificationArguments())
    assert (
        said is not None
        and "'$onst\\n' (2 texts, never predicted)" in said
        and said.endswith("--class_weights gives rare classes more weight")
    )
    assert "--balance_classes" in (warn_of_missed_classes(MATRIX, NAMES, ClassificationArguments(class_weights=True)) or "")
    assert "(2 texts, predicted 1 times)" in (
        warn_of_missed_classes([[3, 1], [2, 0]], ["a", "b"], ClassificationArguments()) or ""
    )
    both = ClassificationArguments(class_weights=True, balance_classes=True)
    assert "--num_train_epochs" in (warn_of_missed_classes(MATRIX, NAMES, both) or "")
    assert warn_of_missed_classes([[1, 0], [0, 1]], ["a", "b"], ClassificationArguments()) is None
    assert warn_of_missed_classes([[1, 0], [0, 0]], ["a", "b"], ClassificationArguments()) is None  # there was none to find


def test_the_plot_shows_shares_counts_rates_and_whole_labels(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("gpt_scratch.training.classification.save_figure", lambda figure, path: drawn.append(figure))
    long = ["Beschwerde über eine Lieferung, die nicht ankam", "b", "c"]
    plot_confusion(MATRIX, long, tmp_path / "confusion")
    axes, bar = drawn[0].axes
    assert axes.images[0].get_array().tolist() == [[0.75, 0.25, 0], [0.25, 0.75, 0], [1, 0, 0]]
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == ["6\n75%", "2\n25%", "0\n0%"]
    down, across = axes.get_yticklabels()[0].get_text(), axes.get_xticklabels()[0].get_text()
    assert (
        " ".join(down.split()) == f"{long[0]} 8 texts recall 75%, F1 0.71"
        and " ".join(across.split()) == f"{long[0]} precision 67%"
    )
    assert axes.get_title() and bar.get_ylabel() == "share of the row"
    figure = drawn[0]
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.title):
        box = label.get_window_extent()
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, label.get_text()
