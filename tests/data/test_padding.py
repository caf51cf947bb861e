"""The share of padding in batches, by hand."""

from gpt_scratch.data.padding import padding_share


def test_padding_share_by_hand():
    assert padding_share([2, 4, 1, 3], 2, grouped=False) == 1 - 10 / 14
    assert padding_share([2, 4, 1, 3], 2, grouped=True) == 1 - 10 / 12
