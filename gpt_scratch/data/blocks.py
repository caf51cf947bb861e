"""Rows of token ids for language modeling: the book's sliding window, over Arrow data or a stream, without copies.

Rows are windows over the concatenated tokens, created on access, so memory does not depend on the stride. Example: block_size 4,
the default stride 3, document "a b c d e f g" and the end-of-text token |:

    stream   a b c d e f g |
    row 0    a b c d              scored: b c d
    row 1          d e f g        scored: e f g
    dropped                |      (counted and printed)

`labels` equal the input ids: the model shifts them, so a row of T tokens has T - 1 predictions, and consecutive rows
share one token so that every token is predicted exactly once. `stride=block_size` is the book's `create_dataloader` (and
`run_clm.py`'s `group_texts`): no overlap, and the first token of each row is never predicted.
"""

from collections.abc import Callable, Iterable, Iterator

import datasets
import numpy as np
import torch

from ..errors import UserError
from ..training_conflicts import check_stride


class TokenBlocks(torch.utils.data.Dataset):
    """Windows of `block_size` tokens over the concatenated `input_ids` of a tokenized Arrow data set.

    A row is `{"input_ids": (T,), "labels": (T,)}`, int64, labels equal to the ids. With `isolate_documents` also
    `"position_ids"`, which restart after every `end_id`, so that the model does not attend across documents, and the
    first token of each document is labelled -100, since it has no preceding token in its document.

    Args:
        tokenized: a data set with a column `input_ids`, as made by `language_modeling.tokenize_documents`.
        block_size: tokens per row.
        stride: offset between the starts of consecutive rows, in tokens; default block_size - 1.
        isolate_documents: restart positions after each document.
        end_id: id of the token that ends a document; required with `isolate_documents`.

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
            raise UserError(f"block_size is {block_size}: a block needs at least 2 tokens, an input and a target")
        check_stride(block_size, self.stride)
        if isolate_documents and end_id is None:
            raise UserError("isolate_documents needs an end-of-text token: this tokenizer has none")
        self.isolate_documents, self.end_id = isolate_documents, end_id
        # Zero-copy views: Arrow stores all lists of a chunk in one flat, memory-mapped array.
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
    """A training row from the ids of one block; with `end_id`, positions and labels restart after each document.

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


def blocks_of_stream(
    ids: Iterable[list[int]], block_size: int, stride: int | None = None, end_id: int | None = None
) -> Iterator[dict[str, torch.Tensor]]:
    """The rows of [`TokenBlocks`], in the same order, from a stream of token ids, in constant memory.

    Args:
        end_id: as in [`block_row`].
    """
    stride = block_size - 1 if stride is None else stride
    check_stride(block_size, stride)
    buffer = np.zeros(0, dtype=np.int64)
    for piece in ids:
        buffer = np.concatenate([buffer, np.asarray(piece, dtype=np.int64)])
        start = 0
        while len(buffer) - start >= block_size:
            yield block_row(buffer[start : start + block_size].copy(), end_id)
            start += stride
        buffer = buffer[start:]


class StreamedBlocks(torch.utils.data.IterableDataset):
    """Rows of a stream as an iterable data set: read again in each epoch, with the documents split among the loader workers.

    Args:
        rows: returns the rows of one pass for (index, count), using every `count`-th document from `index` on.
        sharded: whether `rows` splits the documents itself, as streams of `datasets` do.
        repeat: start again at the end, indefinitely. When Trainer resumes, it skips rows from the start of a pass, so a run over several
            passes resumes exactly only if they form a single pass.
        written: describes the special tokens found in the text so far; empty if there were none.
    """

    def __init__(
        self,
        rows: Callable[[int, int], Iterator[dict[str, torch.Tensor]]],
        sharded: bool = False,
        repeat: bool = False,
        written: Callable[[], str] = str,
    ):
        self.rows, self.sharded, self.repeat, self.written = rows, sharded, repeat, written

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        index, count = (worker.id, worker.num_workers) if worker and not self.sharded else (0, 1)
        while True:
            seen = 0
            for row in self.rows(index, count):
                seen += 1
                yield row
            if not self.repeat or not seen:  # a pass without rows: the next would be empty, too
                return
