"""Intervals against published values, votes by hand."""

import math

import pytest

from gpt_scratch.evaluation.accuracy import (
    accuracy_against_samples,
    accuracy_by_kind,
    as_table,
    best,
    majority,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "count", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, table I, method 3
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilsons_interval_as_published(right, count, expected):
    assert wilson_interval(right, count) == pytest.approx(expected, abs=5e-5)


def test_the_interval_solves_its_equation():
    for right, count in [(3, 7), (50, 200), (799, 800)]:
        for end in wilson_interval(right, count, z=2.0):
            assert abs(right / count - end) == pytest.approx(2.0 * math.sqrt(end * (1 - end) / count))
    with pytest.raises(ValueError):
        wilson_interval(3, 2)


def test_kinds_are_counted_apart():
    found = accuracy_by_kind([True, False, True, True], ["b", "a", "b", "a"])
    assert list(found) == ["b", "a"] and found["a"]["right"] == 1 and found["b"]["accuracy"] == 1.0
    assert "| a | 1 of 2 | 50.0 | 9.5 to 90.5 |" in as_table(found)


def test_votes_and_the_best():
    assert majority(["a", "b", "B "]) == 1 and majority(["a", "b"]) == 0
    assert best([0.0, 2.0, 2.0]) == 1


def test_accuracy_against_the_number_of_replies():
    replies = [["x", "7", "7", "8"], ["1", "2", "3", "4"]]
    right = [[text == "7" for text in replies[0]], [text == "4" for text in replies[1]]]
    rewards = [[float(good) for good in row] for row in right]
    rows = accuracy_against_samples(replies, right, rewards)
    assert [row["samples"] for row in rows] == [1, 2, 4]
    # One drawn: 2 of 4 and 1 of 4 are right, whoever chooses.
    assert rows[0]["majority"] == rows[0]["best"] == rows[0]["any"] == pytest.approx(3 / 8, abs=0.05)
    # All: the majority is right of the first question; the reward, which knows, and any are right of both.
    assert rows[-1] == {"samples": 4, "majority": 0.5, "any": 1.0, "best": 1.0}
    assert "best" not in accuracy_against_samples(replies, right)[0]
    assert accuracy_against_samples(replies, right, seed=1) == accuracy_against_samples(replies, right, seed=1)
