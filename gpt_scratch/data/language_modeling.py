"""Data pipeline of language modeling: documents, train/validation split, tokens, blocks of token ids.

    Source ──documents()──▶ pieces in a cached Arrow data set ──tokenize_documents──▶ ids, cached ──TokenBlocks──▶ rows
       └────pieces()──────▶ pieces, streamed ─────────────────────────────────────────▶ ids ──────StreamedBlocks──▶ rows

Documents are tokenized once, in parallel, and end with the end-of-text token. If that token is written inside a text, it is encoded as
characters, unless it separates documents in this source (`end_mark`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..files import write_json
from ..tokenization.special_tokens import count_special_tokens, encode_text, special_tokens
from .blocks import StreamedBlocks, TokenBlocks, blocks_of_stream
from .opening import Reading, check_files, collect_notes, print_once
from .readers import Piece, read_pieces, read_rows
from .tables import load_table

CACHE_VERSION = 3  # of the cached pieces and tokens: increase it when cutting or tokenization changes
SPLITS_BY = ("documents", "characters")
PIECES = datasets.Features({"text": datasets.Value("large_string"), "end": datasets.Value("bool")})


@dataclass(frozen=True)
class Source:
    """A source of documents: files (names, globs, folders), or a split of a `datasets` table.

    Args:
        end_mark: a string that ends a document wherever it occurs in the text, such as `<|endoftext|>`.
    """

    files: tuple[str, ...] = ()
    dataset_name: str | None = None
    config_name: str | None = None
    split: str = "train"
    text_column: str = "text"
    reading: Reading = field(default_factory=Reading)
    end_mark: str | None = None

    def documents(self) -> datasets.Dataset | None:
        """The pieces of all documents as a cached Arrow data set with columns `text` and `end`; `None` if the split does not exist.

        The cache key contains each file's path, size and modification time, so an edited file is read again.

        Raises:
            UserError: a missing, empty, unknown or broken file or data set.
        """
        if self.dataset_name is None:
            files = check_files(self.files)
            stamp = [(str(Path(f).resolve()), Path(f).stat().st_size, Path(f).stat().st_mtime_ns) for f in files]
            return _cached({"source": self, "files": files, "stamp": stamp})
        rows = load_table(self.dataset_name, self.config_name, self.split, streaming=False)
        return None if rows is None else _cached({"source": self, "rows": rows})

    def pieces(self) -> Iterator[Piece]:
        """Iterate over the documents in constant memory.

        Raises:
            UserError: like [`documents`], at the first fault.
        """
        if self.dataset_name is None:
            return read_pieces(self.files, self.text_column, self.reading, self.end_mark, at_once=True)
        rows = load_table(self.dataset_name, self.config_name, self.split, streaming=True)
        if rows is None:
            raise UserError(f"data set {self.dataset_name!r} has no split {self.split!r}")
        return read_rows(rows, self.text_column, self.dataset_name, self.reading, self.end_mark)

    def first_documents(self, count: int) -> datasets.Dataset:
        """The first `count` documents of the stream, in the form of [`documents`].

        Raises:
            UserError: the stream has no further documents to train on.
        """
        rows: list[dict] = []
        for number, piece in _numbered(self.pieces()):
            if number == count:
                return datasets.Dataset.from_list(rows, features=PIECES)
            rows.append(asdict(piece))
        raise UserError(
            f"the stream has no documents beyond the {count} held-out ones: lower --validation_documents or give --validation_file"
        )


def documents_from_files(files: Sequence[str], text_column: str = "text", **settings: Any) -> datasets.Dataset:
    """[`Source.documents`] of files."""
    documents = Source(tuple(map(str, files)), text_column=text_column, **settings).documents()
    assert documents is not None  # only a table can lack a split
    return documents


def _numbered(pieces: Iterator[Piece]) -> Iterator[tuple[int, Piece]]:
    number = 0
    for piece in pieces:
        yield number, piece
        number += piece.end


def _generate(version, source, files=(), rows=None, stamp=None) -> Iterator[dict]:
    if rows is None:
        pieces = read_pieces(files, source.text_column, source.reading, source.end_mark)
    else:
        pieces = read_rows(rows, source.text_column, source.dataset_name or "the table", source.reading, source.end_mark)
    for piece in pieces:
        yield asdict(piece)


def _cached(arguments: dict) -> datasets.Dataset:
    try:
        with collect_notes() as lines:
            documents = datasets.Dataset.from_generator(
                _generate, features=PIECES, gen_kwargs={"version": CACHE_VERSION, **arguments}
            )
        if documents.cache_files:
            notes_file = Path(documents.cache_files[0]["filename"] + ".said.json")
            if lines:
                write_json(notes_file, lines)
            elif notes_file.is_file():  # read from the cache
                for line in json.loads(notes_file.read_text(encoding="utf-8")):
                    print_once(line)
        return documents
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


# Splits


def split_documents(
    documents: datasets.Dataset, validation_percentage: float, by: str = "documents"
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Split off the last `validation_percentage` percent of the characters for validation.

    By "documents", the split is at the nearest end of a document. If none is near (a single or a very long document), it is at the end of a
    paragraph, line or word inside that document, which is reported. By "characters", it is at the exact character, as in the book. The
    first half of a document that is split does not end with the end-of-text token.

    Raises:
        UserError: a part would be empty.
    """
    lengths = np.fromiter((len(text) for text in texts_of(documents)), dtype=np.int64, count=len(documents))
    total, ends = int(lengths.sum()), np.cumsum(lengths)
    # int() of the training share, as `int(train_ratio * len(text_data))` in the book
    border = int(total * (100 - validation_percentage) / 100)
    if not 0 < border < total:
        raise UserError(f"a validation split of {validation_percentage} % leaves no text to train or to validate on")
    held_out = total - border
    if by == "documents":
        last = np.flatnonzero(np.asarray(documents["end"][:], dtype=bool))  # piece of each document
        last = last[(ends[last] > 0) & (ends[last] < total)]
        if len(last):
            nearest = int(last[np.argmin(abs(ends[last] - border))])
            if held_out / 2 <= total - int(ends[nearest]) <= 2 * held_out:
                return documents.select(range(nearest + 1)), documents.select(range(nearest + 1, len(documents)))
    index = int(np.searchsorted(ends, border, side="right"))
    text, inside = documents[index]["text"], border - int(ends[index] - lengths[index])
    if by == "documents":
        inside, where = _place_to_cut(text, inside, held_out // 2)
        print_once(
            f"validation split: no document ends near {100 - validation_percentage:g} % of the text, so one is split at {where}"
        )
    train, validation = [documents.select(range(index))], []
    if inside:
        train.append(_one_piece(text[:inside], False))
    validation.append(_one_piece(text[inside:], documents[index]["end"]))
    if index + 1 < len(documents):
        validation.append(documents.select(range(index + 1, len(documents))))
    return datasets.concatenate_datasets(train), datasets.concatenate_datasets(validation)


def _place_to_cut(text: str, place: int, most: int) -> tuple[int, str]:
    """The nearest end of a paragraph, else line, else word to `place`, at most `most` characters away; and its description."""
    for mark, skip, name in (
        ("\n\n", 2, "the end of a paragraph"),
        ("\n", 1, "the end of a line"),
        (" ", 0, "the end of a word"),
    ):
        found = [i + skip for i in (text.rfind(mark, 0, place), text.find(mark, place)) if i > 0 and i + skip < len(text)]
        nearest = min(found, key=lambda i: abs(i - place), default=None)
        if nearest is not None and abs(nearest - place) <= most:
            return nearest, name
    return place, "a character, since there is no space nearby"


def _one_piece(text: str, end: bool) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [text], "end": [end]}, features=PIECES)


