"""Byte-level byte-pair encoding from scratch: training, encoding and decoding in pure Python, saved as a `tokenizer.json`.

Text is split into pieces (`pretokenization`), each piece is a sequence of UTF-8 bytes, and the most frequent pair of adjacent tokens in
the training text is repeatedly merged into a new token (Sennrich et al. 2016, section 3.2; on bytes: Radford et al. 2019, section 2.2).

Merges and ids equal those of the Rust library `tokenizers`, including ties, so `to_fast()` gives the same tokenizer in the standard
format, which does not need this file.
"""

import gc
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from heapq import heapify, heappop, heappush
from itertools import chain, pairwise

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from ..conflicts import END_OF_TEXT, PADDING
from ..errors import UserError
from ..files import atomic_directory
from ..progress import named
from .byte_pair_training import BYTE_ORDER, Pair, count_pieces, learn_merges
from .portable import save_tokenizer
from .pretokenization import GPT2_PATTERN, splitter

SPACE = "Ġ"  # a space in a token: GPT-2's character for byte 32, also used by the book
# GPT-2 writes a token with one visible character per byte: the byte's own if it has one, otherwise the next unused one.
CHARACTER_OF_BYTE = {byte: chr(byte) if place < 188 else chr(256 + place - 188) for place, byte in enumerate(BYTE_ORDER)}
BYTE_OF_CHARACTER = {character: byte for byte, character in CHARACTER_OF_BYTE.items()}


def train_byte_pair(
    texts: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = (END_OF_TEXT, PADDING),
) -> "BytePairTokenizer":
    """Train a byte-level BPE on `texts`, with GPT-2's pre-tokenization.

    Ids, as in GPT-2: 0 to 255 are the bytes in GPT-2's order, followed by the merges in the order learned and the special tokens.
    `special_tokens` count towards `vocab_size`. Training stops early when no pair occurs `min_frequency` times.

    Raises:
        UserError: a vocabulary without room for the bytes and the special tokens, text with lone surrogates, or no text.
    """
    special_tokens = list(dict.fromkeys(special_tokens))
    if vocab_size < 256 + len(special_tokens):
        raise UserError(
            f"vocab_size is {vocab_size}: a byte-level BPE needs at least {256 + len(special_tokens)}, "
            f"for 256 bytes and {len(special_tokens)} special tokens"
        )
    if vocab_size > 1_000_000:
        raise UserError(f"vocab_size is {vocab_size:,}: at most 1,000,000 tokens can be learned")
    collecting = gc.isenabled()
    gc.disable()  # many small lists without cycles: garbage collection would take a tenth of the time
    try:
        counts = count_pieces(texts)
        if not counts:
            raise UserError("there is no text to train a tokenizer on")
        learned, merges = learn_merges(counts, vocab_size - len(special_tokens), min_frequency)
    except UnicodeEncodeError as error:
        raise UserError(f"the text holds a lone surrogate, {error.object[error.start]!r}: it is not valid Unicode") from error
    finally:
        if collecting:
            gc.enable()
    tokens = ["".join(CHARACTER_OF_BYTE[byte] for byte in token) for token in learned]
    special = {token: len(tokens) + number for number, token in enumerate(special_tokens)}
    return BytePairTokenizer({**dict(enumerate(tokens)), **{id: token for token, id in special.items()}}, merges, special)


def train_byte_level_bpe(
    texts: Iterable[str],
    vocab_size: int,
    min_frequency: int = 2,
    special_tokens: Sequence[str] = (END_OF_TEXT, PADDING),
    model_max_length: int = 1024,
) -> PreTrainedTokenizerFast:
    """[`train_byte_pair`] as a fast tokenizer, the form that models are trained with; [`save_tokenizer`] writes it for AutoTokenizer.

    `<|endoftext|>` is the bos, eos and unknown token, as in GPT-2; padding has its own token, `<|pad|>`.
    """
    with named("training the tokenizer"):
        return train_byte_pair(texts, vocab_size, min_frequency, special_tokens).to_fast(model_max_length)


# ---------------------------------------------------------------------------------------------------------------------------
# Encoding and decoding


