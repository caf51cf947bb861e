"""Compatibility with transformers 4.46 to 5.24: everything that differs between releases, with the release that changed it.

This file is copied into every saved checkpoint, so it imports only torch and transformers.
"""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from transformers import __version__ as transformers_version
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import PreTrainedModel

try:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError:  # before 4.48: always eager attention
    ALL_ATTENTION_FUNCTIONS = {}
# 5.24 renamed the key/value cache in outputs, in `generate` and in its own models; `forward` accepts both names here.
CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"
# The argument of `Cache.get_mask_sizes`: the number of new tokens, or until 5.3 their columns.
MASK_SIZES_BY_LENGTH = "query_length" in inspect.signature(getattr(Cache, "get_mask_sizes", Cache.__init__)).parameters

# Arguments that `forward` passes on to attention functions and caches. Any other unknown argument is an error.
HANDED_ON = {
    "cache_position",  # (T,), where a static cache writes: from `generate` before 5.4
    "cu_seq_lens_q",  # these four: document boundaries of a flattened batch, for flash attention; position_ids contain them, too
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "read_index",  # this and the following: the paged cache of `generate_batch`
    "write_index",
    "block_table",
    "block_tables",
    "logits_indices",
    "logits_processor_args",
    "max_seqlen_q",
    "max_seqlen_k",
    "is_causal",
    "attention_instances",  # vLLM's attention layers
    "seq_idx",  # the document of each token, from TRL's collators; position_ids contain it, too
    "tokenizer",  # for stop_strings: `generate` of 5.24 does not remove it from the model's arguments
}


class AnyRelease:
    """Mixin with the methods that make loading and saving work the same on every release; list it before `PreTrainedModel`."""

    # read by transformers 4 only
    _supports_cache_class = _supports_static_cache = _supports_quantized_cache = _supports_flash_attn_2 = True

    def get_input_embeddings(self) -> torch.nn.Module:
        base: Any = getattr(self, "model", self)
        return base.embed_tokens

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        base: Any = getattr(self, "model", self)
        base.embed_tokens = value

    def get_output_embeddings(self) -> torch.nn.Module | None:
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, new_embeddings: torch.nn.Module) -> None:
        self.lm_head = new_embeddings

    def as_asked(self, outputs: Any, return_dict: bool | None) -> Any:
        """The outputs, or a tuple of them if `return_dict`, or by default the configuration, is false."""
        wanted = self.config.return_dict if return_dict is None else return_dict  # type: ignore[attr-defined]
        return outputs if wanted else outputs.to_tuple()

    def save_pretrained(self, save_directory, **kwargs: Any) -> None:
        """As in transformers, but always with the model's own weight names, even if the weights were loaded with a key mapping."""
        if "save_original_format" in inspect.signature(PreTrainedModel.save_pretrained).parameters:  # from 5.0 on
            kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, **kwargs)  # type: ignore[misc]

    def tie_weights(self, *args: Any, missing_keys: set[str] | None = None, **kwargs: Any) -> None:
        """As in transformers, with a fix for 5.3.0, which does not report the tied head of a model with remote code as missing."""
        if missing_keys is not None:  # passed from 5.0 on, after loading
            for name, source in getattr(self, "all_tied_weights_keys", {}).items():
                if self.get_parameter(name).is_meta and not self.get_parameter(source).is_meta:  # type: ignore[attr-defined]
                    missing_keys.add(name)
            kwargs["missing_keys"] = missing_keys
        super().tie_weights(*args, **kwargs)  # type: ignore[misc]


def attention_function(implementation: str | None, eager: Callable) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    """The attention function of this name: `eager`, or one of transformers' `ALL_ATTENTION_FUNCTIONS`."""
    return eager if implementation in ("eager", None) or not ALL_ATTENTION_FUNCTIONS else ALL_ATTENTION_FUNCTIONS[implementation]


def refuse_lost_tokens(inputs: dict[str, Any], input_ids: torch.Tensor) -> None:
    """Refuse a step of `generate` whose `inputs` for `forward` lack tokens of `input_ids` (B, T) that are not in the cache either.

    Raises:
        ValueError: this release passes the cache under a name that the model does not know.
    """
    cache, new = inputs.get("past_key_values", inputs.get("cache")), inputs.get("input_ids")
    cached = 0 if cache is None else cache.get_seq_length()
    if new is not None and isinstance(cached, int) and cached + new.shape[1] < input_ids.shape[1]:  # a tensor: a static cache
        raise ValueError(
            f"generate() continues with {new.shape[1]} of {input_ids.shape[1]} tokens, but the cache holds {cached} of the others: "
            f"transformers {transformers_version} and this model do not agree about the cache"
        )


