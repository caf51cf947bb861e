"""What the page shows, without the page: text step by step, its distribution, replies, what is refused."""

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.demo.limits import MAX_CHARACTERS
from gpt_scratch.demo.models import Sampling, load_model, stream_reply, stream_text, text_ids
from gpt_scratch.errors import UserError
from gpt_scratch.inference.generation import generate_texts
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + '. ' }}{% endfor %}"
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4}
    GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(path / "lm")
    tokenizer.save_pretrained(path / "lm")
    GPTScratchForSequenceClassification(GPTScratchConfig(**sizes)).save_pretrained(path / "classifier")
    tokenizer.save_pretrained(path / "classifier")
    return path


@pytest.mark.parametrize("settings", [{"temperature": 0, "repetition_penalty": 1.5}, {"temperature": 0}])
def test_the_text_is_that_of_generate(folder, settings):
    loaded = load_model(str(folder / "lm"))
    steps = list(stream_text(loaded, "One day", Sampling(max_new_tokens=12, **settings)))
    expected = generate_texts(loaded.model, loaded.tokenizer, ["One day"], max_new_tokens=12, **settings)
    assert steps[-1][0] == expected[0] and len(steps) == 12
    assert steps[3][0] == loaded.tokenizer.decode(loaded.tokenizer(expected[0])["input_ids"])[: len(steps[3][0])]


def test_the_bars_are_what_the_token_is_drawn_from(folder):
    loaded = load_model(str(folder / "lm"))
    for settings, possible in (({"top_k": 3}, 3), ({"top_k": 0, "top_p": 0.05}, 1), ({"top_k": 0, "min_p": 0.99}, 1)):
        _, bars = next(stream_text(loaded, "One day", Sampling(temperature=1.0, **settings), top=300))
        assert sum(probability > 0 for probability in bars.values()) == possible
        assert sum(bars.values()) == pytest.approx(1, abs=1e-5)
    texts = {list(stream_text(loaded, "One", Sampling(seed=seed, temperature=1.0, top_k=0)))[-1][0] for seed in (1, 1, 2)}
    assert len(texts) == 2


def test_replies_forget_the_oldest_exchanges(folder):
    loaded = load_model(str(folder / "lm"))
    history = [{"role": role, "content": "One day, Anna lost her key"} for role in ("user", "assistant") * 10] + [
        {"role": "user", "content": "One"}
    ]
    assert list(stream_reply(loaded, history, Sampling(max_new_tokens=8)))


def test_special_tokens_in_a_text_to_look_at_are_characters(folder):
    loaded = load_model(str(folder / "lm"))
    ids = text_ids(loaded, f"One{loaded.tokenizer.eos_token}day")
    assert loaded.tokenizer.eos_token_id not in ids and loaded.tokenizer.decode(ids) == f"One{loaded.tokenizer.eos_token}day"
    with pytest.raises(UserError, match="5 characters; this page takes 4"):
        text_ids(loaded, "12345", 4)


def test_kinds_and_refusals(folder):
    assert load_model(str(folder / "lm")).can_chat and not load_model(str(folder / "classifier")).can_chat
    for name, message in (("", "give the directory"), (str(folder / "nothing"), "nothing cannot be loaded")):
        with pytest.raises(UserError, match=message):
            load_model(name)
    with pytest.raises(UserError, match="20,001 characters; this page takes 20,000"):
        next(stream_text(load_model(str(folder / "lm")), "a" * (MAX_CHARACTERS + 1), Sampling()))
    with pytest.raises(UserError, match="leave no room"):
        next(stream_text(load_model(str(folder / "lm")), "One day, " * 100, Sampling()))
