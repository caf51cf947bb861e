"""The metrics of `gpt_scratch.evaluation.classification` for `evaluate.load`, which opens this file by its path, without the Hub.

metric = evaluate.load(gpt_scratch.evaluation.classification.METRIC_PATH)
metric.compute(predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 1])
"""

# evaluate parses the imports of this file with a regular expression: one per line
import datasets
import evaluate
import numpy

from gpt_scratch.evaluation.classification import classification_metrics


class ClassificationMetric(evaluate.Metric):
    """Takes class probabilities as predictions, one list per row, and class ids as references."""

    def _info(self):
        features = {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy, precision, recall, F1, confusion matrix, ROC AUC and calibration error of a classifier.",
            citation="",
            inputs_description="predictions: class probabilities, a list for each row; references: class ids.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions, references):
        return classification_metrics(numpy.array(predictions), numpy.array(references))