def only_cache(past_key_values: Cache | None, cache: Cache | None, kwargs: dict[str, Any]) -> Cache | None:
    """The key/value cache, passed under either name.

    Before 5.24, `generate_batch` passed its paged cache as `cache`. The attention function fills that cache, so it stays in `kwargs`.
    """
    if cache is not None and CACHE != "cache" and "read_index" in kwargs:
        kwargs["cache"] = cache
        return past_key_values
    if past_key_values is not None and cache is not None:
        raise ValueError("past_key_values and cache are two names of one argument: give one of them")
    return cache if past_key_values is None else past_key_values


def fixed_length(cache: Cache | None) -> int | None:
    """Capacity of a static cache in tokens; `None` for a dynamic cache."""
    if cache is None:
        return None
    old_name = hasattr(cache, "get_max_cache_shape")  # until 5.15
    length = cache.get_max_cache_shape() if old_name else cache.get_max_length(0)
    return length if length is not None and length > 0 else None


def keys_within(cache: Cache, columns: torch.Tensor) -> tuple[int, int]:
    """The number of keys after tokens at `columns` (T,) have been added to `cache`, and the column of the first key.

    From 4.56 on, `generate` creates a cache that drops keys before the sliding window. Earlier releases keep all keys.
    """
    if not hasattr(cache, "get_mask_sizes"):  # until 4.52
        longest = fixed_length(cache)
        return (int(columns[-1]) + 1 if longest is None else longest), 0
    return cache.get_mask_sizes(len(columns) if MASK_SIZES_BY_LENGTH else columns, 0)  # type: ignore[arg-type]


def scaled_rotary_frequencies(config, position_ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Rotary frequencies, fp32, (D/2,), and the factor of cosines and sines, for a scaled `rope_type`, computed by transformers.

    "dynamic" depends on the longest sequence of the call, which is derived from `position_ids` (B, T).
    """
    rope = config.rope_parameters
    original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
    read = SimpleNamespace(  # the attributes that transformers reads: rope_theta and rope_scaling until 4.57
        rope_parameters=rope,
        rope_scaling=rope,
        rope_theta=rope["rope_theta"],
        head_dim=config.head_dim,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        partial_rotary_factor=1.0,
        # the original length of yarn, which 4.46 reads under this name
        max_position_embeddings=original if rope["rope_type"] == "yarn" else config.max_position_embeddings,
        standardize_rope_params=lambda: None,
    )
    longest = position_ids.max() + 1 if rope["rope_type"] == "dynamic" else None
    return ROPE_INIT_FUNCTIONS[rope["rope_type"]](read, position_ids.device, seq_len=longest)


def refuse_contradictions(
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    past_key_values: Cache | None,
    others: dict[str, Any],
) -> None:
    """Refuse arguments of `forward` that would be ignored or contradict each other.

    Args:
        input_ids: (B, T), or `inputs_embeds` (B, T, C).
        others: the keyword arguments of `forward`.

    Raises:
        TypeError: an unknown argument.
        ValueError: both or neither of the first two; a mask that covers earlier tokens without a cache; document boundaries without
            position_ids; attention that is not causal.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise ValueError("give exactly one of input_ids and inputs_embeds")
    unknown = others.keys() - HANDED_ON - {"cache"}
    if unknown:
        raise TypeError(f"forward() got an unexpected argument {', '.join(sorted(unknown))}: the model would not use it")
    T = (input_ids if inputs_embeds is None else inputs_embeds).shape[1]  # type: ignore[union-attr]
    if past_key_values is None and "cache" not in others and attention_mask is not None and attention_mask.shape[-1] != T:
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[-1]} tokens, but {T} are given and no cache holds the others"
        )
    for name in ("cu_seq_lens_q", "seq_idx"):
        if others.get(name) is not None and position_ids is None:
            raise ValueError(f"{name} is given without position_ids, which mark where documents begin for every attention")
    if others.get("is_causal") is False and (attention_mask is None or attention_mask.ndim == 2):
        raise ValueError("is_causal is False: this model attends to earlier tokens only, unless a prepared mask says otherwise")


__all__ = [
    "CACHE",
    "HANDED_ON",
    "AnyRelease",
    "attention_function",
    "fixed_length",
    "keys_within",
    "only_cache",
    "refuse_contradictions",
    "refuse_lost_tokens",
    "scaled_rotary_frequencies",
]
