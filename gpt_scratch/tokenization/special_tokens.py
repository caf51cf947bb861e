"""Special tokens written in a text are plain characters, not control tokens: a document that mentions `<|endoftext|>` does not end there.

By default a tokenizer turns the string into the control token, in a document, a message or a prompt, whoever wrote it. Therefore external
text is encoded by the functions of this file, and only code inserts the control token: at the end of a document, or in a chat template.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase


def special_tokens(tokenizer: PreTrainedTokenizerBase, template: str = "") -> tuple[str, ...]:
    """Strings that the tokenizer would encode as control tokens: its special tokens, and other added tokens that occur in `template`."""
    added = tokenizer.added_tokens_decoder.values()
    found = {token.content for token in added if token.special or (token.content in template and not token.content.isspace())}
    return tuple(sorted(found | set(tokenizer.all_special_tokens), key=lambda token: (-len(token), token)))


@lru_cache(maxsize=64)
def pattern_of(tokens: tuple[str, ...]) -> re.Pattern[str]:
    """A pattern that matches any of `tokens`, the longest first, or nothing if there are none."""
    return re.compile("|".join(map(re.escape, tokens)) or r"(?!)")


def count_special_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Counter[str]:
    """Count the special tokens written in `texts`."""
    tokens = special_tokens(tokenizer)
    # Their common prefix, usually "<|", is rare in text, so that most texts are skipped quickly.
    beginning = next((tokens[0][:n] for n in (2, 1) if len({token[:n] for token in tokens}) == 1), "")
    counts: Counter[str] = Counter()
    for text in texts:
        if beginning in text:
            counts.update(pattern_of(tokens).findall(text))
    return counts


def describe_special_tokens(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """One line about the special tokens that are written in `texts` and encoded as characters; empty if there are none."""
    counts = count_special_tokens(texts, tokenizer)
    written = ", ".join(f"{count:,} {token}" for token, count in counts.items())
    return f"special tokens written in the text are read as characters: {written}" if written else ""


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str | Sequence[str], **settings: Any) -> Any:
    """`tokenizer(text, **settings)` with special tokens in the text encoded as characters, and without a warning about its length."""
    return tokenizer(text, **{"verbose": False, "split_special_tokens": True, **settings})
