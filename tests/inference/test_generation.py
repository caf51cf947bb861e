"""Texts from prompts: batches, seeds, streams, stops and limits."""

import re

import pytest
import torch

from gpt_scratch.errors import UserError, printable
from gpt_scratch.inference.generation import encode_prompts, generate_texts
from gpt_scratch.inference.loading import load_language_model as load

PROMPTS = ["One day, Anna", "Tom", ""]


def test_a_batch_of_prompts_equals_each_alone(pair):
    batch = generate_texts(*pair, PROMPTS, max_new_tokens=12)
    assert batch == [generate_texts(*pair, [prompt], max_new_tokens=12)[0] for prompt in PROMPTS]
    assert len(set(batch)) == 3


def test_an_empty_prompt_starts_from_the_end_of_text_token(pair):
    _, tokenizer = pair
    inputs = encode_prompts(["", "Tom Tom"], tokenizer, torch.device("cpu"))
    assert inputs["input_ids"][0, -1] == tokenizer.eos_token_id
    assert inputs["attention_mask"][0].tolist() == [0] * (inputs["input_ids"].shape[1] - 1) + [1]


def test_a_seed_fixes_the_text(pair):
    sample = {"max_new_tokens": 20, "temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01}
    first, again, other = (generate_texts(*pair, ["Tom"], seed=seed, **sample) for seed in (1, 1, 2))
    assert first == again != other


SAMPLED = {"max_new_tokens": 20, "temperature": 1.0, "seed": 3}


@pytest.mark.parametrize("setting", [{"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_sampling_setting_can_be_made_greedy(pair, setting):
    greedy = generate_texts(*pair, PROMPTS, max_new_tokens=20)
    assert generate_texts(*pair, PROMPTS, **SAMPLED) != greedy  # without it
    assert generate_texts(*pair, PROMPTS, **SAMPLED | setting) == greedy


@pytest.mark.parametrize("setting", [{"temperature": 2.0}, {"top_k": 5}, {"top_p": 0.5}, {"min_p": 0.2}])
def test_each_sampling_setting_draws_from_its_distribution(pair, setting):
    """The first token over many draws has the shares that the definition of the setting gives it."""
    model, tokenizer = pair
    ids = torch.tensor(tokenizer("Tom")["input_ids"])[None]
    with torch.no_grad():
        logits = model(ids).logits[0, -1].double()
    expected = (logits / setting.get("temperature", 1.0)).softmax(-1)
    ranked = expected.sort(descending=True)
    if "top_k" in setting:
        expected[ranked.indices[5:]] = 0
    if "top_p" in setting:  # the fewest tokens that together reach it
        expected[ranked.indices[1:][ranked.values.cumsum(-1)[:-1] >= 0.5]] = 0
    if "min_p" in setting:
        expected[expected < 0.2 * expected.max()] = 0
    expected /= expected.sum()
    draws = generate_texts(
        model, tokenizer, ["Tom"] * 2000, max_new_tokens=1, seed=1, **{"temperature": 1.0, "top_k": len(tokenizer)} | setting
    )
    texts: dict[str, float] = {}
    for token, share in enumerate(expected.tolist()):
        text = tokenizer.decode([token], skip_special_tokens=True)
        texts[text] = texts.get(text, 0.0) + share
    assert set(draws) <= {text for text, share in texts.items() if share}
    for text, share in texts.items():
        assert draws.count(text) / 2000 == pytest.approx(share, abs=5 * (share * (1 - share) / 2000) ** 0.5 + 1e-9), text


def test_streamed_text_is_the_returned_text(pair, capsys):
    texts = generate_texts(*pair, ["Tom", "Anna"], max_new_tokens=10, stream=True)
    assert texts == [generate_texts(*pair, [prompt], max_new_tokens=10)[0] for prompt in ("Tom", "Anna")]
    assert capsys.readouterr().out == printable(f"Tom{texts[0]}\nAnna{texts[1]}\n")


def test_a_stop_string_ends_the_text(pair):
    text = generate_texts(*pair, ["Tom"], max_new_tokens=30)[0]
    stop = re.search("[!-~]{2}", text).group()
    stopped = generate_texts(*pair, ["Tom"], max_new_tokens=30, stop=[stop])[0]
    assert stop in stopped and len(stopped) < len(text) and text.startswith(stopped)


def test_generation_ends_at_the_end_of_text_token(pair):
    model, tokenizer = pair
    ids = model.generate(**encode_prompts(["Tom"], tokenizer, model.device), max_new_tokens=6, do_sample=False)
    third = int(ids[0, -4])
    model.generation_config.eos_token_id = third
    try:
        shorter = model.generate(**encode_prompts(["Tom"], tokenizer, model.device), max_new_tokens=6, do_sample=False)
    finally:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    assert int(shorter[0, -1]) == third and shorter.shape[1] < ids.shape[1]


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}])
def test_other_ways_to_search_change_the_text(pair, settings):
    plain = generate_texts(*pair, PROMPTS, max_new_tokens=24)
    assert generate_texts(*pair, PROMPTS, max_new_tokens=24, **settings) != plain


@pytest.mark.parametrize("count", [1, 7])
def test_no_more_tokens_than_asked_for(pair, monkeypatch, count):
    model, tokenizer = pair
    generate, seen = model.generate, []
    monkeypatch.setattr(model, "generate", lambda **kwargs: seen.append(generate(**kwargs)) or seen[-1])
    generate_texts(model, tokenizer, ["Tom"], max_new_tokens=count)
    assert seen[0].shape[1] - len(tokenizer("Tom")["input_ids"]) == count


def test_text_ends_where_the_learned_positions_end(pair):
    model, tokenizer = pair
    room = 48 - len(tokenizer("Tom")["input_ids"])
    texts = generate_texts(model, tokenizer, ["Tom"], max_new_tokens=1000)
    assert texts == generate_texts(model, tokenizer, ["Tom"], max_new_tokens=room)
    with pytest.raises(UserError, match="48 positions"):
        generate_texts(model, tokenizer, ["Tom had it. " * 40])


def test_checkpoints_that_cannot_be_loaded_are_named(tmp_path, pair):
    with pytest.raises(UserError, match="nowhere"):
        load(str(tmp_path / "nowhere"))
    model, tokenizer = pair
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded, again = load(str(tmp_path))
    assert generate_texts(loaded, again, PROMPTS, max_new_tokens=8) == generate_texts(*pair, PROMPTS, max_new_tokens=8)
