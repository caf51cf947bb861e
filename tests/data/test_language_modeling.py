"""Rows of token ids against values written by hand, and counts that account for every token."""

import json

import datasets
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gpt_scratch.data import language_modeling, opening, readers
from gpt_scratch.data.blocks import TokenBlocks
from gpt_scratch.data.language_modeling import (
    BlockSettings,
    Source,
    documents_from_files,
    make_blocks,
    split_documents,
    stream_blocks,
    tokenize_documents,
)
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

TEXT = "One day, Anna lost her key.\nShe looked by the river.\n\nThere it was!\n" * 40


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe([TEXT], vocab_size=300)


def documents_of(rows: datasets.Dataset) -> datasets.Dataset:
    """The documents of a table in memory, one a row."""
    return language_modeling._cached({"source": Source(dataset_name="table"), "rows": rows})


def test_each_document_ends_with_the_end_of_text_token(tmp_path, tokenizer):
    file = tmp_path / "two.jsonl"
    file.write_text('{"text": "One day"}\n{"text": "Anna lost"}\n', encoding="utf-8")
    rows = tokenize_documents(documents_from_files([str(file)]), tokenizer)["input_ids"]
    expected = [
        tokenizer("One day")["input_ids"] + [tokenizer.eos_token_id],
        tokenizer("Anna lost")["input_ids"] + [tokenizer.eos_token_id],
    ]
    assert [list(row) for row in rows] == expected
    bare = tokenize_documents(documents_from_files([str(file)]), tokenizer, append_eos=False)["input_ids"]
    assert [list(row) for row in bare] == [row[:-1] for row in expected]


