"""Text to rows of token ids for language modeling: the sliding window of the book, over Arrow data, without copies.

The documents are tokenized once, in parallel, into a cached Arrow data set; rows are windows over the stream of all tokens, cut
when they are asked for, so any stride costs the same memory. Example, block_size 4 and the default stride 3, document
"a b c d e f g" and the end mark |:

    stream   a b c d e f g |
    row 0    a b c d              scored: b c d
    row 1          d e f g        scored: e f g
    dropped                |      (counted and printed)

`labels` are the input ids: the model shifts them, so a row of T tokens scores T - 1 predictions, and neighbouring rows
share one token so that every token is predicted exactly once. `stride=block_size` is the book's `create_dataloader` (and
`run_clm.py`'s `group_texts`): no overlap, and the first token of each row is never predicted.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .readers import Piece, check_files, load_table, read_pieces, read_rows

CACHE_VERSION = 2  # of cutting and tokenizing, and so of the cached pieces and tokens: raise it where either changes


@dataclass
class Counts:
    """What went in and what came out of a split, printed so that nothing is lost or repeated silently."""

    documents: int
    characters: int
    tokens: int
    blocks: int
    dropped_tokens: int
    repeated_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.documents:,} documents, {self.characters:,} characters, {self.tokens:,} tokens in {self.blocks:,} blocks; "
            f"{self.dropped_tokens:,} tokens at the end dropped, {self.repeated_tokens:,} seen in two blocks"
        )


class TokenBlocks(torch.utils.data.Dataset):
    """Windows of `block_size` tokens over the concatenated `input_ids` of a tokenized Arrow data set.

    A row is `{"input_ids": (T,), "labels": (T,)}`, int64, labels equal to the ids. With `isolate_documents` also
    `"position_ids"`, which restart after every `end_id`, so that the model does not attend across documents, and the
    first token of each document is labelled -100, since nothing of its own document precedes it.

    Args:
        tokenized: a data set with a column `input_ids`, as made by [`tokenize_documents`].
        block_size: tokens a row.
        stride: tokens from the start of a row to the start of the next; default block_size - 1.
        isolate_documents: restart positions after each document.
        end_id: token id that ends a document; needed with `isolate_documents`.

    Raises:
        UserError: fewer tokens than one block, or a stride that would skip tokens.
    """

    def __init__(
        self,
        tokenized: datasets.Dataset,
        block_size: int,
        stride: int | None = None,
        isolate_documents: bool = False,
        end_id: int | None = None,
    ):
        self.block_size = block_size
        self.stride = block_size - 1 if stride is None else stride
        if block_size < 2:
            raise UserError(f"block_size is {block_size}: a block needs at least 2 tokens, one to read and one to predict")
        if not 1 <= self.stride <= block_size:
            raise UserError(f"stride is {self.stride}: it must be between 1 and block_size {block_size}, else tokens are skipped")
        if isolate_documents and end_id is None:
            raise UserError("isolate_documents needs an end-of-text token: this tokenizer has none")
        self.isolate_documents, self.end_id = isolate_documents, end_id
        # Zero-copy views: Arrow keeps all lists of a chunk in one flat, memory-mapped array.
        self.chunks = [chunk.flatten().to_numpy(zero_copy_only=True) for chunk in tokenized.data.column("input_ids").chunks]
        self.ends = np.cumsum([len(chunk) for chunk in self.chunks])
        self.num_tokens = int(self.ends[-1]) if self.chunks else 0
        if self.num_tokens < block_size:
            raise UserError(
                f"the text has {self.num_tokens} tokens, fewer than one block of {block_size}: give more text or a smaller --block_size"
            )
        self.num_blocks = (self.num_tokens - block_size) // self.stride + 1

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if not 0 <= index < self.num_blocks:
            raise IndexError(f"block {index} of {self.num_blocks}")
        ids = self.tokens(index * self.stride, index * self.stride + self.block_size)
        return block_row(ids, self.end_id if self.isolate_documents else None)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Token ids [start, stop) of the stream, int64."""
        first = int(np.searchsorted(self.ends, start, side="right"))
        parts, chunk = [], first
        while start < stop:
            offset = start - (self.ends[chunk - 1] if chunk else 0)
            part = self.chunks[chunk][offset : offset + stop - start]
            parts.append(part)
            start, chunk = start + len(part), chunk + 1
        return np.concatenate(parts).astype(np.int64)

    @property
    def covered_tokens(self) -> int:
        """Tokens of the stream that are in at least one block."""
        return (self.num_blocks - 1) * self.stride + self.block_size


def block_row(ids: np.ndarray, end_id: int | None) -> dict[str, torch.Tensor]:
    """A training row from the ids of one block; positions and labels restart after every `end_id` that is given.

    >>> {k: v.tolist() for k, v in block_row(np.array([5, 6, 0, 7, 8]), end_id=0).items()}
    {'input_ids': [5, 6, 0, 7, 8], 'labels': [5, 6, 0, -100, 8], 'position_ids': [0, 1, 2, 0, 1]}
    """
    input_ids = torch.from_numpy(ids)
    row = {"input_ids": input_ids, "labels": input_ids.clone()}
    if end_id is not None:
        starts = np.zeros(len(ids), dtype=bool)
        starts[1:] = ids[:-1] == end_id
        row["labels"][torch.from_numpy(starts)] = -100
        index = np.arange(len(ids))
        row["position_ids"] = torch.from_numpy(index - np.maximum.accumulate(np.where(starts, index, 0)))
    return row


