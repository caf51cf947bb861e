"""Report on a tokenizer: number of tokens, bytes per token, fraction of unknown tokens, and examples."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from .special_tokens import encode_text


@dataclass
class TokenizerReport:
    """Figures of a tokenizer on held-out text.

    Attributes:
        vocabulary: number of tokens in the vocabulary, including special tokens.
        tokens: number of tokens in the text.
        bytes_per_token: UTF-8 bytes of the text per token; higher means shorter sequences.
        unknown_share: fraction of unknown tokens, in [0, 1].
        examples: texts, each with its tokens as they appear in the text and its ids.
    """

    vocabulary: int
    tokens: int
    bytes_per_token: float
    unknown_share: float
    examples: list[tuple[str, list[str], list[int]]]

    def __str__(self) -> str:
        lines = [
            f"vocabulary: {self.vocabulary:,} tokens",
            f"held-out text: {self.tokens:,} tokens, {self.bytes_per_token:.2f} bytes per token, {self.unknown_share:.2%} unknown",
        ]
        for text, tokens, ids in self.examples:
            lines += ["", text, "|".join(tokens), " ".join(map(str, ids))]
        return "\n".join(lines)


def report_on(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str], examples: Sequence[str] = ()) -> TokenizerReport:
    """Measure `tokenizer` on `texts`, which it should not have been trained on.

    Raises:
        UserError: the texts have no tokens.
    """
    # A byte-level tokenizer declares the end-of-text token as its unknown token, but never uses it as such.
    unknown_id = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    tokens = unknown = size = 0
    for text in texts:
        ids = encode_text(tokenizer, text, add_special_tokens=False)["input_ids"]
        tokens += len(ids)
        unknown += ids.count(unknown_id)
        size += len(text.encode())
    if not tokens:
        raise UserError("the held-out text has no token: give more text")
    shown = []
    for text in examples:
        encoding = encode_text(tokenizer, text, add_special_tokens=False, return_offsets_mapping=True)
        shown.append((text, [text[start:end] for start, end in encoding["offset_mapping"]], encoding["input_ids"]))
    return TokenizerReport(len(tokenizer), tokens, size / tokens, unknown / tokens, shown)
