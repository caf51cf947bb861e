"""Rows of token ids cut from documents, against values written by hand."""

import datasets
import numpy as np
import pytest

from gpt_scratch.data.blocks import TokenBlocks, block_row
from gpt_scratch.errors import UserError


def arrow(*rows: list[int]) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"input_ids": rows}, features=datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    )


def ids(blocks) -> list[list[int]]:
    return [blocks[i]["input_ids"].tolist() for i in range(len(blocks))]


def test_default_windows_predict_every_token_exactly_once():
    blocks = TokenBlocks(arrow([0, 1, 2], [3, 4, 5, 6, 7]), block_size=4)
    assert ids(blocks) == [[0, 1, 2, 3], [3, 4, 5, 6]]
    assert blocks.covered_tokens == 7  # token 7 does not fill a row
    predicted = [token for row in ids(blocks) for token in row[1:]]
    assert predicted == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("stride", "expected"), [(4, [[0, 1, 2, 3], [4, 5, 6, 7]]), (2, [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]])]
)
def test_stride_is_the_books_sliding_window(stride, expected):
    assert ids(TokenBlocks(arrow(list(range(8))), 4, stride)) == expected


def test_windows_over_many_arrow_chunks_equal_windows_over_one_array():
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 1000, size=n).tolist() for n in rng.integers(0, 30, size=50)]
    table = datasets.concatenate_datasets([arrow(piece) for piece in pieces])
    stream = np.concatenate([np.array(piece, dtype=np.int64) for piece in pieces])
    blocks = TokenBlocks(table, 7, 5)
    assert len(blocks.chunks) > 1
    assert ids(blocks) == [stream[i : i + 7].tolist() for i in range(0, len(stream) - 6, 5)]


def test_isolated_documents_restart_positions_and_do_not_score_their_first_token():
    row = block_row(np.array([5, 0, 7, 8, 0, 9]), end_id=0)
    assert row["position_ids"].tolist() == [0, 1, 0, 1, 2, 0]
    assert row["labels"].tolist() == [5, 0, -100, 8, 0, -100]
    assert row["input_ids"].tolist() == [5, 0, 7, 8, 0, 9]
    assert "position_ids" not in block_row(np.array([5, 0, 7]), end_id=None)


def test_labels_are_a_copy_so_that_masking_cannot_reach_the_inputs():
    row = block_row(np.array([1, 2, 3]), None)
    row["labels"][0] = -100
    assert row["input_ids"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 9}, "8 tokens, fewer than one block of 9"),
        ({"block_size": 4, "stride": 5}, "stride is 5"),
        ({"block_size": 4, "stride": 0}, "stride is 0"),
        ({"block_size": 1}, "at least 2 tokens"),
        ({"block_size": 4, "isolate_documents": True}, "end-of-text"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        TokenBlocks(arrow(list(range(8))), **arguments)
