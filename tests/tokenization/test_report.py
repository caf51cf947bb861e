"""The figures of a tokenizer on held-out text, by hand."""

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.report import report_on
from gpt_scratch.tokenization.word_level import train_word_level


def test_tokens_bytes_and_unknown_words():
    tokenizer = train_word_level(["one two three two"], rule="whitespace")
    report = report_on(tokenizer, ["one two", "four ünë"], examples=["two four"])
    assert (report.vocabulary, report.tokens, report.unknown_share) == (len(tokenizer), 4, 0.5)
    assert report.bytes_per_token == (7 + len("four ünë".encode())) / 4
    [(text, tokens, ids)] = report.examples
    assert (text, tokens) == ("two four", ["two", "four"])
    assert ids == [tokenizer.convert_tokens_to_ids("two"), tokenizer.unk_token_id]
    assert "4 tokens, 4.25 bytes per token, 50.00% unknown" in str(report) and str(report).splitlines()[-2] == "two|four"


def test_bytes_are_never_unknown():
    tokenizer = train_byte_level_bpe(["one two three"], vocab_size=258)
    assert report_on(tokenizer, ["ünknown <|endoftext|>"]).unknown_share == 0


def test_text_without_a_token_is_refused():
    with pytest.raises(UserError, match="the held-out text has no token"):
        report_on(train_byte_level_bpe(["one two three"], vocab_size=258), ["", ""])
