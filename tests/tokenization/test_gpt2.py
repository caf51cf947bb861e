"""GPT-2's tokenizer equals tiktoken's, built from the same two files, on real and on hostile text."""

import json

import pytest
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer

HOSTILE = [
    "", " ", "\n", "\r\n\r\n", "a" * 5000, " " * 1000 + "x", "\t \t\n x  y   z", "\x00\x01 \x7f", "🙂👩‍👩‍👧‍👦🇩🇪", "e\u0301 a\u030a ﬁ ①",
    "日本語のテキスト", "السلام عليكم", "It's we'll I'VE don't 'tis", "3.14159 1,000,000 ½", "<|endoftext|", "\u200b\ufeff\u2028", "  leading and trailing  ",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_gpt2_tokenizer(shared_data / "gpt2", model_max_length=512)


@pytest.fixture(scope="module")
def reference(shared_data):
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    folder = shared_data / "gpt2"
    return tiktoken.Encoding(
        "gpt2-from-files",
        pat_str=r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+""",
        mergeable_ranks=data_gym_to_mergeable_bpe_ranks(str(folder / "vocab.bpe"), str(folder / "encoder.json")),
        special_tokens={"<|endoftext|>": 50256},
    )


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_equals_tiktoken_and_comes_back(tokenizer, reference, text):
    ids = tokenizer(text)["input_ids"]
    assert ids == reference.encode(text, disallowed_special=())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "name", ["the-verdict.txt", "tinyshakespeare/input.txt", "wikitext-2/valid.txt", "SMSSpamCollection.tsv"]
)
@pytest.mark.thorough
def test_real_text_equals_tiktoken_and_comes_back(tokenizer, reference, shared_data, name):
    text = (shared_data / name).read_bytes().decode("utf-8")
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert ids == reference.encode_ordinary(text)
    assert tokenizer.decode(ids) == text


def test_published_ids(tokenizer):
    assert tokenizer("Hello, world. Is this-- a test?")["input_ids"] == [15496, 11, 995, 13, 1148, 428, 438, 257, 1332, 30]
    assert tokenizer("Every effort moves you<|endoftext|>")["input_ids"] == [6109, 3626, 6100, 345, 50256]


def test_it_is_saved_for_plain_auto_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert len(again) == 50257 and again.model_max_length == 512
    assert [again.eos_token_id, again.bos_token_id, again.unk_token_id, again.pad_token_id] == [50256] * 4
    assert all(again(text)["input_ids"] == tokenizer(text)["input_ids"] for text in HOSTILE)
    assert not any(path.suffix == ".py" for path in tmp_path.iterdir())


def write(folder, vocabulary, merges):
    (folder / "encoder.json").write_text(vocabulary if isinstance(vocabulary, str) else json.dumps(vocabulary), encoding="utf-8")
    (folder / "vocab.bpe").write_text(merges, encoding="utf-8")
    return folder


def test_broken_files_are_named(tmp_path):
    with pytest.raises(UserError, match="holds neither"):
        load_gpt2_tokenizer(tmp_path)
    with pytest.raises(UserError, match="broken"):
        load_gpt2_tokenizer(write(tmp_path, "{", "#version: 0.2\n"))
    with pytest.raises(UserError, match="merge 2 .* is not a pair"):
        load_gpt2_tokenizer(write(tmp_path, {"a": 0, "b": 1, "ab": 2}, "#version: 0.2\na b\nb b\n"))
    with pytest.raises(UserError, match="not 0 to 1"):
        load_gpt2_tokenizer(write(tmp_path, {"a": 0, "b": 2}, "#version: 0.2\n"))


@pytest.mark.parametrize("text", ["\ud83d", "half a pair \udc00 here"])
def test_lone_surrogates_are_refused(tokenizer, text):
    with pytest.raises((UnicodeEncodeError, TypeError)):  # never replaced silently, which would not come back
        tokenizer(text)
