"""Chooses the questions of the task in dialogues_lm_eval.yaml; lm-evaluation-harness loads this file."""

from datasets import Dataset


def without_history(questions: Dataset) -> Dataset:
    """Those without an earlier exchange."""
    return questions.filter(lambda row: not row.get("history"))
