"""Pieces of text are those of the `tokenizers` library, also where its Unicode is older than that of `regex`."""

import pytest
from hostile_text import hostile_text
from tokenizers import Regex, pre_tokenizers

from gpt_scratch.tokenization.pretokenization import GPT2_PATTERN, split_gpt2, splitter


def pieces_of(pattern: str, text: str) -> list[str]:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return [piece for piece, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [GPT2_PATTERN, r"\p{N}{1,3}|\s+", "a+"])
def test_pieces_are_those_of_tokenizers(pattern):
    texts = [*map(hostile_text, range(20)), "", "They're 3 at 12 o'clock,  isn't it?\n\n\tnaïve 漢字 ⅷ x\u0897y"]
    for text in texts:
        assert splitter(pattern)(text) == pieces_of(pattern, text)
        assert "".join(splitter(pattern)(text)) == text


def test_without_a_pattern_the_text_is_one_piece():
    assert splitter(None)("a b") == ["a b"] and splitter(None)("") == []
    assert splitter(GPT2_PATTERN) is split_gpt2
