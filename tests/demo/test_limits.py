"""A visitor's input to the page, checked without Gradio: texts, numbers, names, and whole requests at the middleware."""

import html
import math

import pytest

from gpt_scratch.demo import models
from gpt_scratch.demo.limits import (
    MAX_CHARACTERS,
    MAX_MODELS,
    check_choice,
    check_new_name,
    check_settings,
    check_text,
    plain_markdown,
    plain_message,
)
from gpt_scratch.demo.models import Sampling, TimeIsUp, load_model, stream_reply, stream_text
from gpt_scratch.errors import UserError

BOUNDS = {"seconds": 20, "mebibytes": 300}


@pytest.mark.fault("settings of the page out of range, NaN, infinite, of other types", **BOUNDS)
def test_settings():
    check_settings(vars(Sampling()))
    check_settings(
        vars(Sampling(max_new_tokens=1, temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1.0, seed=2**32 - 1))
    )
    hostile = ["5", None, True, [5], {}, math.nan, math.inf, -math.inf, -1, 10**400, 1e300]
    for name in vars(Sampling()):
        for value in hostile:
            with pytest.raises(UserError, match=f"^{name} (is|must be) .{{1,100}}$"):
                Sampling(**{name: value})
    for name, value in {
        "max_new_tokens": 1.5,
        "temperature": 1e-30,
        "top_k": 0.5,
        "seed": 0.5,
        "top_p": 0,
        "repetition_penalty": 0,
    }.items():
        with pytest.raises(UserError, match=name):
            Sampling(**{name: value})


@pytest.mark.fault("texts for the page that are too long, no texts, or half of a surrogate pair", **BOUNDS)
def test_texts():
    assert check_text("a" * MAX_CHARACTERS)
    for value in (None, 5, ["a"], {"path": "/etc/passwd"}, "a" * (MAX_CHARACTERS + 1), "\ud800"):
        with pytest.raises(UserError):
            check_text(value)


@pytest.mark.fault("names of models that the page does not offer, and too many models", **BOUNDS)
def test_names():
    assert check_choice("a", ["a"]) == "a" and check_new_name(" a/b ", []) == "a/b"
    for value in ("b", "", None, ["a"], {"a": 1}, "../a", "/etc"):
        with pytest.raises(UserError, match="choose one of the models"):
            check_choice(value, ["a"])
    many = [str(i) for i in range(MAX_MODELS)]
    assert check_new_name("3", many) == "3"
    for value, loaded in (("", []), (None, []), ("a\nb", []), ("a\x1b[2J", []), ("a" * 501, []), ("new", many)):
        with pytest.raises(UserError):
            check_new_name(value, loaded)


@pytest.mark.fault("HTML and Markdown in texts and errors that the page shows", **BOUNDS)
def test_shown_texts():
    for text in (
        "<script>alert(1)</script>",
        "![x](http://a/b)",
        "[x](javascript:alert(1))",
        "`a` *b* _c_ $$d$$ # e",
        "a &lt; b",
    ):
        shown = plain_markdown(text)
        assert html.unescape(shown) == text
        assert not set(shown) & set("<>[]()!`*_$:")
        assert "<" not in plain_message(UserError(text))
    assert plain_markdown("a\n    b\n\tc") == f"a\n{4 * chr(160)}b\n{4 * chr(160)}c"


def test_one_generation_ends_in_time(tmp_path, monkeypatch):
    import torch

    from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
    from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(["One day"], vocab_size=260)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
    GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    steps = stream_text(loaded, "One", Sampling())
    next(steps)
    monkeypatch.setattr(models.time, "monotonic", lambda: math.inf)
    with pytest.raises(TimeIsUp, match="stopped after 60 s"):
        next(steps)
    monkeypatch.undo()
    with pytest.raises(UserError, match="20,001 characters"):
        next(stream_reply(loaded, [{"role": "user", "content": "a" * (MAX_CHARACTERS + 1)}], Sampling()))
