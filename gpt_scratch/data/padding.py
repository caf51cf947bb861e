"""The share of padding in batches."""


def padding_share(lengths: list[int], batch_size: int, grouped: bool) -> float:
    """Share of padding in batches padded to their longest row, in the given order or sorted by length."""
    lengths = sorted(lengths) if grouped else lengths
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
