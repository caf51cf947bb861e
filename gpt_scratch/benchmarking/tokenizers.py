"""Speed of the from-scratch byte-pair tokenizer against the Rust library `tokenizers`, on one core.

Both run alternately in one process and are compared within each repetition, because absolute times on a shared machine vary.
"""

import os
from collections.abc import Callable, Iterator
from statistics import median, quantiles
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from ..errors import UserError
from ..tokenization.byte_pair import train_byte_pair


def benchmark_tokenizers(text: str, vocab_sizes: tuple[int, ...] = (1000, 8000), repetitions: int = 7) -> list[dict[str, Any]]:
    """Time training, encoding and decoding of `text`.

    Encoding is compared with `PreTrainedTokenizerFast.__call__`, which also computes masks and offsets, and with
    `tokenizers.Tokenizer.encode`, for the whole text and for a list of its lines. For the from-scratch tokenizer, "cold" means an empty
    cache and "warm" the cache of a previous pass; the cache of the Rust library is always warm.

    Args:
        text: to train on and to encode.
        vocab_sizes: vocabulary sizes to train.
        repetitions: measurements of each, at least 5.

    Returns:
        One row per task and vocabulary: `task`, `vocab_size`, `ours` and `theirs` (median seconds), `megabytes_per_second` (ours), and
        `ratio` (ours / theirs, lower is faster) with its quartiles `ratio_low` and `ratio_high` over the repetitions.

    Raises:
        UserError: `tokenizers` may use several threads; or merges or ids differ.
    """
    if os.environ.get("RAYON_NUM_THREADS") != "1":
        raise UserError("set RAYON_NUM_THREADS=1 before Python starts, or tokenizers uses all cores")
    return [row for vocab_size in vocab_sizes for row in _benchmark(text, vocab_size, repetitions)]


def _benchmark(text: str, vocab_size: int, repetitions: int) -> Iterator[dict[str, Any]]:
    tokenizer, rust = train_byte_pair([text], vocab_size, special_tokens=()), _train_with_tokenizers(text, vocab_size)
    fast = tokenizer.to_fast(model_max_length=1 << 30)  # no warning about the length
    lines = text.splitlines(keepends=True)
    ids = tokenizer.encode(text)
    if rust.get_vocab() != {token: id for id, token in tokenizer.tokens.items()} or fast(text)["input_ids"] != ids:
        raise UserError("the two tokenizers give different ids: they cannot be compared")

    def encode_cold() -> None:
        tokenizer.clear_cache()
        tokenizer.encode(text)

    tasks: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "train, tokenizers": (
            lambda: train_byte_pair([text], vocab_size, special_tokens=()),
            lambda: _train_with_tokenizers(text, vocab_size),
        ),
        "encode cold, PreTrainedTokenizerFast": (encode_cold, lambda: fast(text)),
        "encode warm, PreTrainedTokenizerFast": (lambda: tokenizer.encode(text), lambda: fast(text)),
        "encode warm, tokenizers": (lambda: tokenizer.encode(text), lambda: fast.backend_tokenizer.encode(text).ids),
        "encode lines warm, PreTrainedTokenizerFast": (lambda: list(map(tokenizer.encode, lines)), lambda: fast(lines)),
        "decode, PreTrainedTokenizerFast": (lambda: tokenizer.decode(ids), lambda: fast.decode(ids)),
    }
    megabytes = len(text.encode()) / 1e6
    for task, (ours, theirs) in tasks.items():
        yield {"task": task, "vocab_size": vocab_size, **_compare(ours, theirs, repetitions, megabytes)}


def _compare(ours: Callable[[], Any], theirs: Callable[[], Any], repetitions: int, megabytes: float) -> dict[str, float]:
    seconds = [(_seconds(ours), _seconds(theirs)) for _ in range(repetitions)]
    ratios = quantiles([mine / other for mine, other in seconds], n=4, method="inclusive")
    mine = median(mine for mine, _ in seconds)
    return {
        "ours": mine,
        "theirs": median(other for _, other in seconds),
        "megabytes_per_second": megabytes / mine,
        "ratio": ratios[1],
        "ratio_low": ratios[0],
        "ratio_high": ratios[2],
    }


def _seconds(function: Callable[[], Any]) -> float:
    start = perf_counter()
    function()
    return perf_counter() - start


def _train_with_tokenizers(text: str, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer
