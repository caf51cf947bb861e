"""Accuracy on questions with one correct answer: by kind with Wilson intervals, and by the number of sampled replies.

A reply is correct if it equals the reference, ignoring case and surrounding white space, and ends with the end-of-text token.
"""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

Z = 1.959964  # two-sided 95 % quantile of the normal distribution
DRAWS = 200  # subsets of n replies over which accuracy is averaged


def wilson_interval(right: int, count: int, z: float = Z) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 % by default. It stays within 0 and 1, where the normal interval does not.

    >>> [round(end, 3) for end in wilson_interval(8, 10)]
    [0.49, 0.943]
    """
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} of {count} is no share")
    share, square = right / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def accuracy(right: Sequence[bool]) -> dict[str, Any]:
    """`{"right", "count", "accuracy", "interval"}`."""
    low, high = wilson_interval(sum(right), len(right))
    return {"right": sum(right), "count": len(right), "accuracy": sum(right) / len(right), "interval": [low, high]}


def accuracy_by_kind(right: Sequence[bool], kinds: Sequence[str]) -> dict[str, dict[str, Any]]:
    """[`accuracy`] of each kind, in the order in which they appear."""
    grouped: dict[str, list[bool]] = defaultdict(list)
    for one, kind in zip(right, kinds):
        grouped[kind].append(one)
    return {kind: accuracy(part) for kind, part in grouped.items()}


def majority(replies: Sequence[str]) -> int:
    """Index of the most frequent reply, ignoring case and white space; the first one on a tie (self-consistency, Wang et al. 2023).

    >>> majority(["7", "12", " 12"])
    1
    """
    counts = Counter(reply.strip().lower() for reply in replies)
    return max(range(len(replies)), key=lambda i: (counts[replies[i].strip().lower()], -i))


def best(rewards: Sequence[float]) -> int:
    """Index of the highest reward, the first one on a tie."""
    return max(range(len(rewards)), key=lambda i: (rewards[i], -i))


def accuracy_against_samples(
    replies: Sequence[Sequence[str]],
    right: Sequence[Sequence[bool]],
    rewards: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> list[dict[str, float]]:
    """Accuracy with n sampled replies, n = 1, 2, 4, ...: by majority vote, best of n by reward if rewards are given, and pass@n.

    Args:
        replies: replies to each question, the same number for all.
        right: whether each reply is correct.
        rewards: reward of each reply, which selects the best.
        seed: seeds the random subsets of n replies (`DRAWS` of them, or all replies once).
    """
    drawn = len(replies[0])
    numbers = [2**i for i in range(drawn.bit_length()) if 2**i < drawn] + [drawn]
    rng, rows = random.Random(seed), []
    for number in numbers:
        sums: dict[str, float] = defaultdict(float)
        for row, (texts, good) in enumerate(zip(replies, right)):
            draws = [range(drawn)] if number == drawn else [rng.sample(range(drawn), number) for _ in range(DRAWS)]
            for subset in draws:
                share = 1 / len(draws) / len(replies)
                sums["majority"] += share * good[subset[majority([texts[i] for i in subset])]]
                sums["any"] += share * any(good[i] for i in subset)
                if rewards is not None:
                    sums["best"] += share * good[subset[best([rewards[row][i] for i in subset])]]
        rows.append({"samples": number, **sums})
    return rows


def as_table(by_kind: dict[str, dict[str, Any]]) -> str:
    """Markdown table: kind, correct of count, accuracy and its interval in percent."""
    lines = ["| kind | right | accuracy, % | 95 % interval |", "|---|---|---|---|"]
    for kind, row in by_kind.items():
        low, high = row["interval"]
        lines.append(
            f"| {kind} | {row['right']} of {row['count']} | {row['accuracy'] * 100:.1f} | {low * 100:.1f} to {high * 100:.1f} |"
        )
    return "\n".join(lines)
