"""What is said of each class: counts and rates by hand, in the terminal, in the card and in the plot."""

import pytest

from gpt_scratch.evaluation.classification import class_report, figures_by_class
from gpt_scratch.hub.cards import _classes
from gpt_scratch.training.classification import ClassificationArguments, plot_confusion, warn_of_missed_classes

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
