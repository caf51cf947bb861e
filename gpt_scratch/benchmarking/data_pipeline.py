"""From a text file to batches of blocks: tokens per second, compared with transformers' example script run_clm.py."""

import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, default_data_collator

from ..data.blocks import TokenBlocks
from ..data.language_modeling import documents_from_files, tokenize_documents
from .harness import Contender, measure, summarize

BATCH = 32


def run_clm_blocks(file: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> datasets.Dataset:
    """Tokenize, concatenate and chunk lines as in transformers' examples/pytorch/language-modeling/run_clm.py; drop the remainder."""
    lines = datasets.load_dataset("text", data_files={"train": [file]}, split="train", keep_linebreaks=True)
    tokenized = lines.map(lambda rows: tokenizer(rows["text"], verbose=False), batched=True, remove_columns=["text"])

    def group_texts(rows: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
        joined = {name: list(chain(*values)) for name, values in rows.items()}
        total = len(joined["input_ids"]) // block_size * block_size
        cut = {name: [ids[i : i + block_size] for i in range(0, total, block_size)] for name, ids in joined.items()}
        return cut | {"labels": [list(block) for block in cut["input_ids"]]}

    return tokenized.map(group_texts, batched=True)


def our_blocks(file: str, tokenizer: PreTrainedTokenizerBase, block_size: int) -> TokenBlocks:
    """Blocks as in scripts/pretrain.py, without overlap."""
    tokenized = tokenize_documents(documents_from_files([file]), tokenizer)
    return TokenBlocks(tokenized, block_size, stride=block_size, end_id=tokenizer.eos_token_id)


def data_pipeline(file: str, tokenizer: PreTrainedTokenizerBase, block_size: int, repetitions: int) -> list[dict[str, Any]]:
    """Seconds to prepare the blocks ("prepare") and to read them once in batches of 32 ("read"), with an empty cache."""
    tokens: dict[str, int] = {}

    def contender(name: str, blocks_of: Callable[[str, PreTrainedTokenizerBase, int], Any]) -> Contender:
        def run() -> dict[str, float]:
            cache = datasets.config.HF_DATASETS_CACHE
            with tempfile.TemporaryDirectory() as folder:
                datasets.config.HF_DATASETS_CACHE = Path(folder)
                try:
                    start = time.perf_counter()
                    blocks = blocks_of(file, tokenizer, block_size)
                    prepared = time.perf_counter()
                    batches: Iterable[Any] = DataLoader(blocks, batch_size=BATCH, collate_fn=default_data_collator)
                    tokens[name] = sum(batch["input_ids"].numel() for batch in batches)
                    return {"prepare": prepared - start, "read": time.perf_counter() - prepared}
                finally:
                    datasets.config.HF_DATASETS_CACHE = cache

        return Contender(name, run)

    datasets.disable_progress_bars()
    contenders = [contender("run_clm.py", run_clm_blocks), contender("gpt_scratch", our_blocks)]
    rows = summarize(measure(contenders, repetitions), "run_clm.py")
    datasets.enable_progress_bars()
    return [
        row | {"tokens": tokens[row["contender"]], "tokens_per_s": tokens[row["contender"]] / row["median_s"]} for row in rows
    ]