def texts_of(documents: datasets.Dataset) -> Iterator[str]:
    """The text of each piece."""
    for row in documents.select_columns("text"):
        yield row["text"]


# Tokens


def tokenize_documents(
    documents: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    append_eos: bool = True,
    num_proc: int | None = None,
    parse_special_tokens: bool = False,
) -> datasets.Dataset:
    """Token ids of every piece, with the end-of-text token after each document. Cached by text, tokenizer and settings.

    Without `num_proc`, the tokenizer uses threads on all cores; with it, that many processes are used.

    Args:
        parse_special_tokens: encode special tokens written in the text as tokens; otherwise as characters.

    Raises:
        UserError: `append_eos` with a tokenizer that has no end-of-text token.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise UserError("append_eos needs an end-of-text token: this tokenizer has none; pass --append_eos false")
    # The cache is named by the tokenizer's definition: its pickle changes when it is used (padding state).
    definition = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    key = f"{CACHE_VERSION}|{documents._fingerprint}|{definition}|{tokenizer.eos_token_id}|{append_eos}|{parse_special_tokens}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    end_id = tokenizer.eos_token_id if append_eos else None
    return documents.map(
        _tokenize,
        batched=True,
        batch_size=64,  # limits memory and uses all cores
        num_proc=num_proc,
        remove_columns=documents.column_names,
        features=datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))}),
        fn_kwargs={"tokenizer": tokenizer, "end_id": end_id, "parse_special_tokens": parse_special_tokens},
        new_fingerprint=name,
        # An explicit cache file: a document that was split is in memory, and its tokens would be kept in memory, too.
        cache_file_name=str(_cache_folder() / f"tokens-{name}.arrow"),
        desc="Tokenizing",
    )


def _cache_folder() -> Path:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "gpt_scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tokenize(batch: dict, tokenizer: PreTrainedTokenizerBase, end_id: int | None, parse_special_tokens: bool = False) -> dict:
    texts = batch["text"]
    if _adds_a_space(tokenizer):  # as Llama 2's: it replaces the space before which the document was cut
        texts = [text[1:] if text[:1] == " " and not text[:2].isspace() else text for text in texts]
    rows = _ids(tokenizer, texts, parse_special_tokens)
    # A document that ends with the mark in its text already contains the token.
    ends = [end and end_id is not None and ids[-1:] != [end_id] for ids, end in zip(rows, batch["end"])]
    return {"input_ids": [[*ids, end_id] if end else ids for ids, end in zip(rows, ends)]}


@lru_cache(maxsize=1)  # called for each piece of a stream
def _adds_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        whole, first, spaced, second = _ids(tokenizer, ["x y", "x", " y", "y"])
    except Exception:  # `tokenizers` raises no specific exception for a word-level vocabulary without an unknown token
        return False
    return whole != first + spaced and whole == first + second


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], parse_special_tokens: bool = False) -> list[list[int]]:
    settings = {"add_special_tokens": False, "return_attention_mask": False, "split_special_tokens": not parse_special_tokens}
    return encode_text(tokenizer, texts, **settings)["input_ids"]


# Rows


@dataclass(frozen=True)
class BlockSettings:
    """How documents become rows.

    Args:
        block_size: tokens per row.
        stride: offset between the starts of consecutive rows, in tokens; default block_size - 1.
        append_eos: end each document with the end-of-text token.
        isolate_documents: documents that share a row do not attend to each other.
        parse_special_tokens: encode special tokens written in the text as tokens.
        num_proc: number of tokenizing processes; default: threads of the tokenizer.
    """

    block_size: int
    stride: int | None = None
    append_eos: bool = True
    isolate_documents: bool = False
    parse_special_tokens: bool = False
    num_proc: int | None = None


@dataclass
class Counts:
    """Statistics of a split, including dropped and repeated tokens."""

    documents: int
    characters: int
    tokens: int
    blocks: int
    dropped_tokens: int
    repeated_tokens: int
    empty_documents: int = 0
    special_tokens: dict[str, int] = field(default_factory=dict)  # written in the text
    parsed: bool = False
    bytes: int = 0  # of the characters in UTF-8

    def __str__(self) -> str:
        text = f"{self.documents:,} documents{f' ({self.empty_documents:,} of them empty)' if self.empty_documents else ''}, "
        text += f"{self.characters:,} characters, {self.tokens:,} tokens in {self.blocks:,} blocks; "
        text += f"{self.dropped_tokens:,} tokens at the end dropped, {self.repeated_tokens:,} in two blocks"
        if self.special_tokens:
            text += f"; {describe_written(self.special_tokens, self.parsed)}"
        return text


def describe_written(special_tokens: Mapping[str, int], parsed: bool) -> str:
    """
    >>> describe_written({"<|endoftext|>": 1200}, parsed=True)
    '1,200 <|endoftext|> in the text are read as tokens'
    """
    written = ", ".join(f"{count:,} {token}" for token, count in special_tokens.items())
    how = "tokens" if parsed else "characters (--parse_special_tokens reads them as tokens)"
    return f"{written} in the text are read as {how}"


class CountsOfStream:
    """Counts special tokens written in a stream while it is read, in this process or in its loader workers."""

    WORKERS = 64  # one row each, since they count concurrently

    def __init__(self, tokenizer: PreTrainedTokenizerBase, parsed: bool):
        self.tokenizer, self.parsed, self.tokens = tokenizer, parsed, special_tokens(tokenizer)
        self.counts = torch.zeros(self.WORKERS, len(self.tokens), dtype=torch.int64).share_memory_()

    def add(self, text: str) -> str:
        """Count a piece of text, and return it."""
        if any(token in text for token in self.tokens):
            worker = torch.utils.data.get_worker_info()
            row = self.counts[worker.id % self.WORKERS if worker else 0]
            for token, count in count_special_tokens([text], self.tokenizer).items():
                row[self.tokens.index(token)] += count
        return text

    def __str__(self) -> str:
        found = {token: count for token, count in zip(self.tokens, self.counts.sum(0).tolist()) if count}
        return describe_written(found, self.parsed) if found else ""


@dataclass
class LanguageModelingData:
    """Training and validation rows, and their statistics."""

    train: TokenBlocks | StreamedBlocks
    validation: TokenBlocks
    description: dict[str, Any]


@dataclass
class Corpus:
    """The documents of a run: for training (the source itself if it is streamed), and for validation.

    Args:
        skip_documents: number of documents at the start of a stream that are held out for validation.
    """

    train: datasets.Dataset | Source
    validation: datasets.Dataset
    skip_documents: int = 0

    @classmethod
    def open(
        cls,
        source: Source,
        validation: Source | None = None,
        validation_percentage: float = 10,
        split_by: str = "documents",
        streaming: bool = False,
        validation_documents: int = 100,
    ) -> "Corpus":
        """Read the documents, and hold some out if there is neither a validation file nor a validation split.

        Raises:
            UserError: data that cannot be read or split.
        """
        held_out = validation.documents() if validation is not None else None
        if streaming:
            if held_out is not None:
                return cls(source, held_out)
            return cls(source, source.first_documents(validation_documents), validation_documents)
        train = source.documents()
        if train is None:
            raise UserError(f"data set {source.dataset_name!r} has no split {source.split!r}")
        return cls(train, held_out) if held_out is not None else cls(*split_documents(train, validation_percentage, split_by))

    def training_texts(self) -> Iterator[str]:
        """The pieces of text for training a tokenizer."""
        return (piece.text for piece in self.train.pieces()) if isinstance(self.train, Source) else texts_of(self.train)

    def blocks(self, tokenizer: PreTrainedTokenizerBase, settings: BlockSettings) -> LanguageModelingData:
        """Tokenize, create rows, and print statistics of each split.

        Raises:
            UserError: less text than one block, or a tokenizer without the required end-of-text token.
        """
        if isinstance(self.train, Source):
            train: TokenBlocks | StreamedBlocks = stream_blocks(self.train, tokenizer, settings, self.skip_documents, repeat=True)
            described: Any = "streamed"
        else:
            train, counts = make_blocks(self.train, tokenizer, settings)
            print(f"training: {counts}")
            described = asdict(counts)
        # Without overlap if a stride is given, as in the book: overlapping rows would count some tokens several times.
        stride = None if settings.stride is None else settings.block_size
        validation, counts = make_blocks(self.validation, tokenizer, BlockSettings(**{**vars(settings), "stride": stride}))
        print(f"validation: {counts}")
        return LanguageModelingData(train, validation, {"train": described, "validation": asdict(counts)})


def make_blocks(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, settings: BlockSettings
) -> tuple[TokenBlocks, Counts]:
    """The rows of a split, and its counts.

    Raises:
        UserError: as [`Corpus.blocks`].
    """
    tokenized = tokenize_documents(documents, tokenizer, settings.append_eos, settings.num_proc, settings.parse_special_tokens)
    blocks = TokenBlocks(
        tokenized, settings.block_size, settings.stride, settings.isolate_documents, end_id=tokenizer.eos_token_id
    )
    return blocks, count_blocks(documents, blocks, tokenizer, settings.parse_special_tokens)


def count_blocks(
    documents: datasets.Dataset, blocks: TokenBlocks, tokenizer: PreTrainedTokenizerBase, parsed: bool = False
) -> Counts:
    """The [`Counts`] of a split."""
    ends = documents["end"]
    starts = [True, *ends][: len(documents)]
    return Counts(
        documents=sum(ends) + int(len(documents) > 0 and not documents[-1]["end"]),
        characters=sum(map(len, texts_of(documents))),
        tokens=blocks.num_tokens,
        blocks=len(blocks),
        dropped_tokens=blocks.num_tokens - blocks.covered_tokens,
        repeated_tokens=len(blocks) * blocks.block_size - blocks.covered_tokens,
        empty_documents=sum(end and start and not text.strip() for text, end, start in zip(texts_of(documents), ends, starts)),
        special_tokens=dict(count_special_tokens(texts_of(documents), tokenizer)),
        parsed=parsed,
        bytes=sum(len(text.encode("utf-8", "surrogatepass")) for text in texts_of(documents)),
    )


def stream_blocks(
    source: Source, tokenizer: PreTrainedTokenizerBase, settings: BlockSettings, skip_documents: int = 0, repeat: bool = False
) -> StreamedBlocks:
    """The rows of [`make_blocks`], in the same order, from a stream; the first `skip_documents` documents are skipped."""
    counts = CountsOfStream(tokenizer, settings.parse_special_tokens)
    rows = partial(_streamed_rows, source, tokenizer, settings, skip_documents, counts)
    return StreamedBlocks(rows, sharded=source.dataset_name is not None, repeat=repeat, written=counts.__str__)


def _streamed_rows(
    source: Source,
    tokenizer: PreTrainedTokenizerBase,
    settings: BlockSettings,
    skip: int,
    counts: CountsOfStream,
    index: int,
    count: int,
) -> Iterator[dict[str, torch.Tensor]]:
    worker = torch.utils.data.get_worker_info()
    if source.dataset_name is not None and skip and worker and worker.num_workers > 1:
        # A stream of `datasets` splits its shards among the workers itself, before documents are counted.
        raise UserError("several loader workers cannot skip the same held-out documents: give --validation_file")
    end_id = tokenizer.eos_token_id if settings.append_eos else None
    ids = (
        _tokenize({"text": [counts.add(piece.text)], "end": [piece.end]}, tokenizer, end_id, settings.parse_special_tokens)[
            "input_ids"
        ][0]
        for number, piece in _numbered(source.pieces())
        if number >= skip and number % count == index
    )
    restart = tokenizer.eos_token_id if settings.isolate_documents else None
    return blocks_of_stream(ids, settings.block_size, settings.stride, restart)
