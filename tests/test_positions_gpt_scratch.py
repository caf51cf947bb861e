"""Positions, documents and masks, against examples written out by hand."""

import pytest
import torch

from gpt_scratch.positions_gpt_scratch import (
    causal_mask,
    count_positions,
    find_documents,
    last_real_token,
    mask_and_positions,
    real_span,
    values_are_known,
)


def rows(text: str) -> list[list[int]]:
    return [[int(digit) for digit in row] for row in text.split()]


@pytest.mark.parametrize(
    "mask, expected",
    [
        ("11111", "01234"),
        ("00111", "00012"),
        ("11100", "01222"),
        ("01101", "00112"),  # what is masked inside a row is not counted
        ("00000", "00000"),
    ],
)
def test_positions_count_real_tokens(mask, expected):
    assert count_positions(torch.arange(5), torch.tensor(rows(mask))).tolist() == rows(expected)
    assert count_positions(torch.arange(3, 5), torch.tensor(rows(mask))).tolist() == [rows(expected)[0][3:]]


def test_positions_without_a_mask_or_with_a_prepared_one_are_columns():
    assert count_positions(torch.arange(2, 5), None).tolist() == [[2, 3, 4]]
    assert count_positions(torch.arange(2, 5), torch.ones(1, 1, 3, 5)).tolist() == [[2, 3, 4]]


@pytest.mark.parametrize(
    "positions, mask, groups",
    [
        ("01234", None, None),
        ("34567", None, None),  # one document that begins late
        ("01201", None, "aaabb"),
        ("01012", "11111", "aabbb"),
        ("11012", "00111", None),  # anything stands where padding is
        ("11010", "00111", "..aab"),
    ],
)
def test_documents_begin_where_positions_restart(positions, mask, groups):
    found = find_documents(torch.tensor(rows(positions)), None if mask is None else torch.tensor(rows(mask)))
    if groups is None:
        assert found is None
        return
    numbers = {letter: {int(found[0, i]) for i, other in enumerate(groups) if other == letter} for letter in set(groups) - {"."}}
    assert all(len(one) == 1 for one in numbers.values()) and len(set.union(*numbers.values())) == len(numbers)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "columns, keys, mask, documents, expected",
    [
        (range(3), 3, None, None, "100 110 111"),
        (range(2, 4), 4, None, None, "1110 1111"),  # two cached tokens
        (range(1, 2), 4, None, None, "1100"),  # a static cache of four, two of them filled
        (range(3), 3, "011", None, "100 010 011"),  # a padding token sees itself
        (range(3), 3, "110", None, "100 110 111"),
        (range(2, 3), 5, "011", None, "01100"),  # a mask as long as what has been seen, keys beyond it
        (range(4), 4, None, "0011", "1000 1100 0010 0011"),
        (range(4), 4, "1101", "0011", "1000 1100 0010 0001"),
    ],
)
def test_who_attends_to_whom(columns, keys, mask, documents, expected, implementation):
    mask, documents = (None if text is None else torch.tensor(rows(text)) for text in (mask, documents))
    found = causal_mask(torch.tensor(list(columns)), keys, mask, documents, implementation)
    assert found.dtype == torch.bool and found[0, 0].int().tolist() == rows(expected)


def test_each_row_has_its_own_mask_and_flex_attention_the_same_one():
    mask, documents = torch.tensor(rows("0111 1110")), torch.tensor(rows("0011 0000"))
    dense = causal_mask(torch.arange(4), 4, mask, documents)
    assert dense.shape == (2, 1, 4, 4) and not torch.equal(dense[0], dense[1])
    blocks = causal_mask(torch.arange(4), 4, mask, documents, "flex_attention")
    seen = [[[bool(blocks.mask_mod(*map(torch.tensor, (b, 0, q, k)))) for k in range(4)] for q in range(4)] for b in range(2)]
    assert torch.equal(dense[:, 0], torch.tensor(seen))


@pytest.mark.parametrize("mask", [None, torch.ones(1, 3)])
def test_flex_attention_is_never_left_without_a_mask(mask):
    """It would see the tokens to come: of a missing mask eager attention and sdpa make a causal one, flex attention none."""
    blocks, _ = mask_and_positions(torch.zeros(1, 3, dtype=torch.long), mask, None, None, "flex_attention")
    seen = [[bool(blocks.mask_mod(*map(torch.tensor, (0, 0, query, key)))) for key in range(3)] for query in range(3)]
    assert seen == [[True, False, False], [True, True, False], [True, True, True]]
    for implementation in ("eager", "sdpa"):
        assert mask_and_positions(torch.zeros(1, 3, dtype=torch.long), mask, None, None, implementation)[0] is None


def test_the_span_of_real_tokens_and_its_end():
    ids = torch.tensor(rows("00506 50600 00000"))
    assert real_span(ids, 0).tolist() == rows("00111 11100 00000")
    assert last_real_token(torch.tensor(rows("00111 11100")), torch.zeros(2, 5, 1)).tolist() == [4, 2]
    assert last_real_token(None, torch.zeros(1, 4, 1)).tolist() == [3]
    with pytest.raises(ValueError, match="last token of each of 2 rows"):
        last_real_token(None, torch.zeros(2, 4, 1))
    assert last_real_token(torch.tensor(rows("11011 01100")), torch.zeros(2, 3, 1)).tolist() == [2, 0]  # of the last three


def test_values_are_not_known_under_a_tracer():
    assert values_are_known(torch.ones(1)) and not values_are_known(torch.ones(1, device="meta"))
    seen = []
    torch.compile(lambda x: seen.append(values_are_known(x)) or x + 1, backend="eager", fullgraph=True)(torch.ones(1))
    assert seen == [False]
    with torch._subclasses.FakeTensorMode():
        assert not values_are_known(torch.ones(1))