def documents_from_files(files: Sequence[str], text_column: str = "text") -> datasets.Dataset:
    """The pieces of all documents as a cached Arrow data set, columns `text` and `end`.

    The cache key holds each file's path, size and time of change, so an edited file is read again.

    Raises:
        UserError: a missing, empty, unknown or broken file.
    """
    check_files(files)
    stamp = [(str(Path(f).resolve()), Path(f).stat().st_size, Path(f).stat().st_mtime_ns) for f in files]
    return _cached(_pieces_of_files, {"stamp": stamp, "files": [str(f) for f in files], "text_column": text_column})


def documents_from_table(rows: datasets.Dataset, text_column: str, name: str) -> datasets.Dataset:
    """As [`documents_from_files`], from a `datasets` table with one document a row."""
    return _cached(_pieces_of_rows, {"rows": rows, "text_column": text_column, "name": name})


def _pieces_of_files(version, stamp, files, text_column) -> Iterator[dict]:
    for piece in read_pieces(files, text_column):
        yield asdict(piece)


def _pieces_of_rows(version, rows, text_column, name) -> Iterator[dict]:
    for piece in read_rows(rows, text_column, name):
        yield asdict(piece)


def _features() -> datasets.Features:
    return datasets.Features({"text": datasets.Value("large_string"), "end": datasets.Value("bool")})


