"""The table of classifiers: figures over seeds, and the baseline."""

from gpt_scratch.data.classification import LabelledTexts, published_split
from gpt_scratch.training.classifier_comparison import comparison_table, row_of_runs, spread, tfidf_baseline


def record(accuracy: float, seconds: float) -> dict:
    figures = {"test_accuracy": accuracy, "test_f1": accuracy - 0.01, "test_macro_f1": 0.1, "validation_accuracy": 0.5}
    return {"metrics": figures | {"trainable_parameters": 1234567, "train_seconds": seconds}}


def test_mean_and_spread_over_seeds():
    row = row_of_runs("all", [record(0.97, 100), record(0.98, 300), record(0.99, 200)])
    line = comparison_table([row]).splitlines()[-1]
    assert line == ("| all | 3 | 98.00 (97.00 to 99.00) | 0.9700 (0.9600 to 0.9800) | 50.00 (50.00 to 50.00) | 1,234,567 | 200 |")
    assert spread([0.123456], digits=4) == "0.1235"


def part(texts: list[str], labels: list[str]) -> LabelledTexts:
    return LabelledTexts(texts, labels, list(range(1, len(texts) + 1)))


def test_the_baseline_learns_and_is_measured_on_the_test_texts():
    train = part(["win a free prize", "free cash prize now", "see you at home", "are you home now"] * 3, ["s", "s", "h", "h"] * 3)
    held_out = part(["free prize", "home see you", "cash", "zzz"], ["s", "h", "s", "s"])
    row = tfidf_baseline({"train": train, "validation": held_out, "test": held_out}, {"h": 0, "s": 1})
    assert row.test_accuracies[0] in (0.75, 1.0) and row.trainable_parameters == 11  # 10 words and an intercept


def test_the_baseline_on_the_published_split(shared_data):
    parts = published_split(str(shared_data / "SMSSpamCollection.tsv"))
    row = tfidf_baseline(dict(zip(("train", "validation", "test"), parts)), {"ham": 0, "spam": 1})
    assert 0.95 < row.test_accuracies[0] < 0.98
