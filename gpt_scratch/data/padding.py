"""What padding costs: its share of a batch."""


def padding_share(lengths: list[int], batch_size: int, grouped: bool) -> float:
    """Share of padding in batches that are padded to their longest row, in the order given or sorted by length."""
    lengths = sorted(lengths) if grouped else lengths
    batches = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return 1 - sum(lengths) / sum(max(batch) * len(batch) for batch in batches)