class BytePairTokenizer:
    """A byte-pair tokenizer: vocabulary, merges, encoding and decoding.

    Args:
        tokens: id -> token, including special tokens, written as in `tokenizer.json`: one visible character per byte.
        merges: (left id, right id) -> id of the merged token, in order of priority.
        special_tokens: token -> id of the tokens that are matched in the text before pre-tokenization.
        pattern: pre-tokenization, a regular expression for one piece; `None`: the text is one piece.
        byte_level: tokens consist of bytes (any text can be encoded); otherwise of characters, with a space written as `Ġ`, as in the
            book's own BPE, and a character without a token becomes `<|endoftext|>`.
    """

    def __init__(
        self,
        tokens: Mapping[int, str],
        merges: Mapping[Pair, int],
        special_tokens: Mapping[str, int],
        pattern: str | None = GPT2_PATTERN,
        byte_level: bool = True,
    ):
        self.tokens = dict(tokens)
        self.merges = dict(merges)
        self.special_tokens = dict(special_tokens)
        self.pattern = pattern
        self.byte_level = byte_level
        self._split = splitter(pattern)
        self._ranked = {pair: (rank, union) for rank, (pair, union) in enumerate(self.merges.items())}
        self._pieces = _PieceCache(self)
        # Of several special tokens that begin at the same position, the longest matches.
        longest_first = sorted(self.special_tokens, key=len, reverse=True)
        self._special = re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str, split_special_tokens: bool = False) -> list[int]:
        """The ids of `text`, equal to those of AutoTokenizer for the saved tokenizer.

        Args:
            split_special_tokens: treat special tokens in the text as ordinary text.

        Raises:
            UserError: `text` holds a lone surrogate, which UTF-8 cannot encode; names it and its position.
        """
        if self._special is None or split_special_tokens:
            return self._encode_ordinary(text)
        ids: list[int] = []
        for part in self._special.split(text):
            special_id = self.special_tokens.get(part)
            ids += self._encode_ordinary(part) if special_id is None else [special_id]
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        if not self.byte_level:
            text = text.replace(" ", SPACE)
        try:
            return list(chain.from_iterable(map(self._pieces.__getitem__, self._split(text))))
        except UnicodeEncodeError:
            place = re.search("[\ud800-\udfff]", text)
            assert place is not None
            raise UserError(
                f"the text holds a lone surrogate, {place.group()!r}, at character {place.start()}: it is not valid Unicode; "
                "read the file as UTF-8 with errors='replace'"
            ) from None

    def clear_cache(self) -> None:
        """Clear the cache of encoded pieces."""
        self._pieces.clear()

    def encode_piece(self, piece: str) -> list[int]:
        """The ids of one pre-tokenized piece: repeatedly apply the merge of lowest rank, leftmost first.

        Symbols form a linked list over their positions, and candidate merges wait in a heap: a piece of n symbols takes O(n log n) time.
        """
        ids = self._symbols(piece)
        ranked = self._ranked.get
        queue = [(found[0], place, found[1]) for place, found in enumerate(map(ranked, pairwise(ids))) if found is not None]
        heapify(queue)
        length = len(ids)
        after, before = list(range(1, length + 1)), list(range(-1, length - 1))
        gone = -1
        while queue:
            _, place, union = heappop(queue)
            next_place = after[place]
            if ids[place] == gone or next_place == length or ranked((ids[place], ids[next_place]), (0, gone))[1] != union:
                continue  # one of the two has been merged with another symbol in the meantime
            ids[place], ids[next_place] = union, gone
            next_place = after[place] = after[next_place]
            if next_place < length:
                before[next_place] = place
                found = ranked((union, ids[next_place]))
                if found is not None:
                    heappush(queue, (found[0], place, found[1]))
            previous_place = before[place]
            if previous_place >= 0:
                found = ranked((ids[previous_place], union))
                if found is not None:
                    heappush(queue, (found[0], previous_place, found[1]))
        return [id for id in ids if id != gone]

    def _symbols(self, piece: str) -> list[int]:
        if self.byte_level:
            return list(map(self._id_of_byte.__getitem__, piece.encode()))
        return [self._id_of_character(character) for character in piece]

    @cached_property
    def _id_of_byte(self) -> list[int]:
        ids = {token: id for id, token in reversed(self.tokens.items())}
        return [ids[CHARACTER_OF_BYTE[byte]] for byte in range(256)]

    def _id_of_character(self, character: str) -> int:
        id = self._characters.get(character, self.special_tokens.get(END_OF_TEXT))
        if id is None:
            raise UserError(f"the tokenizer has no token for the character {character!r}, and no {END_OF_TEXT} to stand for it")
        return id

    @cached_property
    def _characters(self) -> dict[str, int]:
        return {token: id for id, token in reversed(self.tokens.items()) if len(token) == 1}

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`. Invalid UTF-8, such as an incomplete character, becomes U+FFFD.

        Raises:
            UserError: an unknown id.
        """
        skipped = set(self.special_tokens.values()) if skip_special_tokens else set()
        try:
            content = b"".join([self._content[id] for id in ids if id not in skipped])
        except KeyError as error:
            raise UserError(f"the tokenizer has no token {error.args[0]}: its ids go from 0 to {max(self.tokens)}") from error
        return content.decode("utf-8", errors="replace")

    @cached_property
    def _content(self) -> dict[int, bytes]:
        """id -> bytes of the token in UTF-8."""
        if not self.byte_level:
            return {id: token.replace(SPACE, " ").encode() for id, token in self.tokens.items()}
        special = set(self.special_tokens.values())
        return {
            id: token.encode() if id in special else bytes(map(BYTE_OF_CHARACTER.__getitem__, token))
            for id, token in self.tokens.items()
        }

    # -----------------------------------------------------------------------------------------------------------------------
    # Standard format

    def to_fast(self, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
        """The same tokenizer on the Rust library, for models, data sets and AutoTokenizer.

        Raises:
            UserError: it cannot be expressed: two tokens have the same text, or the ids are not 0 to n - 1.
        """
        vocabulary: dict[str, int] = {}
        for id, token in self.tokens.items():
            if token in vocabulary:
                raise UserError(
                    f"tokens {vocabulary[token]} and {id} are both {token!r}: tokenizer.json holds each token once; "
                    "train the tokenizer again, here or with tokenizers, which gives a token that is formed twice one id"
                )
            vocabulary[token] = id
        if sorted(self.tokens) != list(range(len(self.tokens))):
            missing = next(id for id in range(len(self.tokens)) if id not in self.tokens)
            raise UserError(f"there is no token {missing} but one with id {max(self.tokens)}: a model needs ids without holes")
        merges = [(self.tokens[left], self.tokens[right]) for left, right in self.merges]
        has_end = END_OF_TEXT in self.special_tokens
        backend = Tokenizer(models.BPE(vocabulary, merges, unk_token=END_OF_TEXT if has_end and not self.byte_level else None))
        cut = pre_tokenizers.Split(Regex(self.pattern), "isolated") if self.pattern is not None else None
        if self.byte_level:
            if self.pattern == GPT2_PATTERN:
                backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
            else:
                to_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
                backend.pre_tokenizer = pre_tokenizers.Sequence([cut, to_characters]) if cut else to_characters
            backend.post_processor = processors.ByteLevel(trim_offsets=False)
            backend.decoder = decoders.ByteLevel()
        else:
            backend.normalizer = normalizers.Replace(" ", SPACE)
            backend.pre_tokenizer = cut
            backend.decoder = decoders.Replace(SPACE, " ")
        backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in self.special_tokens])
        roles = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT) if has_end else {}
        if PADDING in self.special_tokens:
            roles["pad_token"] = PADDING
        return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=model_max_length, **roles)

    def save_pretrained(self, directory: str | os.PathLike, model_max_length: int = 1024, overwrite: bool = False) -> None:
        """Write `tokenizer.json` and `tokenizer_config.json` for AutoTokenizer; the directory is written atomically."""
        fast = self.to_fast(model_max_length)
        with atomic_directory(directory, overwrite) as temporary:
            save_tokenizer(fast, temporary)


class _PieceCache(dict[str, list[int]]):
    """piece -> ids, filled on demand and cleared when full, so that its memory is bounded for any text."""

    CAPACITY, LONGEST = 1 << 17, 256  # entries, characters

    def __init__(self, tokenizer: BytePairTokenizer):
        self.encode_piece = tokenizer.encode_piece

    def __missing__(self, piece: str) -> list[int]:
        ids = self.encode_piece(piece)
        if len(piece) <= self.LONGEST:
            if len(self) >= self.CAPACITY:
                self.clear()
            self[piece] = ids
        return ids
