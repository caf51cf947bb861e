"""Benchmark of padding: short examples of unlike lengths, padded, grouped and packed."""

import pytest
from tiny_benchmark import TINY, run


@pytest.mark.thorough
def test_short_examples_of_different_lengths(script):
    rows = run(script, "padding", *TINY)
    assert [(row["task"], row["contender"].split(", ")[1]) for row in rows] == [
        ("classification", "padded to the longest"),
        ("classification", "padded to the longest"),
        ("classification", "grouped by length"),
        ("instruction", "padded to the longest"),
        ("instruction", "padded to the longest"),
        ("instruction", "grouped by length"),
        ("instruction", "packed"),
    ]
    padding = {(row["task"], row["contender"]): row["padding"] for row in rows}
    assert padding["classification", "gpt_scratch, padded to the longest"] > 0.3
    assert max(value for (_, name), value in padding.items() if "grouped" in name or "packed" in name) < 0.1
