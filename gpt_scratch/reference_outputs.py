"""Reference outputs of a model in a small file beside its weights: a few fixed prompts, their top logits and greedy continuations.

`verify_checkpoint.py` compares a checkpoint with its `reference_outputs.json`, on any machine and with any version. The outputs are
computed by forward passes of single rows in float32, without padding and without a cache, one pass per generated token, so that no bug of
a cache or a mask affects them.

The file, with n tokens of continuation (n = 0 and one row of logits for a classifier) and the k highest logits:

    format, head ("lm" or "classifier"), dtype (of the weights), date, versions, largest_logit
    prompts: input_ids (T,), continuation (n,), top_ids (n, k), top_logits (n, k) of each row
    batches: the same rows padded, right and left: input_ids (B, T), attention_mask (B, T), position_ids (B, T) or null
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from . import __version__
from .files import atomic_path
from .verify_checkpoint import FILE, FORMAT, load

LENGTHS = (24, 7, 1)  # tokens of the rows
NEW_TOKENS = 4  # a cache that is wrong differs from the second on; each costs a forward pass, when writing and when verifying
TOP = 5  # number of stored logits of a language model; of a classifier, all are stored


def write_reference_outputs(folder: Path) -> None:
    """Load a checkpoint directory and write its reference outputs.

    Raises:
        ValueError: weights are missing, or the logits are not finite.
        OSError: it cannot be written.
    """
    architecture = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    model = load(folder, "classifier" if architecture.endswith("ForSequenceClassification") else "lm")
    dtype = json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"]
    save_reference_outputs(folder, reference_outputs(model, dtype))


def save_reference_outputs(folder: Path, outputs: dict[str, Any]) -> None:
    """Write the result of [`reference_outputs`], one prompt or batch per line."""
    lines = []
    for key, value in outputs.items():
        listed = isinstance(value, list) and value
        text = "[\n    " + ",\n    ".join(map(json.dumps, value)) + "\n  ]" if listed else json.dumps(value)
        lines.append(f"  {json.dumps(key)}: {text}")
    with atomic_path(folder / FILE) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


@torch.inference_mode()
def reference_outputs(model: PreTrainedModel, dtype: str, stock: bool = False) -> dict[str, Any]:
    """Compute the reference outputs of `model`.

    Args:
        model: a language model or a classifier, in float32 and evaluation mode, on the CPU.
        dtype: of the weights in the checkpoint.
        stock: the checkpoint uses a class of transformers. These do not derive positions from the mask, and classify batches only
            with a pad token.

    Raises:
        ValueError: logits that are not finite.
    """
    config = model.config
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    with _exact_products():
        rows = [_continue(model, ids, 0 if classifies else new_tokens(config)) for ids in prompts(config)]
    largest = max(logits.abs().max().item() for _, _, logits in rows)
    if not all(logits.isfinite().all() for _, _, logits in rows):
        raise ValueError("the model's logits are not finite")
    return {
        "format": FORMAT,
        "head": "classifier" if classifies else "lm",
        "dtype": dtype,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"gpt_scratch": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__},
        "largest_logit": _rounded(largest),
        "prompts": [_prompt(ids, continuation, logits, classifies) for ids, continuation, logits in rows],
        "batches": [] if stock and classifies and config.pad_token_id is None else _batches(prompts(config), config, stock),
    }


def new_tokens(config: PreTrainedConfig) -> int:
    """Length of the continuations in tokens: four, or half of the positions."""
    return max(1, min(NEW_TOKENS, config.max_position_embeddings // 2))


def prompts(config: PreTrainedConfig) -> list[list[int]]:
    """Fixed prompts with tokens from the whole vocabulary, short enough for the continuation. They do not contain the pad token."""
    longest = max(1, config.max_position_embeddings - new_tokens(config))
    rows = [[(i * 7919 + 104729 * length) % config.vocab_size for i in range(min(length, longest))] for length in LENGTHS]
    return [[(token + (token == config.pad_token_id)) % config.vocab_size for token in row] for row in rows]


def _continue(model: PreTrainedModel, ids: list[int], count: int) -> tuple[list[int], list[int], torch.Tensor]:
    """The row, its greedy continuation of `count` tokens, and the logits of each step, (count, V), or (1, L) if `count` is 0."""
    grown, logits = list(ids), []
    for _ in range(max(count, 1)):
        row = torch.tensor([grown])
        answer = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        logits.append(answer[0, -1] if count else answer[0])
        grown.append(int(logits[-1].argmax()))
    return ids, grown[len(ids) : len(ids) + count], torch.stack(logits)


def _prompt(ids: list[int], continuation: list[int], logits: torch.Tensor, classifies: bool) -> dict[str, Any]:
    top = logits.topk(logits.shape[-1] if classifies else min(TOP, logits.shape[-1]))
    values = [[_rounded(value) for value in row] for row in top.values.tolist()]
    return {"input_ids": ids, "continuation": continuation, "top_ids": top.indices.tolist(), "top_logits": values}


def _rounded(value: float) -> float:
    return float(f"{value:.9g}")  # enough digits to represent float32 exactly


def _batches(rows: list[list[int]], config: PreTrainedConfig, stock: bool) -> list[dict[str, Any]]:
    pad = config.pad_token_id
    pad = pad if pad is not None and 0 <= pad < config.vocab_size else 0  # older Llama configurations contain -1
    width = max(map(len, rows))
    batches = []
    for side in ("right", "left"):
        ids: list[list[int]] = []
        mask: list[list[int]] = []
        positions: list[list[int]] = []
        for row in rows:
            padding = [0] * (width - len(row))
            parts = ([pad] * len(padding), row), (padding, [1] * len(row)), (padding, list(range(len(row))))
            joined = [a + b if side == "left" else b + a for a, b in parts]
            for table, line in zip((ids, mask, positions), joined):
                table.append(line)
        batches.append(
            {
                "padding": side,
                "input_ids": ids,
                "attention_mask": mask,
                "position_ids": positions if stock and side == "left" else None,
            }
        )
    return batches


@contextmanager
def _exact_products() -> Iterator[None]:
    """Disable faster but less precise matrix products, which training may have enabled."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
