"""Ranks, surprisals, the lens and sampling settings against the definition, transformers and the book."""

import math
from html.parser import HTMLParser

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from transformers import GPT2Config, GPT2LMHeadModel, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gpt_scratch.analysis import next_token
from gpt_scratch.analysis.next_token import (
    ScoredToken,
    lens_table,
    logit_lens,
    plot_lens,
    plot_surprise,
    plot_temperatures,
    sampling_distribution,
    score_tokens,
    write_surprise_html,
)
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

# results.md: the nine logits of the book's section 5.3.1, and what it prints for them
BOOK = torch.tensor([4.51, 0.89, -1.90, 6.75, 1.63, -1.62, -1.89, 6.28, 1.79])
WORDS = ["closer", "every", "effort", "forward", "inches", "moves", "pizza", "toward", "you"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(["One day, Anna lost her <key> & found it.\n" * 9], vocab_size=300)


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model("gpt2", vocab_size=len(tokenizer))


def test_ranks_surprises_and_expectations(model, tokenizer):
    ids = tokenizer("One day, Anna lost", return_tensors="pt")["input_ids"]
    places, after = score_tokens(model, tokenizer, ids, top=3)
    with torch.no_grad():
        probabilities = model(ids).logits[0].double().softmax(-1)
    assert places[0].rank is None and len(places) == ids.shape[1]
    for t, place in enumerate(places[1:]):
        row, actual = probabilities[t], ids[0, t + 1].item()
        assert place.token_id == actual and place.rank == sorted(row.tolist(), reverse=True).index(row[actual]) + 1
        assert place.surprise == pytest.approx(-math.log2(row[actual]), abs=1e-4)
        assert [p for _, p in place.expected] == pytest.approx(row.topk(3).values.tolist(), abs=1e-6)
    assert after[0][1] == pytest.approx(probabilities[-1].max().item(), abs=1e-6)


def test_temperatures_of_the_book():
    assert sampling_distribution(BOOK)[3].item() == pytest.approx(0.57212, abs=5e-6)
    assert sampling_distribution(BOOK, temperature=5)[6].item() == pytest.approx(0.0430, abs=5e-5)
    top = sampling_distribution(BOOK, top_k=3)
    assert top[[0, 3, 7]].tolist() == pytest.approx([0.0615, 0.5775, 0.3610], abs=5e-5) and (top > 0).sum() == 3
    torch.manual_seed(123)
    drawn = torch.bincount(torch.multinomial(sampling_distribution(BOOK), 1000, replacement=True), minlength=9)
    assert drawn.sum() == 1000 and drawn.argmax() == 3


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.8}, {"temperature": 1.5, "top_k": 20, "top_p": 0.9}]
)
def test_sampling_settings_are_those_of_generate(settings):
    logits = torch.randn(50, 61, generator=torch.Generator().manual_seed(0)) * 3
    scores = TemperatureLogitsWarper(float(settings.get("temperature", 1.0)))(None, logits)
    if "top_k" in settings:
        scores = TopKLogitsWarper(settings["top_k"])(None, scores)
    if "top_p" in settings:
        scores = TopPLogitsWarper(settings["top_p"])(None, scores)
    ours = sampling_distribution(logits, **settings)
    assert_equal(ours, scores.softmax(-1), 1e-6)
    assert_equal(ours.sum(-1), torch.ones(50), 1e-6)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_settings_out_of_range(settings):
    with pytest.raises(UserError, match=f"{next(iter(settings))} is"):
        sampling_distribution(BOOK, **settings)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_the_last_layer_of_the_lens_is_the_model(style):
    model, ids = tiny_model(style), token_ids(1, 7)
    lens = logit_lens(model, ids)
    with torch.no_grad():
        assert lens.shape == (3, 7, 61)
        assert_equal(lens[-1], model(ids).logits[0])
        embedded = model(ids, output_hidden_states=True).hidden_states[0]
        assert_equal(lens[0], model.lm_head(model.model.norm(embedded))[0])
        assert (lens[1] - lens[-1]).abs().max() > 0.1
    with pytest.raises(UserError, match="not GPT2LMHeadModel"):
        logit_lens(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)), ids)


def test_pictures_and_page(model, tokenizer, tmp_path):
    ids = tokenizer("One day, Anna lost her <key> & found it.\n", return_tensors="pt")["input_ids"]
    places, _ = score_tokens(model, tokenizer, ids)
    page = write_surprise_html(places, tmp_path / "text.html", "a < b").read_text(encoding="utf-8")
    assert "&lt;key&gt;" in page or ("&lt;" in page and "<key>" not in page)
    assert page.count("title=") == len(places) - 1 and "<title>a &lt; b</title>" in page
    lens = logit_lens(model, ids)
    files = plot_surprise(places, tmp_path / "text", line_width=20)
    files += plot_lens(lens, tokenizer, [place.token for place in places], tmp_path / "lens")
    files += plot_temperatures(BOOK, WORDS, tmp_path / "temperature", title="after 'every effort moves you'")
    assert all(file.stat().st_size > 2000 for file in files) and len(files) == 6
    table = lens_table(lens, tokenizer)
    assert len(table) == 3 and table[-1][0][1] == pytest.approx(lens[-1, 0].softmax(-1).max().item())


class Tags(HTMLParser):
    """Tags and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.seen: set[tuple[str, tuple[str, ...]]] = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.add((tag, tuple(name for name, _ in attrs)))


HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</p></body>",
    "&lt;b&gt;",
    "<!--",
    "]]>",
]


@pytest.mark.fault("tokens and the name of a model that are HTML, in the page of coloured text", seconds=20, mebibytes=300)
def test_tokens_and_names_are_escaped_in_html(tmp_path):
    def tags(words: list[str], title: str) -> set:
        places = [ScoredToken(word, 1, 2, 0.5, 1.0, ((word, 0.5),)) for word in words]
        return Tags(write_surprise_html(places, tmp_path / "text.html", title).read_text(encoding="utf-8")).seen

    plain = tags(["word"], "model")
    for word in HOSTILE:
        assert tags([word], word) == plain
    assert "title>bad\\udce9<" in write_surprise_html([], tmp_path / "text.html", "bad\udce9").read_text(encoding="utf-8")


def test_bars_are_sorted_and_the_prompt_is_named(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(next_token, "save_figure", lambda figure, *rest: figures.append(figure) or [])
    plot_temperatures(BOOK, WORDS, tmp_path / "temperature", top=3, title="after 'every effort moves you'")
    [axes] = figures[0].axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [WORDS[i] for i in BOOK.topk(3).indices.tolist()]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert all(row == sorted(row, reverse=True) for row in heights) and axes.get_title() == "after 'every effort moves you'"
    plot_temperatures(BOOK, WORDS, tmp_path / "temperature", top=3, temperatures=[1.0, 5.0], top_k=2, top_p=0.999)
    for temperature, bars in zip((1.0, 5.0), figures[1].axes[0].containers):
        expected = sampling_distribution(BOOK, temperature, 2, 0.999).sort(descending=True).values[:3].tolist()
        assert [bar.get_height() for bar in bars] == expected and expected[2] == 0
