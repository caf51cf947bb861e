"""The share of padding in batches, by hand."""

import warnings

import datasets

from gpt_scratch.data.padding import by_length, padding_share


def test_padding_share_by_hand():
    assert padding_share([2, 4, 1, 3], 2, grouped=False) == 1 - 10 / 14
    assert padding_share([2, 4, 1, 3], 2, grouped=True) == 1 - 10 / 12


def test_rows_by_length_keep_their_order_and_warn_of_nothing():
    rows = datasets.Dataset.from_dict({"length": [3, 1, 3, 2], "name": ["a", "b", "c", "d"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert by_length(rows)["name"][:] == ["b", "d", "a", "c"]