def test_a_file_read_in_pieces_has_the_tokens_of_the_whole(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    whole = tokenizer(TEXT)["input_ids"] + [tokenizer.eos_token_id]
    monkeypatch.setattr(readers, "PIECE_CHARACTERS", 100)
    monkeypatch.setattr(opening, "READ_BYTES", 37)
    pieces = list(readers.read_pieces([str(file)]))
    assert len(pieces) > 10 and "".join(piece.text for piece in pieces) == TEXT
    assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    documents = documents_of(datasets.Dataset.from_list([{"text": TEXT}]))
    assert len(documents) > 10
    assert [token for row in tokenize_documents(documents, tokenizer)["input_ids"] for token in row] == whole


def test_a_tokenizer_that_prepends_a_space_adds_none_between_pieces(monkeypatch):
    """Llama 2's: a normalizer writes spaces as ▁ and one before the text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=200, show_progress=False))
    bpe.pre_tokenizer = None
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    monkeypatch.setattr(readers, "PIECE_CHARACTERS", 100)
    text = TEXT.replace("\n", " ").strip()
    documents = documents_of(datasets.Dataset.from_list([{"text": text}]))
    assert len(documents) > 10
    tokenized = tokenize_documents(documents, tokenizer, append_eos=False)
    assert [token for row in tokenized["input_ids"] for token in row] == tokenizer(text)["input_ids"]


def test_a_vocabulary_of_words_without_an_unknown_token():
    words = Tokenizer(models.WordLevel({"to": 0, "be": 1}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    documents = documents_of(datasets.Dataset.from_list([{"text": "to be to"}]))
    tokenized = tokenize_documents(documents, PreTrainedTokenizerFast(tokenizer_object=words), append_eos=False)
    assert list(tokenized["input_ids"][0]) == [0, 1, 0]


def test_split_by_characters_is_the_books_and_cuts_a_document_in_two():
    documents = documents_of(datasets.Dataset.from_list([{"text": "a" * 10}, {"text": "b" * 10}]))
    train, validation = split_documents(documents, 25, by="characters")
    assert [(row["text"], row["end"]) for row in train] == [("a" * 10, True), ("b" * 5, False)]
    assert [(row["text"], row["end"]) for row in validation] == [("b" * 5, True)]
    with pytest.raises(UserError, match="no text"):
        split_documents(documents, 99.99, by="characters")


def test_a_split_by_documents_cuts_between_the_nearest_two():
    documents = documents_of(datasets.Dataset.from_list([{"text": f"{i} " * 50} for i in range(10)]))
    train, validation = split_documents(documents, 15)
    assert (len(train), len(validation)) == (8, 2) or (len(train), len(validation)) == (9, 1)
    assert train[-1]["end"] and [row["text"] for row in train] + [row["text"] for row in validation] == documents["text"][:]
    two = documents_of(datasets.Dataset.from_list([{"text": "a" * 700}, {"text": "b" * 300}]))
    assert [row["text"][0] for part in split_documents(two, 20) for row in part] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "percentage", "first", "where"),
    [
        ("One two.\n\nThree four.\nFive six.", 50, "One two.\n\n", "the end of a paragraph"),
        ("aaaa aaaa\n" * 10, 20, "aaaa aaaa\n" * 8, "the end of a line"),
        ("word " * 100, 33, "word " * 66 + "word", "the end of a word"),
        ("漢" * 100, 10, "漢" * 90, "a character"),
    ],
)
def test_one_long_document_is_cut_at_an_end(capsys, text, percentage, first, where):
    documents = documents_of(datasets.Dataset.from_list([{"text": text}]))
    train, validation = split_documents(documents, percentage)
    assert [(row["text"], row["end"]) for row in train] == [(first, False)]
    assert "".join(row["text"] for row in validation) == text[len(first) :] and validation[-1]["end"]
    assert f"so one is split at {where}" in capsys.readouterr().err


def test_a_split_avoids_cutting_documents():
    """With documents of different lengths, as many come out as went in."""
    rng = np.random.default_rng(0)
    documents = documents_of(datasets.Dataset.from_list([{"text": "story " * int(n)} for n in rng.integers(20, 60, 240)]))
    train, validation = split_documents(documents, 10)
    assert sum(train["end"]) + sum(validation["end"]) == 240 and train[-1]["end"] and len(validation) in range(15, 35)


def test_end_marks_separate_documents_if_requested(tmp_path, tokenizer, monkeypatch):
    end = "<|endoftext|>"
    file = tmp_path / "text.txt"
    file.write_text(f"One day{end}Anna lost {end}her key{end}\n", encoding="utf-8")
    for size in (1, 3, 7, 1 << 20):  # a mark may stand across two blocks of a read
        monkeypatch.setattr(opening, "READ_BYTES", size)
        pieces = list(readers.read_pieces([str(file)], end_mark=end))
        assert "".join(piece.text for piece in pieces) == f"One day{end}Anna lost {end}her key{end}"
        assert sum(piece.end for piece in pieces) == 3
    source = Source((str(file),), end_mark=end)
    rows = tokenize_documents(source.documents(), tokenizer, parse_special_tokens=True)["input_ids"]
    eos = tokenizer.eos_token_id
    assert [list(row) for row in rows] == [[*tokenizer(text)["input_ids"], eos] for text in ("One day", "Anna lost ", "her key")]
    streamed = list(stream_blocks(source, tokenizer, BlockSettings(4, 4, parse_special_tokens=True)))
    assert [token for row in streamed for token in row["input_ids"].tolist()] == [token for row in rows for token in row][
        : 4 * len(streamed)
    ]
    plain = tokenize_documents(documents_from_files([str(file)]), tokenizer)["input_ids"]
    assert sum(list(row).count(eos) for row in plain) == 1  # the end of the file


def test_notes_about_a_file_are_repeated_when_it_is_cached(tmp_path, capsys, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a\\ud83d"}\n{"text": "b"}\n{"text": ""}\n', encoding="utf-8")
    for _ in range(2):
        monkeypatch.setattr(opening, "_printed", set())
        documents = documents_from_files([str(file)], reading=opening.Reading(replace_invalid=True, skip_empty=True))
        assert documents["text"][:] == ["a\ufffd", "b"]
        told = capsys.readouterr().err
        assert "replaced by U+FFFD in 1 rows" in told and "1 rows with an empty text were skipped" in told


def test_counts_account_for_every_token(tokenizer):
    documents = documents_of(datasets.Dataset.from_list([{"text": TEXT}, {"text": TEXT[:100]}]))
    _, counts = make_blocks(documents, tokenizer, BlockSettings(16))
    assert counts.documents == 2 and counts.characters == len(TEXT) + 100
    assert counts.tokens == len(tokenizer(TEXT)["input_ids"]) + len(tokenizer(TEXT[:100])["input_ids"]) + 2
    assert counts.blocks * 16 == counts.tokens - counts.dropped_tokens + counts.repeated_tokens
    assert counts.dropped_tokens < 15


def test_streamed_rows_equal_rows_in_memory(tmp_path, tokenizer):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": TEXT[i : i + 150]}) + "\n" for i in range(0, 1500, 50)), encoding="utf-8")
    settings = BlockSettings(block_size=16, stride=10, isolate_documents=True)
    blocks, _ = make_blocks(documents_from_files([str(file)]), tokenizer, settings)
    stream = stream_blocks(Source((str(file),)), tokenizer, settings)
    for _ in range(2):  # the second epoch starts again
        rows = list(stream)
        assert len(rows) == len(blocks) > 50
        assert all(torch.equal(rows[i][name], blocks[i][name]) for i in range(len(rows)) for name in rows[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_special_tokens_written_in_a_stream_are_counted(tmp_path, tokenizer, workers):
    file = tmp_path / "many.jsonl"
    text = f"a mark {tokenizer.eos_token} " * 3
    file.write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(6)), encoding="utf-8")
    stream = stream_blocks(Source((str(file),)), tokenizer, BlockSettings(8, 8), skip_documents=1)
    assert stream.written() == ""
    list(torch.utils.data.DataLoader(stream, batch_size=None, num_workers=workers))
    assert stream.written() == (
        f"15 {tokenizer.eos_token} in the text are read as characters (--parse_special_tokens reads them as tokens)"
    )


def test_held_out_documents_of_a_stream_are_not_trained_on(tmp_path, tokenizer):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"document {i} " * 9}) + "\n" for i in range(8)), encoding="utf-8")
    source = Source((str(file),))
    held_out = source.first_documents(3)
    assert [row["text"][:10] for row in held_out] == ["document 0", "document 1", "document 2"]
    rows = stream_blocks(source, tokenizer, BlockSettings(8, 8), skip_documents=3)
    text = tokenizer.decode([token for row in rows for token in row["input_ids"].tolist()])
    assert "document 3" in text and "document 2" not in text
    with pytest.raises(UserError, match="validation_documents"):
        source.first_documents(8)


def test_loader_workers_share_the_documents_of_a_stream(tmp_path, tokenizer):
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({"text": f"{i} " * 20}) + "\n" for i in range(6)), encoding="utf-8")
    stream = stream_blocks(Source((str(file),)), tokenizer, BlockSettings(8, 8))
    alone = sum(len(row["input_ids"]) for row in stream)
    loader = torch.utils.data.DataLoader(stream, batch_size=None, num_workers=2)
    shared = [tokenizer.decode(row["input_ids"]) for row in loader]
    assert abs(8 * len(shared) - alone) <= 16  # each worker drops a tail of its own
    assert all(any(str(i) in text for text in shared) for i in range(6))


def test_tokens_are_cached_until_text_or_code_change(tmp_path, tokenizer, monkeypatch):
    file = tmp_path / "text.txt"
    file.write_text(TEXT, encoding="utf-8")
    calls = []
    original = language_modeling._tokenize
    monkeypatch.setattr(language_modeling, "_tokenize", lambda *a, **k: calls.append(1) or original(*a, **k))
    tokenize_documents(documents_from_files([str(file)]), tokenizer)
    first = len(calls)
    tokenize_documents(documents_from_files([str(file)]), tokenizer)
    assert len(calls) == first > 0
    with monkeypatch.context() as later:
        later.setattr(language_modeling, "CACHE_VERSION", -1)
        tokenize_documents(documents_from_files([str(file)]), tokenizer)
    assert len(calls) == (first := 2 * first)
    file.write_text(TEXT + "More.", encoding="utf-8")
    changed = tokenize_documents(documents_from_files([str(file)]), tokenizer)
    assert len(calls) > first
    assert list(changed["input_ids"][0]) == tokenizer(TEXT + "More.")["input_ids"] + [tokenizer.eos_token_id]


def test_published_counts_of_the_verdict(shared_data):
    """5,145 tokens, split 90/10 by characters: 4,612 + 534 tokens, 18 + 2 windows of 256 (the book, chapter 5)."""
    from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer

    gpt2 = load_gpt2_tokenizer(shared_data / "gpt2")
    splits = split_documents(documents_from_files([str(shared_data / "the-verdict.txt")]), 10, by="characters")
    blocks = [TokenBlocks(tokenize_documents(split, gpt2, append_eos=False), 256, 256) for split in splits]
    assert [split.num_tokens for split in blocks] == [4612, 534]
    assert [len(split) for split in blocks] == [18, 2]
