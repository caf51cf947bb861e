"""What comes with the weights of a checkpoint: tokenizer, special tokens and generation settings."""

import json

import pytest
from old_releases import assert_old_releases_open
from stock_models import GPT2, LLAMA, gpt2, saved
from tiny_models import tiny_config, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from gpt_scratch.conversion.checkpoint import Checkpoint, join_tokenizer
from gpt_scratch.conversion.sources import StateDictSource
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


def test_tokenizer_and_generation_settings_are_converted(convert, tmp_path):
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    eos = tokenizer.eos_token_id
    reference = LlamaForCausalLM(LlamaConfig(**LLAMA | {"vocab_size": 300, "eos_token_id": [eos, 7], "bos_token_id": eos}))
    original = saved(reference, tmp_path / "original")
    GenerationConfig(eos_token_id=[eos, 7], temperature=0.6, do_sample=True).save_pretrained(original)
    tokenizer.save_pretrained(original)
    folder = convert(original)
    assert_old_releases_open(folder)
    again = AutoTokenizer.from_pretrained(folder)
    assert again("Anna lost")["input_ids"] == tokenizer("Anna lost")["input_ids"] and again.model_max_length == 64
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.eos_token_id == [eos, 7] and model.generation_config.eos_token_id == [eos, 7]
    assert model.config.pad_token_id == model.generation_config.pad_token_id == again.pad_token_id is not None
    assert model.generation_config.temperature == 0.6 and model.generation_config.do_sample


@pytest.mark.parametrize("own", [True, False])
def test_whose_special_tokens_are_used(own):
    """Those of the source's configuration, or of the tokenizer where the source has none and ours has GPT-2's."""
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    config = tiny_config(vocab_size=len(tokenizer), eos_token_id=5, pad_token_id=None)
    checkpoint = Checkpoint(StateDictSource({}), {}, config, "lm", "", tokenizer)
    join_tokenizer(checkpoint, has_special_ids=own)
    assert config.eos_token_id == (5 if own else tokenizer.eos_token_id)
    assert (config.bos_token_id, config.pad_token_id) == (tokenizer.bos_token_id, tokenizer.pad_token_id)


@pytest.mark.thorough
def test_special_tokens_outside_of_the_vocabulary_are_dropped(convert, tmp_path, capsys):
    original = saved(GPT2LMHeadModel(GPT2Config(**GPT2 | {"eos_token_id": 50256})), tmp_path / "original")
    others = {
        "forced_eos_token_id": 99,
        "suppress_tokens": [3, 400],
        "bad_words_ids": [[5, 6], [7, 500]],
        "sequence_bias": [[[8], -2.0], [[9, -1], 1.0]],
    }
    GenerationConfig(eos_token_id=[50256, 7], bos_token_id=61, **others).save_pretrained(original)
    folder = convert(original)
    assert "special tokens outside of the vocabulary of 61 were dropped: -1, 61, 99, 400, 500, 50256" in capsys.readouterr().out
    written = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    assert (
        written["suppress_tokens"] == [3] and written["bad_words_ids"] == [[5, 6]] and written["sequence_bias"] == [[[8], -2.0]]
    )
    assert written.get("forced_eos_token_id") is None
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.eos_token_id is None and model.generation_config.eos_token_id == [7]
    assert model.generation_config.bos_token_id is None


@pytest.mark.thorough
def test_a_padding_token_of_minus_one_is_none(convert, tmp_path):
    original = saved(LlamaForCausalLM(LlamaConfig(**LLAMA | {"pad_token_id": -1})), tmp_path / "original")
    config = AutoModelForCausalLM.from_pretrained(convert(original)).config
    assert config.pad_token_id is None


@pytest.mark.parametrize("value", ["x", 1.5, [2.5], True])
def test_ids_that_are_no_numbers_are_named(refused, tmp_path, value):
    original = saved(gpt2(), tmp_path / "original")
    (original / "generation_config.json").write_text(json.dumps({"eos_token_id": value}), encoding="utf-8")
    message = refused(original)
    assert "generation_config.json" in message and "eos_token_id" in message


def test_a_tokenizer_model_needs_its_package(refused, tmp_path, monkeypatch):
    original = saved(gpt2(), tmp_path / "original")
    (original / "tokenizer.model").write_bytes(b"pieces")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "tokenizer.model needs the package sentencepiece" in refused(original)


@pytest.mark.thorough
def test_a_tokenizer_given_by_flag_brings_its_special_tokens(convert, refused, tmp_path):
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = tiny_model("gpt2", vocab_size=300, qkv_bias=True)
    model.save_pretrained(tmp_path / "ours")
    stock = convert(tmp_path / "ours", "--to", "gpt2")
    folder = convert(stock, "--tokenizer", str(tmp_path / "tokenizer"))
    assert AutoTokenizer.from_pretrained(folder)("Anna")["input_ids"] == tokenizer("Anna")["input_ids"]
    assert_old_releases_open(folder)
    assert_old_releases_open(convert(folder, "--to", "gpt2"))
    assert AutoModelForCausalLM.from_pretrained(folder).config.eos_token_id == tokenizer.eos_token_id
    small = saved(gpt2(), tmp_path / "small")
    assert f"has {len(tokenizer)} tokens, but the model's vocab_size is 61" in refused(
        small, "--tokenizer", str(tmp_path / "tokenizer")
    )
    assert "its tokenizer cannot be loaded" in refused(small, "--tokenizer", str(tmp_path / "nothing"))
