r"""Pre-tokenization: text is cut into pieces first, and byte-pair merges never cross from one piece into the next.

GPT-2's pattern (Radford et al. 2019; OpenAI's `encoder.py`) cuts off English contractions, then takes runs of letters, of
numbers or of other characters, each with one space before it, and runs of white space. Its classes are Unicode's, and here two engines
disagree: Python's `regex` module knows a newer Unicode than the Oniguruma inside the `tokenizers` library, for which letters added
since are neither letters nor numbers. The pieces of this file are those of `tokenizers`, so that ids equal those of AutoTokenizer.
"""

import re
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache

import regex
from tokenizers import Regex, normalizers

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The same cuts, written for speed: what is most frequent first, possessive where nothing is ever given back. On ASCII text the
# standard library's engine is twice as fast as `regex`.
_ANY_TEXT = regex.compile(r" ?\p{L}++|'(?:[stmd]|re|ve|ll)| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+")
_ASCII_TEXT = re.compile(r" ?[A-Za-z]+|'(?:[stmd]|re|ve|ll)| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII)

# Stands in for a letter or number that Oniguruma does not know: a noncharacter, neither letter nor number nor space in any Unicode.
_UNKNOWN = "\uffff"


def splitter(pattern: str | None) -> Callable[[str], list[str]]:
    """A function that cuts text into pieces whose union is the text, as `tokenizers` does with `pattern`.

    Args:
        pattern: regular expression of one piece; what lies between two matches is a piece too. `None` leaves the text whole.
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
    """The pieces of `text` under GPT-2's pattern, in order; their union is the text.

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
    """`text` itself, or of the same length with the letters and numbers that only `regex` knows masked."""
    if text.isascii() or _unknown_to_oniguruma().isdisjoint(set(text)):
        return text
    return text.translate(dict.fromkeys(map(ord, _unknown_to_oniguruma()), _UNKNOWN))


@lru_cache(maxsize=1)
def _unknown_to_oniguruma() -> frozenset[str]:
    """Letters and numbers for `regex` that are none for `tokenizers`: 17,480 with regex 2026.11 and tokenizers 0.23.

    Asked of the two engines once a process (about 0.1 s) rather than written down, as it changes with their versions. The opposite
    does not happen while `regex` is the newer one.
    """
    code_points = array("I", [*range(0x80, 0xD800), *range(0xE000, 0x110000)]).tobytes()
    letters = "".join(
        regex.findall(r"[\p{L}\p{N}]+", code_points.decode("utf-32-le" if sys.byteorder == "little" else "utf-32-be"))
    )
    return frozenset(normalizers.Replace(Regex(r"[\p{L}\p{N}]+"), "").normalize_str(letters))
