"""Files of minbpe and of the book's BPE, written here by plain restatements of what those two do: recount, take the first most frequent
pair, replace it everywhere."""

import json
import re
from collections import Counter
from itertools import pairwise

import pytest
import regex
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair_files import read_book_bpe, read_minbpe

TEXT = "low lower lowest, newest newest widest 123 1234 naïve 🙂\n\nIt's a  day.\n" * 3
GPT4_PATTERN = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"


def replace(ids, pair, new):
    replaced, place = [], 0
    while place < len(ids):
        found = tuple(ids[place : place + 2]) == pair
        replaced.append(new if found else ids[place])
        place += 2 if found else 1
    return replaced


def train(pieces, first_id, count):
    merges = {}
    for new in range(first_id, first_id + count):
        pairs = Counter(pair for piece in pieces for pair in pairwise(piece))
        pair = max(pairs, key=pairs.get)
        pieces = [replace(piece, pair, new) for piece in pieces]
        merges[pair] = new
    return merges


def encode(pieces, merges):
    ids = []
    for piece in pieces:
        while pairs := [pair for pair in pairwise(piece) if pair in merges]:
            pair = min(pairs, key=merges.get)
            piece = replace(piece, pair, merges[pair])
        ids += piece
    return ids


def cut(pattern, text):
    return [list(piece.encode()) for piece in (regex.findall(pattern, text) if pattern else [text])]


def write_minbpe(path, pattern, special_tokens, merges):
    special = "".join(f"{token} {id}\n" for token, id in special_tokens.items())
    pairs = "".join(f"{left} {right}\n" for left, right in merges)
    path.write_text(f"minbpe v1\n{pattern}\n{len(special_tokens)}\n{special}{pairs}", encoding="utf-8")
    return path


@pytest.mark.parametrize("pattern", ["", GPT4_PATTERN])
def test_minbpe(tmp_path, pattern):
    merges = train(cut(pattern, TEXT), 256, 25)
    special_tokens = {"<|endoftext|>": 281, "<|fim|>": 282}
    tokenizer = read_minbpe(write_minbpe(tmp_path / "toy.model", pattern, special_tokens, merges))
    assert tokenizer.merges == merges
    assert len(tokenizer) == 283

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fast = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in [TEXT, TEXT.upper(), "newest\t\r\n\r\n  widest'LL 12345!!\n\n!", "ſ's K \u0558a\x85\u3000x"]:
        ids = encode(cut(pattern, text), merges)
        assert tokenizer.encode(text) == ids == fast(text)["input_ids"]
        assert tokenizer.decode(ids) == text == fast.decode(ids)
    ids = [*encode(cut(pattern, "low"), merges), 282, 281]
    assert tokenizer.encode("low<|fim|><|endoftext|>") == ids == fast("low<|fim|><|endoftext|>")["input_ids"]
    assert fast.eos_token_id == 281


def test_minbpes_published_example(tmp_path):
    # minbpe's README: "aaabdaaabac" with 3 merges.
    merges = train(cut("", "aaabdaaabac"), 256, 3)
    tokenizer = read_minbpe(write_minbpe(tmp_path / "toy.model", "", {}, merges))
    assert tokenizer.encode("aaabdaaabac") == [258, 100, 258, 97, 99]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("minbpe v2\n\n0\n", "line 1 is not 'minbpe v1'"),
        ("", "line 1 is not 'minbpe v1'"),
        ("minbpe v1\n(\n0\n", "line 2: '\\(' is not a regular expression"),
        ("minbpe v1\n", "line 2 is broken"),
        ("minbpe v1\n\nx\n", "line 3 is broken"),
        ("minbpe v1\n\n1\n<|x|>\n", "line 4 is broken"),
        ("minbpe v1\n\n0\n97 98\n97\n", "line 5 is broken"),
        ("minbpe v1\n\n0\n97 98\n97 257\n", "line 5: id 257 is not a byte or the result"),
        ("minbpe v1\n\n1\n<|x|> 256\n97 98\n", "special token '<|x|>' has id 256"),
    ],
)
def test_broken_minbpe_files_are_refused(tmp_path, content, message):
    (tmp_path / "toy.model").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        read_minbpe(tmp_path / "toy.model")