def _cached(generator, arguments: dict) -> datasets.Dataset:
    try:
        return datasets.Dataset.from_generator(
            generator, features=_features(), gen_kwargs={"version": CACHE_VERSION, **arguments}
        )
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def split_by_characters(documents: datasets.Dataset, validation_percentage: float) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The first characters for training, the last `validation_percentage` percent for validation, as the book splits.

    Characters are counted over all documents; the one on the border is cut in two, and its first half gets no end mark,
    since it does not end there.
    """
    lengths = np.fromiter((len(text) for text in _texts(documents)), dtype=np.int64, count=len(documents))
    # int() of the training share, as `int(train_ratio * len(text_data))` in the book
    border = int(lengths.sum() * (100 - validation_percentage) / 100)
    ends = np.cumsum(lengths)
    index = int(np.searchsorted(ends, border, side="right"))
    if not 0 < border < lengths.sum():
        raise UserError(f"a validation split of {validation_percentage} % leaves no text to train or to validate on")
    inside = border - int(ends[index] - lengths[index])
    text = documents[index]["text"]
    train, validation = [documents.select(range(index))], []
    if inside:
        train.append(_one_piece(text[:inside], False, documents))
    validation.append(_one_piece(text[inside:], documents[index]["end"], documents))
    if index + 1 < len(documents):
        validation.append(documents.select(range(index + 1, len(documents))))
    return datasets.concatenate_datasets(train), datasets.concatenate_datasets(validation)


def _one_piece(text: str, end: bool, documents: datasets.Dataset) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": [text], "end": [end]}, features=documents.features)


def _texts(documents: datasets.Dataset) -> Iterator[str]:
    for row in documents.select_columns("text"):
        yield row["text"]


def tokenize_documents(
    documents: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, append_eos: bool = True, num_proc: int | None = None
) -> datasets.Dataset:
    """Token ids of every piece, with the end-of-text token after each document. Cached by text, tokenizer and settings.

    Without `num_proc` the tokenizer's own threads use all cores; with it, that many processes do.

    Raises:
        UserError: `append_eos` with a tokenizer that has no end-of-text token.
    """
    if append_eos and tokenizer.eos_token_id is None:
        raise UserError("append_eos needs an end-of-text token: this tokenizer has none; pass --append_eos false")
    # The tokenizer's own pickle changes when it is used (padding state): name the cache by its definition instead.
    definition = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    key = f"{CACHE_VERSION}|{documents._fingerprint}|{definition}|{tokenizer.eos_token_id}|{append_eos}"
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return documents.map(
        _tokenize,
        batched=True,
        batch_size=64,  # bounds memory, and fills the cores
        num_proc=num_proc,
        remove_columns=documents.column_names,
        features=datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))}),
        fn_kwargs={"tokenizer": tokenizer, "end_id": tokenizer.eos_token_id if append_eos else None},
        new_fingerprint=name,
        # Named by us: a split that was cut in two lives in memory, and its tokens would be kept there too.
        cache_file_name=str(_cache_folder() / f"tokens-{name}.arrow"),
        desc="Tokenizing",
    )


def _cache_folder() -> Path:
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "gpt_scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _tokenize(batch: dict, tokenizer: PreTrainedTokenizerBase, end_id: int | None) -> dict:
    texts = batch["text"]
    if _adds_a_space(tokenizer):  # Llama 2's does: it stands for the one before which the document was cut
        texts = [text[1:] if text[:1] == " " and not text[:2].isspace() else text for text in texts]
    ids = _ids(tokenizer, texts)
    return {"input_ids": [[*i, end_id] if end and end_id is not None else i for i, end in zip(ids, batch["end"])]}


@lru_cache(maxsize=1)  # a stream asks once a piece
def _adds_a_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        whole, first, spaced, second = _ids(tokenizer, ["x y", "x", " y", "y"])
    except Exception:  # `tokenizers` raises no narrower one: a vocabulary of words without these and without an unknown token
        return False
    return whole != first + spaced and whole == first + second


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    # verbose=False: a document longer than the model's context is cut into blocks, no reason to warn
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def count_blocks(documents: datasets.Dataset, blocks: TokenBlocks) -> Counts:
    """The [`Counts`] of a split."""
    return Counts(
        documents=sum(documents["end"]) + int(len(documents) > 0 and not documents[-1]["end"]),
        characters=sum(len(text) for text in _texts(documents)),
        tokens=blocks.num_tokens,
        blocks=len(blocks),
        dropped_tokens=blocks.num_tokens - blocks.covered_tokens,
        repeated_tokens=len(blocks) * blocks.block_size - blocks.covered_tokens,
    )


def stream_blocks(
    pieces: Iterator[Piece],
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    stride: int | None = None,
    append_eos: bool = True,
    isolate_documents: bool = False,
) -> Iterator[dict[str, torch.Tensor]]:
    """The rows of [`TokenBlocks`], in the same order, from a stream of pieces that is never held in memory whole."""
    stride = block_size - 1 if stride is None else stride
    end_id = tokenizer.eos_token_id
    buffer = np.zeros(0, dtype=np.int64)
    for piece in pieces:
        ids = _tokenize({"text": [piece.text], "end": [piece.end]}, tokenizer, end_id if append_eos else None)["input_ids"][0]
        buffer = np.concatenate([buffer, np.asarray(ids, dtype=np.int64)])
        start = 0
        while len(buffer) - start >= block_size:
            yield block_row(buffer[start : start + block_size].copy(), end_id if isolate_documents else None)
            start += stride
        buffer = buffer[start:]


class StreamedBlocks(torch.utils.data.IterableDataset):
    """[`stream_blocks`] as an iterable data set: read again for each epoch, its documents shared out among loader workers.

    Args:
        source: files, or `{"name", "config_name", "split"}` of a `datasets` table that is streamed.
        text_column: column of the text in tables.
        tokenizer: a fast tokenizer.
        skip_documents: leave out this many documents at the start, which are held out for validation.
        repeat: start again at the end, without end. Trainer counts the rows to skip when it resumes from the start of one pass, so a run
            of several passes resumes exactly only if they are one to it.
        settings: `block_size`, `stride`, `append_eos`, `isolate_documents` as in [`stream_blocks`].
    """

    def __init__(
        self,
        source: Sequence[str] | dict,
        text_column: str,
        tokenizer: PreTrainedTokenizerBase,
        skip_documents: int = 0,
        repeat: bool = False,
        **settings,
    ):
        self.source, self.text_column, self.tokenizer = source, text_column, tokenizer
        self.skip_documents, self.repeat, self.settings = skip_documents, repeat, settings

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        while True:
            rows = 0
            for row in self._one_pass():
                rows += 1
                yield row
            if not self.repeat or not rows:  # without a single row the next pass would bring none either
                return

    def _one_pass(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker else (0, 1)
        if isinstance(self.source, dict):
            # A stream of `datasets` shares its shards out among the workers by itself, before any document is counted.
            if count > 1 and self.skip_documents:
                raise UserError("held-out documents cannot be told from others by several loader workers: give --validation_file")
            index, count = 0, 1
        pieces = (
            piece
            for number, piece in _numbered(stream_pieces(self.source, self.text_column))
            if number >= self.skip_documents and number % count == index
        )
        return stream_blocks(pieces, self.tokenizer, **self.settings)


def stream_pieces(source: Sequence[str] | dict, text_column: str) -> Iterator[Piece]:
    """The documents of files or of a streamed `datasets` table, as pieces."""
    if isinstance(source, dict):
        rows = load_table(**source, streaming=True)
        if rows is None:
            raise UserError(f"data set {source['name']!r} has no split {source['split']!r}")
        return read_rows(rows, text_column, source["name"])
    return read_pieces(source, text_column)


def _numbered(pieces: Iterator[Piece]) -> Iterator[tuple[int, Piece]]:
    number = 0
    for piece in pieces:
        yield number, piece
        number += piece.end


def documents_from_stream(source: Sequence[str] | dict, text_column: str, count: int) -> datasets.Dataset:
    """The first `count` documents of a stream, as [`documents_from_files`] gives them.

    Raises:
        UserError: the stream has no more than that, so nothing would be left to train on.
    """
    rows: list[dict] = []
    for number, piece in _numbered(stream_pieces(source, text_column)):
        if number == count:
            return datasets.Dataset.from_list(rows, features=_features())
        rows.append(asdict(piece))
    raise UserError(
        f"the stream has no more than the {count} documents to hold out: lower --validation_documents or give --validation_file"
    )
