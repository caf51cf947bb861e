"""Comparison of classifiers on the same split, over several seeds, with a baseline.

The baseline is TF-IDF with logistic regression (scikit-learn with default settings).
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..data.classification import LabelledTexts
from ..errors import UserError


@dataclass
class Row:
    """One line of the table: a recipe and the figures of each of its runs, as fractions of 1 and seconds."""

    name: str
    test_accuracies: list[float]
    test_f1s: list[float]
    validation_accuracies: list[float]
    trainable_parameters: int
    seconds: list[float]


def row_of_runs(name: str, records: Sequence[dict[str, Any]]) -> Row:
    """From the `metrics.json` of runs that differ in their seed only. F1 is that of the second class ("spam"), macro if there are more."""
    metrics = [record["metrics"] for record in records]
    return Row(
        name,
        [m["test_accuracy"] for m in metrics],
        [m.get("test_f1", m["test_macro_f1"]) for m in metrics],
        [m["validation_accuracy"] for m in metrics],
        metrics[0]["trainable_parameters"],
        [m["train_seconds"] for m in metrics],
    )


def tfidf_baseline(splits: dict[str, LabelledTexts], ids: dict[str, int]) -> Row:
    """TF-IDF + logistic regression, trained and tested on the same rows.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, f1_score
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise UserError('the baseline needs scikit-learn: pip install "gpt_scratch[baseline]"') from error
    start = time.perf_counter()
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    labels = {name: [ids[label] for label in part.labels] for name, part in splits.items()}
    model.fit(splits["train"].texts, labels["train"])
    seconds = time.perf_counter() - start
    predicted = {name: model.predict(splits[name].texts) for name in ("validation", "test")}
    average = "binary" if len(ids) == 2 else "macro"
    return Row(
        "TF-IDF + logistic regression",
        [float(accuracy_score(labels["test"], predicted["test"]))],
        [float(f1_score(labels["test"], predicted["test"], average=average))],
        [float(accuracy_score(labels["validation"], predicted["validation"]))],
        int(model[-1].coef_.size + model[-1].intercept_.size),
        [seconds],
    )


def spread(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """Mean, and lowest to highest where there are several.

    >>> spread([0.97, 0.99], 100), spread([0.5], 100)
    ('98.00 (97.00 to 99.00)', '50.00')
    """
    mean = f"{statistics.fmean(values) * scale:.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values) * scale:.{digits}f} to {max(values) * scale:.{digits}f})"


def comparison_table(rows: Sequence[Row]) -> str:
    """A Markdown table, in the order given."""
    lines = [
        "| recipe | seeds | test accuracy, % | test F1 | validation accuracy, % | trainable parameters | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row.name,
            str(len(row.test_accuracies)),
            spread(row.test_accuracies, 100),
            spread(row.test_f1s, digits=4),
            spread(row.validation_accuracies, 100),
            f"{row.trainable_parameters:,}",
            f"{statistics.median(row.seconds):.{1 if row.seconds[0] < 10 else 0}f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
