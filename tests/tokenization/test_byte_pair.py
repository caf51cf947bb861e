"""The byte-pair tokenizer against the `tokenizers` library: merges, ids and texts, on hand-made, random and real text."""

import json
import random
import subprocess
import sys

import pytest
from hostile_text import TEXT, hostile_text
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import END_OF_TEXT, PADDING, BytePairTokenizer, train_byte_level_bpe, train_byte_pair
from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer


def from_fast(tokenizer) -> BytePairTokenizer:
    """The from-scratch form of a byte-level BPE with GPT-2's pre-tokenization that the library has loaded."""
    form = json.loads(tokenizer.backend_tokenizer.to_str())
    assert form["normalizer"] is None and form["pre_tokenizer"]["use_regex"] and not form["pre_tokenizer"]["add_prefix_space"]
    ids, special = form["model"]["vocab"], {token["content"]: token["id"] for token in form["added_tokens"]}
    tokens = {id: token for token, id in (ids | special).items()}
    merges = {(ids[left], ids[right]): ids[left + right] for left, right in form["model"]["merges"]}
    return BytePairTokenizer(tokens, merges, special)


def test_ids_are_gpt2s_bytes_then_merges_then_special_tokens(shared_data):
    tokenizer = train_byte_pair([TEXT], 300)
    gpt2 = from_fast(load_gpt2_tokenizer(shared_data / "gpt2"))
    assert [tokenizer.tokens[id] for id in range(256)] == [gpt2.tokens[id] for id in range(256)]
    assert set(tokenizer.merges.values()) == set(range(256, 298))
    assert tokenizer.special_tokens == {END_OF_TEXT: 298, PADDING: 299}


def test_special_tokens_have_their_roles():
    tokenizer = train_byte_level_bpe([TEXT], 300, model_max_length=64)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        298,
        298,
        298,
        299,
    )
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == 300
    assert tokenizer("a<|endoftext|>b")["input_ids"][1] == 298


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return train_byte_pair([TEXT, *map(hostile_text, range(5))], 400)


@pytest.fixture(scope="module")
def fast(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe") / "tokenizer"
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("seed", range(30))
def test_ids_and_texts_equal_auto_tokenizer(tokenizer, fast, seed):
    text = (
        hostile_text(seed) + random.Random(seed).choice([END_OF_TEXT, "<|endoftext", PADDING + END_OF_TEXT, ""]) + TEXT[seed:99]
    )
    ids = tokenizer.encode(text)
    assert ids == fast(text)["input_ids"]
    assert tokenizer.decode(ids) == text == fast.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == fast.decode(ids, skip_special_tokens=True)
    # Cut anywhere, also within a character: the two agree on the replacement characters.
    cut = random.Random(seed).sample(range(400), k=100)
    assert tokenizer.decode(cut) == fast.decode(cut)
    assert tokenizer.encode(text, split_special_tokens=True) == fast(text, split_special_tokens=True)["input_ids"]


@pytest.mark.thorough
def test_saved_tokenizer_loads_in_a_fresh_process_without_this_package(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys, transformers; t = transformers.AutoTokenizer.from_pretrained(sys.argv[1]);"
        "assert 'gpt_scratch' not in sys.modules; print(t(sys.argv[2])['input_ids'])"
    )
    arguments = [sys.executable, "-I", "-c", code, str(tmp_path / "tokenizer"), TEXT[:90] + END_OF_TEXT]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == tokenizer.encode(TEXT[:90] + END_OF_TEXT)
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        ".gpt_scratch.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_gpt2_from_scratch_gives_openais_ids(shared_data):
    gpt2 = load_gpt2_tokenizer(shared_data / "gpt2")
    tokenizer = from_fast(gpt2)
    assert tokenizer.encode("Hello, do you like tea? <|endoftext|> In the sunlit terraces of someunknownPlace.") == [
        15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114, 286, 617, 34680, 27271, 13,
    ]  # fmt: skip  # the book, section 2.6
    for text in [(shared_data / "the-verdict.txt").read_text(encoding="utf-8"), TEXT, *map(hostile_text, range(30))]:
        assert tokenizer.encode(text) == gpt2(text)["input_ids"]


def test_the_longer_of_two_special_tokens_wins():
    tokenizer = train_byte_pair([TEXT], 300, special_tokens=("<|e|>", "<|e|><|e|>", "a b"))
    fast = tokenizer.to_fast()
    text = "x<|e|><|e|><|e|> a b"
    assert (
        tokenizer.encode(text) == fast(text)["input_ids"] == [tokenizer.encode("x")[0], 298, 297, tokenizer.encode(" ")[0], 299]
    )


def test_a_long_piece_is_quick_and_equal(tokenizer, fast):
    text = "".join(random.Random(0).choices("annaTomkey", k=30_000))  # 30 kB without a space: quadratic algorithms take minutes
    assert tokenizer.encode(text) == fast(text)["input_ids"]
    assert not tokenizer._pieces.get(text)  # nor is it kept


def test_the_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer._pieces), "CAPACITY", 10)
    tokenizer._pieces.clear()
    text = " ".join(f"word{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(200))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 0 < len(tokenizer._pieces) <= 10


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"lone surrogate, '\\ud83d', at character 3"):
        tokenizer.encode("abc\ud83d def")
    with pytest.raises(UserError, match="lone surrogate"):
        train_byte_pair(["abc\ud83d def"], 300)


def test_unknown_ids_are_refused(tokenizer):
    with pytest.raises(UserError, match="no token 400: its ids go from 0 to 399"):
        tokenizer.decode([1, 400])


def test_forms_that_cannot_be_saved_are_refused():
    base = train_byte_pair([TEXT], 260)
    with pytest.raises(UserError, match="without holes"):
        BytePairTokenizer({**base.tokens, 1000: "<|x|>"}, base.merges, {"<|x|>": 1000}).to_fast()
    with pytest.raises(UserError, match="tokens 0 and 260 are both '!'"):
        BytePairTokenizer({**base.tokens, 260: "!"}, base.merges, {}).to_fast()
