"""The metric opens by its path, without the Hub, and gives the figures of `classification_metrics`."""

import evaluate
import numpy as np

from gpt_scratch.evaluation.classification import METRIC_PATH, classification_metrics


def test_it_opens_by_its_path_and_computes_the_same():
    probabilities, labels = [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], [0, 1, 1]
    metric = evaluate.load(METRIC_PATH)
    metric.add_batch(predictions=probabilities[:2], references=labels[:2])
    metric.add_batch(predictions=probabilities[2:], references=labels[2:])
    found = metric.compute()
    assert found == classification_metrics(np.array(probabilities), np.array(labels)) and found["accuracy"] == 2 / 3
