"""Metrics of a classifier over a whole split: accuracy, precision, recall, F1, confusion matrix, ROC AUC, calibration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import printable

METRIC_PATH = str(Path(__file__).with_name("classification_metric.py"))


def classification_metrics(scores: np.ndarray, references: np.ndarray, bins: int = 10) -> dict[str, Any]:
    """Compute all metrics from class probabilities.

    Args:
        scores: probabilities (rows, L); each row sums to 1.
        references: true class ids (rows,).
        bins: number of equal-width bins in [0, 1] for the calibration error.

    Returns accuracy; precision, recall and f1 as lists with one value per class (0 where undefined); their unweighted means `macro_f1`,
    `macro_precision` and `macro_recall`; `precision`, `recall` and `f1` of class 1 if there are two classes; `confusion_matrix` (rows:
    true class, columns: predicted class); `roc_auc` (of class 1, or the one-vs-rest mean; omitted if a class does not occur);
    `calibration_error`.

    >>> m = classification_metrics(np.array([[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]]), np.array([0, 1, 1]))
    >>> m["confusion_matrix"], round(m["accuracy"], 3), m["precision"], m["recall"], m["roc_auc"]
    ([[1, 0], [1, 1]], 0.667, 1.0, 0.5, 1.0)
    """
    scores, references = np.asarray(scores, dtype=np.float64), np.asarray(references)
    classes, predictions = scores.shape[1], scores.argmax(-1)
    confusion = np.zeros((classes, classes), dtype=int)
    np.add.at(confusion, (references, predictions), 1)
    hits = confusion.diagonal().astype(float)
    precision = _ratio(hits, confusion.sum(0))
    recall = _ratio(hits, confusion.sum(1))
    f1 = _ratio(2 * precision * recall, precision + recall)
    result: dict[str, Any] = {
        "accuracy": float(hits.sum() / len(references)),
        "macro_precision": float(precision.mean()),
        "macro_recall": float(recall.mean()),
        "macro_f1": float(f1.mean()),
        "precision_per_class": precision.tolist(),
        "recall_per_class": recall.tolist(),
        "f1_per_class": f1.tolist(),
        "confusion_matrix": confusion.tolist(),
        "calibration_error": calibration_error(scores, references, bins),
    }
    if classes == 2:
        result |= {"precision": float(precision[1]), "recall": float(recall[1]), "f1": float(f1[1])}
    if (confusion.sum(1) > 0).all():
        areas = [roc_auc(scores[:, c], references == c) for c in range(classes)]
        result["roc_auc"] = areas[1] if classes == 2 else float(np.mean(areas))
    return result


@dataclass
class ClassFigures:
    """Metrics of one class: number of texts with this label, number of predictions, precision, recall and F1."""

    name: str
    texts: int
    predicted: int
    precision: float
    recall: float
    f1: float


def figures_by_class(confusion: Sequence[Sequence[int]], names: Sequence[str]) -> list[ClassFigures]:
    """Metrics of each class from a confusion matrix (rows: true class, columns: predicted class); 0 where a rate is undefined.

    >>> figures_by_class([[3, 1], [0, 0]], ["a", "b"])[0]
    ClassFigures(name='a', texts=4, predicted=3, precision=1.0, recall=0.75, f1=0.8571428571428571)
    """
    matrix = np.asarray(confusion)
    hits = matrix.diagonal().astype(float)
    precision, recall = _ratio(hits, matrix.sum(0)), _ratio(hits, matrix.sum(1))
    f1 = _ratio(2 * precision * recall, precision + recall)
    return [
        ClassFigures(name, int(matrix[i].sum()), int(matrix[:, i].sum()), float(precision[i]), float(recall[i]), float(f1[i]))
        for i, name in enumerate(names)
    ]


def class_report(figures: Sequence[ClassFigures]) -> str:
    """Printable report with one line per class."""
    shown = [printable(row.name).replace("\n", " ") for row in figures]
    width = min(40, max(5, *map(len, shown)))
    lines = [f"{'class':<{width}}  texts  predicted  precision  recall     F1"]
    for name, row in zip(shown, figures):
        lines.append(
            f"{name:<{width}}  {row.texts:>5,}  {row.predicted:>9,}  {row.precision:>9.1%}  {row.recall:>6.1%}  {row.f1:.3f}"
        )
    return "\n".join(lines)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=np.asarray(below) > 0)


def roc_auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the fraction of (positive, negative) pairs in the right order; ties count half (Mann & Whitney 1947).

    Args:
        scores: (rows,), higher for the positive class.
        positive: booleans (rows,); both values must occur.
    """
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # ranks from 1; tied scores share the mean of their ranks
    positives = int(positive.sum())
    negatives = len(positive) - positives
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(scores: np.ndarray, references: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3): mean gap between confidence and accuracy, weighted by the rows in a bin."""
    confidence, correct = scores.max(-1), scores.argmax(-1) == references
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs(confidence[index == b].mean() - correct[index == b].mean()) * (index == b).mean() for b in np.unique(index)]
    return float(sum(gaps))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)
