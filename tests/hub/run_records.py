"""The record that a training run leaves, of which its card is made."""

ENVIRONMENT = {"command": "x.py --a | b", "hardware": "CPU", "versions": {"torch": "1"}, "commit": None, "date": "2026-01-01"}

RECORD = {
    "metrics": {"validation_loss": 1.23456, "validation_perplexity": 3.4368, "tokens_seen": 9_000_000, "steps": 7, "train_loss": None,
                "data": {"copies_removed": 3, "train": {"documents": 2, "tokens": 12345, "classes": {"a": 1}, "parsed": False}}},
    "parameters": 1000, "script_arguments": {"train_file": ["/home/ada/a.txt"], "prompt_style": "alpaca"},
    "training_arguments": {"learning_rate": 5e-5}, "environment": ENVIRONMENT,
}  # fmt: skip


def metrics(**more) -> dict:
    return RECORD | {"metrics": RECORD["metrics"] | more}
