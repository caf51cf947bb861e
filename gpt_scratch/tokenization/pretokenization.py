r"""Pre-tokenization: text is first split into pieces, and byte-pair merges never cross their boundaries.

GPT-2's pattern (Radford et al. 2019; OpenAI's `encoder.py`) matches English contractions, runs of letters, of numbers or of other
characters, each with one optional preceding space, and runs of white space. Two engines disagree about its Unicode classes: Python's
`regex` module supports a newer Unicode version than Oniguruma in the `tokenizers` library, which does not recognize letters and numbers
added since. This file produces the pieces of `tokenizers`, so that ids equal those of AutoTokenizer.
"""

import re
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache

import regex
from tokenizers import Regex, normalizers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same splits, optimized: frequent alternatives first, possessive quantifiers where backtracking cannot succeed. On ASCII text the
# standard library's engine is twice as fast as `regex`.
_ANY_TEXT = regex.compile(r" ?\p{L}++|'(?:[stmd]|re|ve|ll)| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+")
_ASCII_TEXT = re.compile(r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)

# Replaces a letter or number unknown to Oniguruma: a noncharacter, which is no letter, number or space in any Unicode version.
_UNKNOWN = "\uffff"


def splitter(pattern: str | None) -> Callable[[str], list[str]]:
    """Return a function that splits text into pieces as `tokenizers` does with `pattern`; their concatenation is the text.

    Args:
        pattern: regular expression for one piece; text between two matches is a piece too. `None` does not split.
    """
    if pattern is None:
        return lambda text: [text] if text else []
    if pattern == GPT2_PATTERN:
        return split_gpt2
    compiled = regex.compile(pattern)

    def split(text: str) -> list[str]:
        pieces, end = [], 0
        for match in compiled.finditer(_as_oniguruma_reads(text)):
            pieces += [text[end : match.start()], text[match.start() : match.end()]]
            end = match.end()
        return [piece for piece in [*pieces, text[end:]] if piece]

    return split


def split_gpt2(text: str) -> list[str]:
    """Split `text` with GPT-2's pattern; the concatenation of the pieces is the text.

    >>> split_gpt2("I'll see  you in 2019, OK?")
    ['I', "'ll", ' see', ' ', ' you', ' in', ' 2019', ',', ' OK', '?']
    """
    if text.isascii():
        return _ASCII_TEXT.findall(text)
    masked = _as_oniguruma_reads(text)
    if masked is text:
        return _ANY_TEXT.findall(text)
    return [text[match.start() : match.end()] for match in _ANY_TEXT.finditer(masked)]


def _as_oniguruma_reads(text: str) -> str:
    """`text` with the letters and numbers that only `regex` knows masked; its length stays the same."""
    if text.isascii() or _unknown_to_oniguruma().isdisjoint(set(text)):
        return text
    return text.translate(dict.fromkeys(map(ord, _unknown_to_oniguruma()), _UNKNOWN))


@lru_cache(maxsize=1)
def _unknown_to_oniguruma() -> frozenset[str]:
    """Letters and numbers of `regex` that `tokenizers` does not recognize: 17,480 with regex 2026.11 and tokenizers 0.23.

    Determined once per process (about 0.1 s) rather than hard-coded, since it depends on the versions of both engines. The reverse does
    not occur while `regex` is the newer one.
    """
    code_points = array("I", [*range(0x80, 0xD800), *range(0xE000, 0x110000)]).tobytes()
    letters = "".join(
        regex.findall(r"[\p{L}\p{N}]+", code_points.decode("utf-32-le" if sys.byteorder == "little" else "utf-32-be"))
    )
    return frozenset(normalizers.Replace(Regex(r"[\p{L}\p{N}]+"), "").normalize_str(letters))
