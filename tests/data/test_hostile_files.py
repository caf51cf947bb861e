"""Untrusted files: text without line ends, endless rows and archive bombs, within bounds of memory."""

import json
import random
import sys
import zipfile
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from bounds import refused_in_one_line, run_bounded

from gpt_scratch.data import opening, readers
from gpt_scratch.data.classification import label_ids, read_labelled_texts
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair_training import LONG_CHARACTERS, LONGEST_WORD, count_pieces

LETTERS = "abcdefghijklmnopqrstuvwxyz"
READ = """
import sys
from gpt_scratch.data.language_modeling import BlockSettings, Source, stream_blocks
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.errors import run_script
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

def main():
    tokenizer = train_byte_level_bpe((piece.text for piece in read_pieces(sys.argv[1:])), 300)
    blocks = stream_blocks(Source(tuple(sys.argv[1:])), tokenizer, BlockSettings(256))
    return len([None for _ in zip(range(5_000), blocks)]), sum(len(piece.text) for piece in read_pieces(sys.argv[1:]))

print(run_script(main))
"""


@pytest.mark.fault("30 MB of text without a space: a tokenizer trained, the text read and cut", seconds=90, mebibytes=1100)
@pytest.mark.thorough
def test_text_without_a_space_is_read_in_constant_memory(tmp_path):
    path, rng = tmp_path / "letters.txt", random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(30):
            file.write("".join(rng.choices(LETTERS, k=1_000)) * 1_000)
    outcome = run_bounded([sys.executable, "-c", READ, path], 90, 1100)
    assert outcome.exceeded is None and outcome.status == 0, (outcome.exceeded, outcome.stderr[-2000:])
    assert outcome.stdout == "(5000, 30000000)\n"


def test_text_without_line_ends_is_cut_at_words_or_at_the_maximum_length(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "PIECE_CHARACTERS", 6)
    monkeypatch.setattr(readers, "LONGEST_PIECE", 20)
    monkeypatch.setattr(opening, "READ_BYTES", 50)
    path = tmp_path / "text.txt"
    for text in ("x" * 333, "word\n\n  " * 70, "a b " + "y" * 200 + " c d " * 30, " " * 100, "漢字" * 100 + "\n" + "字" * 3):
        path.write_text(text, encoding="utf-8")
        pieces = list(read_pieces([str(path)]))
        assert "".join(piece.text for piece in pieces) == text
        assert (
            max(len(piece.text) for piece in pieces) <= 20 and [piece.end for piece in pieces].count(True) == pieces[-1].end == 1
        )
        if "word" in text:  # where the tokens of every pre-tokenization begin
            assert all(piece.text[:2] == "\n\n" for piece in pieces[1:]), pieces[:3]


def test_training_on_overlong_words_is_bounded():
    short, long = "some words " * 10, "z" * 5_000
    assert count_pieces([short]) == Counter({"some": 1, " some": 9, " words": 10, " ": 1})
    counts = count_pieces([short, *[long] * 1_000])
    assert counts["z" * LONGEST_WORD] > 100 and counts[" words"] == 10
    assert sum(len(piece) * times for piece, times in counts.items() if piece[0] == "z") == LONG_CHARACTERS


@pytest.mark.parametrize(("kind", "start"), [("jsonl", '{"text": "'), ("csv", "text\n"), ("csv", 'text\n"')])
def test_an_endless_row_is_refused(tmp_path, monkeypatch, kind, start):
    monkeypatch.setattr(opening, "ROW_BYTES", 1 << 20)
    path = tmp_path / f"rows.{kind}"
    path.write_text(start + "x " * (1 << 20), encoding="utf-8")
    with pytest.raises(UserError, match=r"line \d is longer than 1,048,576"):
        list(read_pieces([str(path)]))


@pytest.mark.slow
@pytest.mark.fault(
    "a parquet file of 20 kB whose one value has 300 MB; one whose 100,000 rows share 20 MB", seconds=40, mebibytes=4000
)
def test_a_parquet_bomb_is_refused(tmp_path):
    value, rows = tmp_path / "value.parquet", tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * 300_000_000]}), value, compression="zstd", use_dictionary=False)
    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 100_000, pyarrow.int32()), pyarrow.array(["x" * (20 << 20)]))
    pyarrow.parquet.write_table(pyarrow.table({"text": shared}), rows, compression="zstd", store_schema=False)
    assert value.stat().st_size < 100_000 and rows.stat().st_size < 100_000
    for path, words in ((value, "unpack to"), (rows, "rows 0 to 15 hold")):
        refused_in_one_line(run_bounded([sys.executable, "-c", READ, path], 20, 1300), path.name, words)


@pytest.mark.thorough
def test_repetitive_text_in_parquet_is_read(tmp_path):
    path = tmp_path / "usual.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["The same again. " * 100] * 50_000}), path, compression="zstd")
    assert sum(piece.end for piece in read_pieces([str(path)])) == 50_000


def encrypt(path) -> None:
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + place] |= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("encrypted", "password required"),
        ("damaged", "or is damaged"),
        ("an unknown method", "or is damaged"),
        ("too large", "unpack to 100,000,000 bytes"),
        ("no such member", "no member SMSSpamCollection"),
        ("no zip", "not a zip file"),
    ],
)
def test_a_zip_that_cannot_be_unpacked_is_refused_in_one_line(tmp_path, name, words):
    path = tmp_path / "sms.zip"
    content = b"\0" * 100_000_000 if name == "too large" else b"ham\tYes\nspam\tNo\n" * 100
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other" if name == "no such member" else "SMSSpamCollection", content)
    if name == "encrypted":
        encrypt(path)
    elif name == "damaged":
        data = bytearray(path.read_bytes())
        data[50:60] = b"\xff" * 10
        path.write_bytes(data)
    elif name == "an unknown method":
        data = bytearray(path.read_bytes())
        data[8] = data[data.index(b"PK\x01\x02") + 10] = 97
        path.write_bytes(data)
    elif name == "no zip":
        path.write_bytes(b"PK")
    with pytest.raises(UserError, match=words) as caught:
        read_labelled_texts(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.fault("labels of a superscript digit, of 5,000 digits and of other scripts' digits", seconds=5, mebibytes=900)
def test_labels_that_int_does_not_take_are_names_or_numbers():
    long = "9" * 5_000
    assert list(label_ids(["²", "10", "9", long, "٣", "ham"])) == ["٣", "9", "10", long, "ham", "²"]


def test_deeply_nested_json_is_refused_in_one_line(tmp_path):
    path = tmp_path / "deep.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n" + "[" * 200_000, encoding="utf-8")
    with pytest.raises(UserError, match="line 2: not valid JSON"):
        list(read_pieces([str(path)]))
