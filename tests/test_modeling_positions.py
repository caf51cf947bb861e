"""Caches, padding, packed documents, and the end of the learned positions."""

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from transformers import DynamicCache, StaticCache

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])
ATTENTION = pytest.mark.parametrize("attention", ["eager", "sdpa"])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def make_cache(kind: str, model):
    return DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=24)


def left_padded(rows: list[torch.Tensor], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (1, t) of any lengths as one batch with padding on the left, and its attention mask."""
    ids = torch.cat([torch.nn.functional.pad(row, (length - row.shape[1], 0)) for row in rows])
    return ids, (ids != 0).long()


# -------------------------------------------------------------------------------------------------------------------- caches


@STYLES
@ATTENTION
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_equals_uncached_at_every_position(style, attention, kind):
    model, ids = tiny_model(style, attention=attention), token_ids(2, 20)
    expected, cache = model(ids).logits, make_cache(kind, model)
    for t in range(20):
        out = model(ids[:, t : t + 1], past_key_values=cache)
        assert out.past_key_values is cache
        assert_equal(out.logits[:, 0], expected[:, t])
    assert int(cache.get_seq_length()) == 20


@STYLES
@ATTENTION
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_cached_equals_uncached_with_left_padding(style, attention, kind):
    """Chunks of 6, 1, 4 and 1 tokens; the positions come from the attention mask alone."""
    model = tiny_model(style, attention=attention)
    ids, mask = left_padded([token_ids(1, 12), token_ids(1, 8, seed=1), token_ids(1, 5, seed=2)], 12)
    expected, cache, start = model(ids, attention_mask=mask).logits, make_cache(kind, model), 0
    for chunk in (6, 1, 4, 1):
        end = start + chunk
        out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        real = mask[:, start:end].bool()
        assert_equal(out.logits[real], expected[:, start:end][real])
        start = end


@STYLES
def test_attention_mask_as_long_as_a_static_cache(style):
    """The mask may reach over the whole cache, with zeros for the columns to come."""
    model, ids = tiny_model(style), token_ids(2, 9)
    mask = torch.zeros(2, 24, dtype=torch.long)
    cache = make_cache("static", model)
    mask[:, :6] = 1
    model(ids[:, :6], attention_mask=mask, past_key_values=cache)
    mask[:, :9] = 1
    assert_equal(model(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits, model(ids).logits[:, 6:])


@STYLES
def test_a_cache_is_made_on_request_and_can_be_continued(style):
    model, ids = tiny_model(style), token_ids(2, 10)
    assert model(ids, use_cache=False).past_key_values is None
    first = model(ids[:, :6])  # config.use_cache
    assert first.past_key_values.get_seq_length() == 6
    assert_equal(model(ids[:, 6:], past_key_values=first.past_key_values).logits, model(ids).logits[:, 6:])


@STYLES
def test_logits_to_keep(style):
    model, ids = tiny_model(style), token_ids(2, 10)
    expected = model(ids).logits
    assert_equal(model(ids, logits_to_keep=1).logits, expected[:, -1:])
    assert_equal(model(ids, logits_to_keep=3).logits, expected[:, -3:])
    assert_equal(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, expected[:, [0, 4]])


@STYLES
def test_embeddings_in_place_of_ids(style):
    model, ids = tiny_model(style), token_ids(2, 10)
    embedded, mask = model.get_input_embeddings()(ids), torch.ones(2, 10, dtype=torch.long)
    mask[1, :4] = 0
    for settings in ({}, {"attention_mask": mask}):
        real = settings.get("attention_mask", torch.ones(2, 10)).bool()
        assert_equal(model(inputs_embeds=embedded, **settings).logits[real], model(ids, **settings).logits[real])
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embedded}):
        with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
            model(**wrong)


# ------------------------------------------------------------------------------------------------------------------- padding


@STYLES
@ATTENTION
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float32])
def test_padding_on_either_side_gives_the_logits_of_the_row_alone(style, attention, dtype):
    model = tiny_model(style, attention=attention)
    rows = [token_ids(1, length, seed=length) for length in (11, 7, 1)]
    alone = [model(row).logits[0] for row in rows]
    for left in (0, 2, 5):  # the rest of the padding is on the right
        ids, mask = torch.zeros(3, 16, dtype=torch.long), torch.zeros(3, 16)
        for i, row in enumerate(rows):
            ids[i, left : left + row.shape[1]] = row
            mask[i, left : left + row.shape[1]] = 1
        out = model(ids, attention_mask=mask.to(dtype)).logits
        for i, row in enumerate(rows):
            assert_equal(out[i, left : left + row.shape[1]], alone[i])


@STYLES
@ATTENTION
def test_masked_tokens_inside_a_row_are_as_if_absent(style, attention):
    model, ids, mask = tiny_model(style, attention=attention), token_ids(1, 12), torch.ones(1, 12, dtype=torch.long)
    mask[0, 3:5] = mask[0, 8] = 0
    real = mask.bool()
    assert_equal(model(ids, attention_mask=mask).logits[real], model(ids[real][None]).logits[0])


@STYLES
@ATTENTION
def test_a_row_of_padding_only_stays_finite_and_harms_no_other(style, attention):
    model, ids, mask = tiny_model(style, attention=attention), token_ids(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1] = 0
    logits = model(ids, attention_mask=mask).logits
    assert logits.isfinite().all()
    assert_equal(logits[:1], model(ids[:1]).logits)


@STYLES
@ATTENTION
def test_positions_for_all_rows_at_once(style, attention):
    model, ids = tiny_model(style, attention=attention), token_ids(3, 9)
    assert_equal(model(ids, position_ids=torch.arange(9)[None]).logits, model(ids).logits)
    shifted = model(ids, position_ids=torch.arange(5, 14)[None]).logits
    assert_equal(shifted, model(ids, position_ids=torch.arange(5, 14).expand(3, -1)).logits)
    if style == "llama":
        assert_equal(shifted, model(ids).logits, 3e-5)  # rotary positions know distances only
    else:
        assert (shifted - model(ids).logits).abs().max() > 0.1


@STYLES
@ATTENTION
def test_a_prepared_mask_is_taken_as_it_is(style, attention):
    model, ids = tiny_model(style, attention=attention), token_ids(2, 8)
    blocks = torch.block_diag(torch.ones(5, 5), torch.ones(3, 3)).tril().bool()[None, None].expand(2, 1, -1, -1)
    mask = blocks if attention == "sdpa" else torch.zeros(2, 1, 8, 8).masked_fill(~blocks, torch.finfo(torch.float32).min)
    positions = torch.cat((torch.arange(5), torch.arange(3)))[None].expand(2, -1)
    expected = torch.cat((model(ids[:, :5]).logits, model(ids[:, 5:]).logits), dim=1)
    assert_equal(model(ids, attention_mask=mask, position_ids=positions).logits, expected)


# ---------------------------------------------------------------------------------------------------------- packed documents

ROWS = [[7, 5, 1], [2, 2, 9]]  # tokens in each document of each row


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in ROWS])
    return token_ids(2, 13), positions


def documents_alone(model, ids: torch.Tensor) -> torch.Tensor:
    return torch.stack([torch.cat([model(part[None]).logits[0] for part in row.split(sizes)]) for row, sizes in zip(ids, ROWS)])


@STYLES
@ATTENTION
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 13, dtype=torch.long), torch.ones(2, 13)], ids=["none", "ones", "floats"])
def test_packed_documents_do_not_see_each_other(style, attention, use_cache, mask):
    model, (ids, positions) = tiny_model(style, attention=attention), packed()
    logits = model(ids, position_ids=positions, attention_mask=mask, use_cache=use_cache).logits
    assert_equal(logits, documents_alone(model, ids))
    assert (logits - model(ids).logits)[:, -1].abs().max() > 0.1  # one long document is something else


@STYLES
@ATTENTION
def test_packed_documents_with_padding(style, attention):
    model, (ids, positions) = tiny_model(style, attention=attention), packed()
    expected = documents_alone(model, ids)
    for left, right in ((0, 4), (3, 0), (2, 2)):
        pad = torch.nn.functional.pad
        mask = pad(torch.ones(2, 13, dtype=torch.long), (left, right))
        logits = model(pad(ids, (left, right)), position_ids=pad(positions, (left, right)), attention_mask=mask).logits
        assert_equal(logits[:, left : left + 13], expected)


@STYLES
def test_positions_of_padding_and_gaps_do_not_part_a_row(style):
    """generate() gives such positions: padding holds anything, and a masked token is not counted."""
    model, ids = tiny_model(style), token_ids(1, 8)
    mask, positions = torch.tensor([[0, 0, 1, 1, 0, 0, 1, 1]]), torch.tensor([[1, 1, 0, 1, 1, 1, 2, 3]])
    real = mask.bool()
    logits = model(ids, attention_mask=mask, position_ids=positions).logits
    assert_equal(logits[real], model(ids[real][None]).logits[0])


def test_packed_documents_are_refused_where_flash_attention_cannot_part_them():
    model, (ids, positions) = tiny_model("gpt2"), packed()
    model.config._attn_implementation_internal = "flash_attention_2"  # past the check that the package is installed
    with pytest.raises(ValueError, match="flash_attention_2 keeps packed documents apart only in a batch of one row"):
        model(ids, position_ids=positions)


# ------------------------------------------------------------------------------------------- the end of the learned positions


def test_beyond_the_learned_positions(monkeypatch):
    model = tiny_model("gpt2")
    assert model(token_ids(1, 32)).logits.shape[1] == 32
    lookups = []
    monkeypatch.setattr(model.model.embed_positions, "forward", lookups.append)
    monkeypatch.setattr(model.model.embed_tokens, "forward", lookups.append)
    for settings in (
        {"input_ids": token_ids(2, 33)},
        {"input_ids": token_ids(2, 5), "position_ids": torch.arange(28, 33)[None]},
        {"inputs_embeds": torch.zeros(2, 33, 32)},
        {"input_ids": token_ids(2, 33), "attention_mask": torch.ones(2, 33)},
    ):
        with pytest.raises(ValueError, match=r"reaches 33 positions.* learned 32 \(max_position_embeddings\)"):
            model(**settings)
    assert not lookups


def test_beyond_the_learned_positions_with_a_cache_and_in_generate():
    model, ids = tiny_model("gpt2"), token_ids(1, 32)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"33 positions.* 32 \(max_position_embeddings\)"):
        model(ids[:, :1], past_key_values=cache)
    assert model.generate(ids[:, :28], max_new_tokens=5, do_sample=False).shape == (1, 33)  # the last needs no position
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        with pytest.raises(ValueError, match=r"33 positions.* 32 \(max_position_embeddings\)"):
            model.generate(ids[:, :28], max_new_tokens=6, do_sample=False, **settings)


def test_padding_does_not_use_up_learned_positions():
    model, row = tiny_model("gpt2"), token_ids(1, 30)
    ids, mask = left_padded([row], 40)
    assert_equal(model(ids, attention_mask=mask).logits[:, 10:], model(row).logits)


def test_rotary_positions_have_no_end():
    model, ids = tiny_model("llama"), token_ids(1, 50)
    assert model(ids).logits.isfinite().all()
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 53)
