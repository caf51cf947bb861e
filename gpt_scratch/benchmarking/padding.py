"""Training throughput on short texts of varying length: with padding, with grouping by length, and with packing.

Lengths are distributed like those of SMS: lognormal, mean 26 tokens, at most 77. For each method, `BATCHES` batches are timed. They are
evenly spaced among the batches of an epoch sorted by width, so that they are representative of the epoch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..configuration_gpt_scratch import GPTScratchConfig
from ..data.instruction import InstructionCollator, pack_rows
from ..modeling_gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from .harness import Contender, Sizes, device, measure, summarize

EXAMPLES, BATCH, BATCHES, PACK = 1024, 8, 12, 256
PADDING = 0

Batch = dict[str, torch.Tensor]


def lengths(count: int = EXAMPLES, seed: int = 0) -> list[int]:
    """Tokens of each example: lognormal, mean 26, from 4 to 77."""
    drawn = np.random.default_rng(seed).lognormal(np.log(26) - 0.18, 0.6, count)
    return np.clip(drawn.round().astype(int), 4, 77).tolist()


def spread_evenly(batches: Sequence[Any], width: Callable[[Any], int], count: int = BATCHES) -> list[Any]:
    """`count` batches, evenly spaced among all batches sorted by width."""
    ordered = sorted(batches, key=width)
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(min(count, len(ordered)))]


def padding_waste(sizes: Sizes, task: str, bf16: bool, repetitions: int) -> list[dict[str, Any]]:
    """Time forward and backward passes of batches of 8 examples; the rows contain `examples_per_second` and the share of padding.

    Args:
        task: "classification", or "instruction", with labels on the second half of each example (the reply).
    """
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(1, sizes.vocab_size, (n,), generator=generator).tolist() for n in lengths()]
    shuffled = torch.randperm(len(rows), generator=generator).tolist()
    grouped = get_length_grouped_indices([len(row) for row in rows], BATCH, generator=generator)
    orders = {
        "padded to the longest": [shuffled[i : i + BATCH] for i in range(0, len(rows), BATCH)],
        "grouped by length": [grouped[i : i + BATCH] for i in range(0, len(rows), BATCH)],
    }
    chosen = {name: spread_evenly(batches, lambda batch: max(len(rows[i]) for i in batch)) for name, batches in orders.items()}
    theirs, ours = _classifiers(sizes) if task == "classification" else _language_models(sizes)
    if task == "classification":
        batches = {name: [_padded([rows[i] for i in part]) for part in parts] for name, parts in chosen.items()}
    else:
        batches = _instruction_batches(rows, chosen, generator)
    # Examples are counted by their tokens, so that it does not matter which examples a method has selected.
    mean = sum(map(len, rows)) / len(rows)
    examples = {name: sum(float(batch["attention_mask"].sum()) for batch in parts) / mean for name, parts in batches.items()}
    names = {f"transformers, {name}": (theirs, name) for name in batches if name == "padded to the longest"}
    names |= {f"gpt_scratch, {name}": (ours, name) for name in batches}

    def contender(name: str, model: nn.Module, items: list[Batch]) -> Contender:
        def run() -> dict[str, float]:
            for batch in items:
                with torch.autocast(device(), torch.bfloat16, enabled=bf16):
                    loss = model(**batch).loss
                loss.backward()
            model.zero_grad()
            return {}

        return Contender(name, run)

    times = measure([contender(name, model, batches[way]) for name, (model, way) in names.items()], repetitions)
    per_example = {
        name: {"total": [seconds / examples[names[name][1]] for seconds in parts["total"]]} for name, parts in times.items()
    }
    result = []
    for row in summarize(per_example, "gpt_scratch, padded to the longest"):
        masks = [batch["attention_mask"] for batch in batches[names[row["contender"]][1]]]
        padding = 1 - sum(float(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        result.append({"task": task, **row, "examples_per_second": 1 / row["median_s"], "padding": padding})
    return result


def _instruction_batches(
    rows: list[list[int]], chosen: dict[str, list[Any]], generator: torch.Generator
) -> dict[str, list[Batch]]:
    """The batches of `chosen`, lists of row numbers, and the same number of packed batches with about as many tokens as 8 examples."""
    labelled = [{"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :], "length": len(row)} for row in rows]
    collate = InstructionCollator(PADDING)
    batches = {name: [collate([labelled[i] for i in part]) for part in parts] for name, parts in chosen.items()}
    packed = list(pack_rows(datasets.Dataset.from_list(labelled), PACK))
    together = max(1, round(BATCH * sum(map(len, rows)) / len(rows) / PACK))
    order = torch.randperm(len(packed), generator=generator).tolist()
    batches["packed"] = [collate([packed[i] for i in order[j * together : (j + 1) * together]]) for j in range(BATCHES)]
    return batches


def _padded(rows: list[list[int]]) -> Batch:
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([row + [PADDING] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
        "labels": torch.tensor([len(row) % 2 for row in rows]),
    }


def _classifiers(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    theirs = GPT2ForSequenceClassification(GPT2Config(**vars(sizes), **dropout, pad_token_id=PADDING, num_labels=2))
    ours = GPTScratchForSequenceClassification(
        GPTScratchConfig(**vars(sizes), qkv_bias=True, drop_rate=0.0, pad_token_id=PADDING, num_labels=2)
    )
    return theirs.train(), ours.train()


def _language_models(sizes: Sizes) -> tuple[nn.Module, nn.Module]:
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    theirs = GPT2LMHeadModel(GPT2Config(**vars(sizes), **dropout, pad_token_id=PADDING))
    ours = GPTScratchForCausalLM(
        GPTScratchConfig(**vars(sizes), qkv_bias=True, drop_rate=0.0, pad_token_id=PADDING, loss_implementation="chunked")
    )
    return theirs.train(), ours.train()
