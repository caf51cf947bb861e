"""Single characters as tokens: nanoGPT's meta.pkl, and those learned from a text."""

import os
import pickle

import pytest
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.nanogpt_meta import read_meta_pkl
from gpt_scratch.tokenization.portable import save_tokenizer
from gpt_scratch.tokenization.word_level import train_word_level

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\r\n\n  Ünïcode 漢字 🙂\t"


def meta_of(text: str) -> dict:
    """As nanoGPT's `prepare.py` makes it."""
    characters = sorted(set(text))
    stoi = {character: i for i, character in enumerate(characters)}
    return {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": stoi}


@pytest.fixture
def write(tmp_path):
    def run(content, protocol=4):
        path = tmp_path / "meta.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return run


@pytest.mark.parametrize("protocol", range(6))
def test_the_ids_are_nanogpts(write, tmp_path, protocol):
    meta = meta_of(TEXT)
    save_tokenizer(read_meta_pkl(write(meta, protocol), model_max_length=64), tmp_path / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    expected = [meta["stoi"][character] for character in TEXT]  # nanoGPT's encode
    assert tokenizer(TEXT)["input_ids"] == expected and tokenizer.decode(expected) == TEXT
    assert len(tokenizer) == meta["vocab_size"] and tokenizer.model_max_length == 64


def test_a_character_that_it_lacks_is_an_error(write):
    with pytest.raises(Exception, match="UNK"):
        read_meta_pkl(write(meta_of("abc")))("abcd")


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.fault("a meta.pkl with code, of foreign content or damaged", seconds=5, mebibytes=100)
def test_anything_else_is_refused_and_not_run(write, tmp_path):
    good, target = meta_of("abc"), tmp_path / "made-by-the-pickle"
    cases = {
        "which only running code of the file could load": good | {"extra": Harmful(target)},
        "no 'stoi' of strings to numbers": {"itos": {}},
        "is no meta.pkl": [1, 2],
        "is not a single character": {"stoi": {"ab": 0}},
        "are not 0 to 1": {"stoi": {"a": 0, "b": 2}},
        "are not 0 to -1": {"stoi": {}},
        "contradict one another": good | {"vocab_size": 4},
        "cannot be read as": pickle.dumps(good)[:-9],
    }
    for words, content in cases.items():
        with pytest.raises(UserError, match=words):
            read_meta_pkl(write(content))
    with pytest.raises(UserError, match="contradict"):
        read_meta_pkl(write(good | {"itos": {0: "b", 1: "a", 2: "c"}}))
    with pytest.raises(UserError, match="cannot be read as nanoGPT's meta.pkl"):
        read_meta_pkl(write(b"\x80\x04" + b"\x8e" + (2**62).to_bytes(8, "little") + b"x"))  # bytes that are not there
    nested = (
        b"\x80\x02})" + b"2\x86" * 60 + b"K\x01s."
    )  # {tuple: 1}: each tuple holds the one before twice, so hashing takes 2^60 steps
    with pytest.raises(UserError, match="tuples nested more than 20 deep"):
        read_meta_pkl(write(nested))
    with pytest.raises(UserError, match="No such file"):
        read_meta_pkl(tmp_path / "nothing.pkl")
    assert not target.exists()


def test_characters_learned_from_a_text(tmp_path):
    save_tokenizer(train_word_level([TEXT], "character"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(TEXT)["input_ids"]
    assert len(ids) == len(TEXT) and tokenizer.decode(ids) == TEXT
    assert tokenizer.convert_ids_to_tokens(ids) == list(TEXT)
    assert tokenizer("§")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer("a<|endoftext|>b")["input_ids"][1] == tokenizer.eos_token_id
