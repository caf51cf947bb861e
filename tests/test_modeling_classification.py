"""The classification head: which token it pools, and its three losses."""

import math

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids

from gpt_scratch import GPTScratchForSequenceClassification

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])
ROWS = [token_ids(1, length, seed=length) for length in (9, 4, 1)]
PADDINGS = [(0, 0), (0, 3), (3, 0), (2, 5)]  # further columns on the left and on the right


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def classifier(style: str = "gpt2", **settings) -> GPTScratchForSequenceClassification:
    return tiny_model(style, cls=GPTScratchForSequenceClassification, **{"num_labels": 3, **settings})


def batch(side: str, left: int, right: int, pad_id: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.full((3, 9 + left + right), pad_id)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(ROWS):
        start = left + (9 - row.shape[1] if side == "left" else 0)
        ids[i, start : start + row.shape[1]] = row
        mask[i, start : start + row.shape[1]] = 1
    return ids, mask


@STYLES
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_same_logits_for_any_padding(style, attention, side):
    model = classifier(style, attention=attention)
    alone = torch.cat([model(row).logits for row in ROWS])
    assert alone.shape == (3, 3)
    for left, right in PADDINGS:
        ids, mask = batch(side, left, right)
        assert_equal(model(ids, attention_mask=mask).logits, alone)
        assert_equal(model(ids, attention_mask=mask.bool()).logits, alone)
        assert_equal(model(ids).logits, alone)  # by the pad id alone
        embedded = model.get_input_embeddings()(ids)
        assert_equal(model(inputs_embeds=embedded, attention_mask=mask).logits, alone)


def test_the_pooled_token_is_the_last_real_one():
    model, (ids, mask) = classifier(), batch("right", 0, 2)
    hidden = model.model(ids, attention_mask=mask).last_hidden_state
    expected = torch.stack([hidden[0, 8], hidden[1, 3], hidden[2, 0]]) @ model.score.weight.T
    assert_equal(model(ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("pad_token_id", [None, 0, 7])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_attention_mask_goes_before_the_pad_id(pad_token_id, side):
    """Texts that end in, begin with and hold the id of padding are pooled where the mask says."""
    model = classifier(pad_token_id=pad_token_id)
    row = torch.tensor([[7, 3, 7, 7, 5, 7, 7]])
    alone = model(row, attention_mask=torch.ones_like(row)).logits
    pad = (0, 4) if side == "right" else (4, 0)
    ids, mask = (torch.nn.functional.pad(part, pad, value=value) for part, value in ((row, 7), (torch.ones_like(row), 0)))
    both = torch.cat((ids, torch.full_like(ids, 9)))
    assert_equal(model(both, attention_mask=torch.cat((mask, torch.ones_like(mask)))).logits[:1], alone)


def test_a_pad_id_inside_the_text_is_text():
    """End-of-text doubles as padding here: one between two sentences is neither skipped nor taken for the end."""
    model = classifier(pad_token_id=7, eos_token_id=7)
    row = torch.tensor([[3, 4, 7, 5, 6]])
    alone = model(row, attention_mask=torch.ones_like(row)).logits
    for pad in ((0, 0), (0, 3), (3, 0)):
        ids = torch.nn.functional.pad(row, pad, value=7)
        assert_equal(model(torch.cat((ids, ids.flip(1)))).logits[:1], alone)


def test_without_mask_and_pad_id_only_one_row_is_possible():
    model, ids = classifier(pad_token_id=None), token_ids(2, 6)
    with pytest.raises(ValueError, match=r"last token of each of 2 rows.*attention_mask.*pad_token_id"):
        model(ids)
    with pytest.raises(ValueError, match=r"last token of each of 2 rows"):  # embeddings hold no pad id
        classifier()(inputs_embeds=torch.zeros(2, 6, 32))
    expected = model(ids, attention_mask=torch.ones_like(ids)).logits
    assert_equal(torch.cat((model(ids[:1]).logits, model(ids[1:]).logits)), expected)


@STYLES
def test_pooling_after_a_cache(style):
    model, ids = classifier(style), token_ids(2, 8)
    cache = model(ids[:1, :5]).past_key_values
    assert_equal(model(ids[:1, 5:], past_key_values=cache).logits, model(ids[:1]).logits)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    cache = model(ids[:, :5], attention_mask=mask[:, :5]).past_key_values
    rest = model(ids[:, 5:], attention_mask=mask, past_key_values=cache)
    assert_equal(rest.logits, model(ids, attention_mask=mask).logits)


def test_single_label_loss_by_hand():
    model, (ids, mask) = classifier(), batch("right", 0, 1)
    out = model(ids, attention_mask=mask, labels=torch.tensor([2, 0, 1]))
    expected = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(out.logits.tolist(), (2, 0, 1))]
    assert out.loss.item() == pytest.approx(sum(expected) / 3, abs=1e-5)


def test_multi_label_loss_by_hand():
    model, (ids, mask) = classifier(problem_type="multi_label_classification"), batch("left", 1, 0)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    out = model(ids, attention_mask=mask, labels=labels)
    expected = 0.0
    for row, row_labels in zip(out.logits.tolist(), labels.tolist()):
        for logit, label in zip(row, row_labels):
            probability = 1 / (1 + math.exp(-logit))
            expected -= math.log(probability if label else 1 - probability)
    assert out.loss.item() == pytest.approx(expected / 9, abs=1e-5)


def test_regression_loss_by_hand():
    (ids, mask), targets = batch("right", 0, 0), torch.tensor([0.5, -1.0, 2.0])
    one = classifier(num_labels=1)(ids, attention_mask=mask, labels=targets)
    expected = [(value - target) ** 2 for (value,), target in zip(one.logits.tolist(), targets.tolist())]
    assert one.loss.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    three = classifier(problem_type="regression")(ids, attention_mask=mask, labels=torch.stack((targets,) * 3, dim=1))
    expected = [(value - target) ** 2 for row, target in zip(three.logits.tolist(), targets.tolist()) for value in row]
    assert three.loss.item() == pytest.approx(sum(expected) / 9, rel=1e-5)


def test_problem_type_follows_from_the_labels():
    ids = token_ids(3, 4)
    for settings, labels, problem_type in (
        ({"num_labels": 1}, torch.rand(3), "regression"),
        ({"num_labels": 3}, torch.tensor([0, 1, 2]), "single_label_classification"),
        ({"num_labels": 3}, torch.rand(3, 3).round(), "multi_label_classification"),
    ):
        model = classifier(**settings)
        assert model(ids, labels=labels).loss.isfinite()
        assert model.config.problem_type == problem_type
