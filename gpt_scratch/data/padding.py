"""The share of padding in batches, and rows sorted by length, which have little."""

from typing import Any


def padding_share(lengths: list[int], batch_size: int, grouped: bool) -> float:
    """Share of padding in batches padded to their longest row, in the given order or sorted by length."""
    lengths = sorted(lengths) if grouped else lengths
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)


def by_length(rows: Any) -> Any:
    """Rows of a `datasets` table sorted by their column `length` (stable)."""
    lengths = rows["length"][:]
    return rows.select(sorted(range(len(lengths)), key=lengths.__getitem__))  # `Dataset.sort` emits a pyarrow warning
