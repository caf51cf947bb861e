"""Figures of a classifier against values worked out by hand, ties and missing classes included."""

import numpy as np
import pytest

from gpt_scratch.evaluation.classification import calibration_error, classification_metrics, roc_auc, softmax


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