def book_pieces(text):
    """The book's `pretokenize_text`: line ends alone, "Ġ" before a word for one space, and alone for each further one."""
    pieces = []
    for line in re.split(r"(\r|\n)", text):
        if line in ("\r", "\n"):
            pieces.append(line)
            continue
        spaces = 0
        for run in re.findall(r" +|\S+", line):
            if run[0] == " ":
                spaces = len(run)
            else:
                pieces += ["Ġ"] * (spaces - 1) + [("Ġ" if spaces else "") + run]
                spaces = 0
        pieces += ["Ġ"] * spaces
    return pieces


@pytest.fixture
def book_files(tmp_path):
    characters = [chr(code) for code in range(256)] + sorted({character for character in TEXT if ord(character) > 255}) + ["Ġ"]
    vocab = dict(enumerate([*characters, "<|endoftext|>"]))
    pieces = [[characters.index(character) for character in piece] for piece in book_pieces(TEXT)]
    merges = train(pieces, len(vocab), 30)
    for (left, right), new in merges.items():
        vocab[new] = vocab[left] + vocab[right]
    (tmp_path / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, indent=2), encoding="utf-8")
    saved = [{"pair": list(pair), "new_id": new} for pair, new in merges.items()]
    (tmp_path / "bpe_merges.txt").write_text(json.dumps(saved, ensure_ascii=False, indent=2), encoding="utf-8")
    return tmp_path / "vocab.json", tmp_path / "bpe_merges.txt", characters, merges


def test_book(book_files, tmp_path):
    vocabulary, merge_file, characters, merges = book_files
    tokenizer = read_book_bpe(vocabulary, merge_file)
    assert tokenizer.merges == merges
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fast = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    for text in [TEXT, " lowest  newest \r\n", "  a", "low,\n newest 🙂!"]:
        ids = encode([[characters.index(character) for character in piece] for piece in book_pieces(text)], merges)
        assert tokenizer.encode(text) == ids == fast(text)["input_ids"]
        assert tokenizer.decode(ids) == text == fast.decode(ids)
    end = tokenizer.special_tokens["<|endoftext|>"]
    for text in ["low<|endoftext|> new", "low 你 x\ty"]:  # an unknown character is the end-of-text token; a tab is kept
        assert tokenizer.encode(text) == fast(text)["input_ids"]
        assert end in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode("x\ty")) == "x\ty"


@pytest.mark.parametrize(
    ("vocabulary", "merges", "message"),
    [
        ('{"a": 0}', "[]", "a key is not an id"),
        ('{"0": 1}', "[]", "a value is not text"),
        ("[]", "[]", "holds a list: a JSON object is expected"),
        ("{", "[]", "is not valid JSON"),
        ('{"0": "a"}', "[]", "has no <|endoftext|>"),
        ('{"0": "a"}', '[{"pair": [0, 1], "new_id": 2}]', "entry 0 is not a pair of known ids"),
        ('{"0": "a"}', '["a b"]', "entry 0 is not a pair of known ids"),
        ('{"0": "a", "1": "b"}', '[{"pair": [0, 0], "new_id": 1}]', "entry 0 makes 'aa', but token 1 is 'b'"),
    ],
)
def test_broken_book_files_are_refused(tmp_path, vocabulary, merges, message):
    (tmp_path / "vocab.json").write_text(vocabulary, encoding="utf-8")
    (tmp_path / "merges.json").write_text(merges, encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("|", r"\|")):
        read_book_bpe(tmp_path / "vocab.json", tmp_path / "merges.json")


def test_missing_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        read_minbpe(tmp_path / "none.model")
