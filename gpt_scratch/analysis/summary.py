"""The cost of a model, computed before anything runs: parameters, memory, FLOPs, time.

Weights, gradients and optimizer state are exact. Activations are counted, not estimated by a formula: a forward pass on fake tensors
(`FakeTensorMode`) records every tensor that autograd would save. Overhead of the allocator and of libraries is not included.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from ..configuration_gpt_scratch import GPTScratchConfig
from ..loss_gpt_scratch import CHUNK_BYTES_PER_ENTRY

PARTS = {
    "token embedding": "embed_tokens",
    "position embedding": "embed_positions",
    "attention": ".self_attn.",
    "MLP": ".mlp.",
    "norms": "norm",
    "output head": "lm_head",
    "classification head": "score",
}


def parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """Number of parameters of each part; a tied head counts as embedding."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in model.named_parameters():
        counts[next(part for part, words in PARTS.items() if words in name)] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def activation_bytes(config: GPTScratchConfig, model_class: type[PreTrainedModel], batch: int, length: int) -> int:
    """Bytes that a training forward pass saves for the backward pass, fp32, without the head and the loss."""
    kept: dict[int, int] = {}
    with FakeTensorMode():
        model = model_class(config).train()
        weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
            return tensor

        ids = torch.zeros(batch, length, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            body: Any = model.model
            output = body(input_ids=ids, use_cache=False).last_hidden_state
        kept[output.untyped_storage()._cdata] = output.untyped_storage().nbytes()
        return sum(kept.values())


def flops_per_token(model: PreTrainedModel, length: int) -> tuple[int, int]:
    """Floating-point operations per token of a forward pass, and of a training step (forward and backward), for sequences of `length`.

    Two per weight of every matrix product, and 4 T H D per layer for attention scores and weighted sums, halved because of the causal
    mask; the backward pass takes twice the forward pass (Chowdhery et al. 2022, PaLM, appendix B, which does not halve).
    """
    c = model.config
    embeddings = sum(p.numel() for name, p in model.named_parameters() if "embed_" in name)
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2) - embeddings
    if getattr(model, "lm_head", None) is not None and c.tie_word_embeddings:
        matrices += c.vocab_size * c.hidden_size
    forward = 2 * matrices + 2 * length * c.num_hidden_layers * c.num_attention_heads * c.head_dim
    return forward, 3 * forward


def summarize_model(
    model: PreTrainedModel, batch: int = 8, length: int | None = None, tokens: float | None = None, flops: float | None = None
) -> dict[str, Any]:
    """All figures as a dictionary.

    Args:
        batch, length: rows and tokens of a training batch and of the key/value cache; `length` defaults to the model's positions.
        tokens: training tokens, for the estimated time; default 20 per parameter (Hoffmann et al. 2022, Chinchilla).
        flops: sustained FLOP/s of the device, for the estimated time: its peak times the utilization.
    """
    config: Any = model.config
    length = length or config.max_position_embeddings
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    every = list(model.parameters())
    total, trained = sum(p.numel() for p in every), sum(p.numel() for p in trainable)
    forward, training = flops_per_token(model, length)
    positions = batch * length
    logits = positions * config.vocab_size * 4
    memory = {
        "weights": sum(p.numel() * p.itemsize for p in every),
        "gradients": sum(p.numel() * p.itemsize for p in trainable),
        "optimizer (AdamW)": sum(2 * p.numel() * p.itemsize for p in trainable),
        "activations": activation_bytes(config, type(model), batch, length),
    }
    if getattr(model, "lm_head", None) is not None:
        memory["logits, full loss"] = 2 * logits  # and their log-softmax, which is saved for the backward pass
        memory["logits, chunked loss"] = min(logits, CHUNK_BYTES_PER_ENTRY * config.vocab_size)
    cache = 2 * config.num_hidden_layers * positions * config.num_key_value_heads * config.head_dim * every[0].itemsize
    result: dict[str, Any] = {
        "parameters": total,
        "trainable_parameters": trained,
        "trainable_share": trained / total,
        "parameters_by_part": parameters_by_part(model),
        "batch": batch,
        "length": length,
        "training_memory_bytes": memory,
        "key_value_cache_bytes": cache,
        "forward_flops_per_token": forward,
        "training_flops_per_token": training,
    }
    if flops:
        tokens = tokens or 20 * total
        result |= {"training_tokens": int(tokens), "device_flops": flops, "training_seconds": training * tokens / flops}
    return result


def summary_table(summary: dict[str, Any]) -> str:
    """The figures as a text table."""

    def mib(count: float) -> str:
        return f"{count / 2**20:,.1f} MiB"

    total = summary["parameters"]
    rows = [(part, f"{count:,}", f"{count / total:.1%}") for part, count in summary["parameters_by_part"].items()]
    rows += [
        ("parameters", f"{total:,}", ""),
        ("trainable", f"{summary['trainable_parameters']:,}", f"{summary['trainable_share']:.1%}"),
    ]
    shape = f"{summary['batch']} x {summary['length']} tokens"
    rows += [
        (name, mib(count), shape if "logits" in name or name == "activations" else "")
        for name, count in summary["training_memory_bytes"].items()
    ]
    rows.append(("key/value cache", mib(summary["key_value_cache_bytes"]), shape))
    rows.append(("forward", f"{summary['forward_flops_per_token'] / 1e6:,.1f} MFLOP", "per token"))
    rows.append(("training", f"{summary['training_flops_per_token'] / 1e6:,.1f} MFLOP", "per token"))
    if "training_seconds" in summary:
        basis = f"{summary['training_tokens']:.3g} tokens at {summary['device_flops']:.3g} FLOP/s"
        rows.append(("training time", f"{summary['training_seconds'] / 3600:,.1f} hours", basis))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{name:<{widths[0]}}  {value:>{widths[1]}}  {note}".rstrip() for name, value, note in rows)
