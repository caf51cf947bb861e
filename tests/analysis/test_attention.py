"""Attention maps are the model's own, and what is derived from them matches values worked out by hand."""

import math

import pytest
import torch
from tiny_models import tiny_model, token_ids

from gpt_scratch.analysis import attention
from gpt_scratch.analysis.attention import (
    attention_entropy,
    attention_maps,
    attention_rollout,
    plot_attention,
    plot_attention_grid,
    token_texts,
)
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_maps_are_the_eager_attentions_and_the_model_stays_as_it_was(style):
    model, ids = tiny_model(style), token_ids(1, 9)
    maps = attention_maps(model, ids)
    assert model.config._attn_implementation == "sdpa" and maps.shape == (2, 4, 9, 9)
    with torch.no_grad():
        expected = tiny_model(style, attention="eager")(ids, output_attentions=True).attentions
    assert torch.equal(maps, torch.cat(expected))
    assert (maps.triu(1) == 0).all() and torch.allclose(maps.sum(-1), torch.ones(2, 4, 9))
    assert (maps[..., -1, :].max(-1).values > 0.3).any()  # far from uniform, or the test would prove nothing


def test_entropy_by_hand():
    one_token = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    even = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert attention_entropy(torch.stack([one_token, even])[None]).tolist() == [[0.0, pytest.approx(math.log(2) / 2)]]


def test_rollout_by_hand():
    first = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]])  # two heads: their mean looks half at each
    second = torch.tensor([[[1.0, 0.0], [0.4, 0.6]]] * 2)
    rollout = attention_rollout(torch.stack([first, second]))
    assert torch.allclose(rollout[0], torch.tensor([[1.0, 0.0], [0.25, 0.75]]))
    assert torch.allclose(rollout[1], torch.tensor([[1.0, 0.0], [0.2 + 0.8 * 0.25, 0.8 * 0.75]]))


def test_pictures(tmp_path):
    maps = attention_maps(tiny_model("gpt2"), token_ids(1, 5))
    files = plot_attention_grid(maps, list("a$b_c"), tmp_path / "grid") + plot_attention(
        maps[0, 0], list("a$b_c"), tmp_path / "one.head"
    )
    assert [file.name for file in files] == ["grid.png", "grid.svg", "one.head.png", "one.head.svg"]
    assert all(file.stat().st_size > 2000 for file in files)
    with pytest.raises(UserError, match="layer 2: this model has layers 0 to 1"):
        plot_attention_grid(maps, list("a$b_c"), tmp_path / "none", layers=[2])


def test_token_texts_show_spaces_and_line_breaks():
    tokenizer = train_byte_level_bpe(["one day\none day " * 5], vocab_size=270)
    ids = tokenizer("one day\n")["input_ids"]
    assert "".join(token_texts(tokenizer, ids)) == "one·day⏎"


@pytest.mark.parametrize(("count", "shown"), [(5, True), (25, False)])
def test_the_grid_shows_the_tokens_where_they_can_be_read(tmp_path, monkeypatch, count, shown):
    figures = []
    monkeypatch.setattr(attention, "save_figure", lambda figure, *rest: figures.append(figure) or [])
    tokens = [f"t{i}" for i in range(count)]
    plot_attention_grid(torch.eye(count).expand(2, 2, count, count), tokens, tmp_path / "grid", title="eye")
    cells = figures[0].axes[:4]
    assert ([label.get_text() for label in cells[2].get_yticklabels()] == tokens) == shown
    assert figures[0].get_suptitle().startswith("eye") and figures[0].axes[4].get_ylabel() == "attention weight"
    assert {image.get_clim() for cell in cells for image in cell.images} == {(0, 1)}  # the bar holds for all of them
