"""Documents from files of each format, and the errors of broken files."""

import gzip
import json
import random

import datasets
import pytest
from tokenizers import Regex, pre_tokenizers

from gpt_scratch.data import readers
from gpt_scratch.data.opening import check_files
from gpt_scratch.data.readers import read_pieces, whole_text
from gpt_scratch.data.tables import load_table
from gpt_scratch.errors import UserError

TEXTS = ["One day, Anna lost her key.", 'She said: "Ça va?"\nThen, a comma; and 🙂.', "The end"]


def written(folder, kind):
    path = folder / f"texts.{kind}"
    rows = datasets.Dataset.from_list([{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    if kind == "jsonl":
        rows.to_json(path)
    elif kind == "json":
        path.write_text(json.dumps([{"text": text} for text in TEXTS]), encoding="utf-8")
    elif kind == "csv":
        rows.to_csv(path, index=False)
    else:
        rows.to_parquet(path)
    return str(path)


# Pre-tokenization of GPT-2 (OpenAI, gpt-2/src/encoder.py), GPT-4 and Llama 3 (tiktoken, cl100k_base), Qwen.
PATTERNS = [
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("alphabet", ["ab1.' \n", "é日9,\r\n\t\u00a0 ", "日本\n", "Tom's 12. \n"])
def test_pieces_are_cut_where_no_token_is(tmp_path, monkeypatch, pattern, alphabet):
    monkeypatch.setattr("gpt_scratch.data.readers.PIECE_CHARACTERS", 6)
    monkeypatch.setattr("gpt_scratch.data.opening.READ_BYTES", 11)
    text = "".join(random.Random(0).choices(alphabet, k=4000))
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    pieces = [piece.text for piece in read_pieces([str(path)])]
    assert "".join(pieces) == text and len(pieces) > 80 and min(map(len, pieces[:-1])) >= 6
    split = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str
    assert [token for piece in pieces for token, _ in split(piece)] == [token for token, _ in split(text)]


def test_wikitext_is_cut_too(tmp_path):
    path = tmp_path / "wiki.txt"
    path.write_text(" \n = Title = \n \n A text , with a space at both ends of every line . \n" * 10_000, encoding="utf-8")
    pieces = list(read_pieces([str(path)]))
    assert len(pieces) > 9 and max(len(piece.text) for piece in pieces) < 2 * readers.PIECE_CHARACTERS


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_a_row_is_a_document(tmp_path, kind):
    pieces = list(read_pieces([written(tmp_path, kind)]))
    assert [piece.text for piece in pieces] == TEXTS and all(piece.end for piece in pieces)


def test_a_text_file_is_one_document_read_exactly(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\r\n a\u0301 🙂\r\n\x00end ".encode())
    assert [(piece.text, piece.end) for piece in read_pieces([str(path)])] == [("\r\n a\u0301 🙂\r\n\x00end ", True)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "missing.txt: no such file"),
        ("empty.txt", b"", "empty.txt is empty"),
        ("image.png", b"x", "unknown format '.png'"),
    ],
)
def test_files_are_checked_before_anything_is_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_files([str(tmp_path / name)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin1.txt", b"caf\xe9 au lait", "byte 3 is not UTF-8"),
        ("latin1-late.txt", b"a" * 3_000_000 + b"\xe9 ", "byte 3000000 is not UTF-8"),
        ("cut.txt", "é".encode()[:1], "byte 0 is not UTF-8"),
        ("column.jsonl", b'{"content": "x"}\n', "no column 'text': its columns are content"),
        ("null.jsonl", b'{"text": "a"}\n{"text": null}\n', "row 1: 'text' is missing"),
        ("short.csv", b"id,text\n0,a\n1\n", "line 3: 1 field but the header has 2"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "broken.jsonl line 2: not valid JSON"),
        ("latin1.csv", b"text\n\xe9\n", "latin1.csv: byte 5 is not UTF-8 .*line 2.*--encoding, such as cp1252"),
        ("latin1.jsonl", b'{"text": "\xe9"}', "latin1.jsonl: byte 10 is not UTF-8"),
        ("number.json", b"3", "contains a int, expected a list of objects"),
        ("broken.parquet", gzip.compress(b"no parquet", mtime=0), "broken.parquet is not a readable parquet file"),
    ],
)
def test_broken_files_are_named_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_pieces([str(tmp_path / name)]))
    assert name in str(error.value) and "\n" not in str(error.value)


def test_a_saved_data_set_directory_is_read(tmp_path):
    rows = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "validation": rows.select([0])}).save_to_disk(tmp_path / "two")
    assert load_table(str(tmp_path / "one"), None, "train", streaming=False)["text"][:] == TEXTS
    assert load_table(str(tmp_path / "one"), None, "validation", streaming=False) is None
    assert load_table(str(tmp_path / "two"), None, "validation", streaming=False)["text"][:] == TEXTS[:1]
    with pytest.raises(UserError, match="nowhere"):
        load_table(str(tmp_path / "nowhere"), None, "train", streaming=False)


def test_the_whole_text_of_any_file(tmp_path):
    """What benchmark.py and measure_compatibility.py measure."""
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\ntwo\n")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "one\\n"}\n{"text": "two"}\n'))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert whole_text(str(tmp_path / "a.txt")) == "one\ntwo\n" and whole_text(str(tmp_path / "a.jsonl.gz")) == "one\n\ntwo"
    with pytest.raises(UserError, match="latin.txt: byte 3 is not UTF-8"):
        whole_text(str(tmp_path / "latin.txt"))
