"""What differs between the releases of transformers that the model runs on, 4.46 to 5.24: each name with the release beside it.

This file is copied into every saved checkpoint: it imports torch and transformers only.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

try:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError:  # before 4.48: attention is always written out
    ALL_ATTENTION_FUNCTIONS = {}
# 5.24 renamed the key/value cache in outputs, in `generate` and in every model of its own; `forward` takes both names here.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"

# What `forward` hands on to attention functions and caches without reading it. Any other argument that it does not name is refused.
HANDED_ON = {
    "cache_position",  # (T,), where a static cache writes: from `generate` before 5.4
    "cu_seq_lens_q",  # these four: where the documents of a flattened batch begin, for flash attention; position_ids say it too
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "read_index",  # and what follows: the paged cache of `generate_batch`
    "write_index",
    "block_table",
    "block_tables",
    "logits_indices",
    "logits_processor_args",
    "max_seqlen_q",
    "max_seqlen_k",
    "is_causal",
    "attention_instances",  # vLLM's attention layers
    "seq_idx",  # the document of each token, from TRL's collators; position_ids say it too
    "tokenizer",  # of stop_strings: `generate` of 5.24 leaves it among the model's arguments
}


def only_cache(past_key_values: Cache | None, cache: Cache | None, kwargs: dict[str, Any]) -> Cache | None:
    """The key/value cache by either of its names.

    Before 5.24, `generate_batch` gave the name `cache` to its paged cache, which the attention function fills: there it goes.
    """
    if cache is not None and CACHE != "cache" and "read_index" in kwargs:
        kwargs["cache"] = cache
        return past_key_values
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument: give one of them")
    return cache if past_key_values is None else past_key_values


def fixed_length(cache: Cache | None) -> int | None:
    """Number of keys in a static cache, filled or not; `None` for a cache that grows."""
    if cache is None:
        return None
    old_name = hasattr(cache, "get_max_cache_shape")  # until 5.15
    length = cache.get_max_cache_shape() if old_name else cache.get_max_length(0)
    return length if length is not None and length > 0 else None


def refuse_contradictions(
    tokens: torch.Tensor,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    others: dict[str, Any],
) -> None:
    """Refuse arguments of `forward` that nothing would use, or that cannot all be meant.

    Args:
        tokens: ids (B, T) or embeddings (B, T, C).
        others: the arguments that `forward` does not name.

    Raises:
        TypeError: an unknown name.
        ValueError: a mask of earlier tokens without the cache that holds them; document bounds without positions; attention that is
            not causal.
    """
    unknown = others.keys() - HANDED_ON - {"cache"}
    if unknown:
        raise TypeError(f"forward() knows no argument {', '.join(sorted(unknown))}: nothing here would use it")
    T = tokens.shape[1]
    if past_key_values is None and "cache" not in others and attention_mask is not None and attention_mask.shape[-1] != T:
        raise ValueError(
            f"attention_mask speaks of {attention_mask.shape[-1]} tokens, but {T} are given and no cache holds the others"
        )
    for name in ("cu_seq_lens_q", "seq_idx"):
        if others.get(name) is not None and position_ids is None:
            raise ValueError(f"{name} is given without position_ids, which say where documents begin for every attention")
    if others.get("is_causal") is False and (attention_mask is None or attention_mask.ndim == 2):
        raise ValueError("is_causal is False: this model attends to earlier tokens only, unless a prepared mask says otherwise")


__all__ = ["ALL_ATTENTION_FUNCTIONS", "CACHE", "HANDED_ON", "fixed_length", "only_cache", "refuse_contradictions"]
