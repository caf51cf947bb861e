"""Memory-bound generation: the layers of the model as one call of C.

Generating a token reads every weight once for two operations, so the minimum time is bytes / bandwidth. Besides matrix products, which
[`StreamedLinear`] replaces in any model, some twenty calls of PyTorch per layer cost more than that. On a CPU, [`DecodingStep`] runs all
layers of a model of this package in `decoding.c`, for prompts, too.

On a GPU, `torch.compile` compiles the decoding step with a static cache instead.
"""

import functools
import sys
from collections.abc import Callable
from ctypes import byref
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.generation import CompileConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..errors import UserError
from ..modeling_gpt_scratch import GPTScratchForCausalLM, rotary_embedding
from ..positions_gpt_scratch import count_positions, refuse_positions_beyond
from ..releases_gpt_scratch import CACHE
from . import decoding_library as c
from .decoding_library import GROUP, address, has_compiler, library
from .loading import return_memory
from .streamed_linear import WEIGHTS, StreamedLinear, WeightMemory, loaded_library, one_torch_thread, threads_of_c

FREE_COLUMNS = 192  # minimum number of new tokens for which a cache has space


# ---------------------------------------------------------------------------------------------------------- keys and values


class PreallocatedLayer(DynamicLayer):
    """Keys and values of a layer with free space for later tokens, so that a step copies only its own.

    `memory` is (2, B, K, capacity, D): keys and values; the first `length` columns are in use, the others are finite.
    """

    supports_early_init = False

    def __init__(self) -> None:
        self.memory, self.length, self.is_initialized = torch.empty(2, 0, 0, 0, 0), 0, False

    # read-only: every method of the base class that would assign them is replaced here
    keys = property(lambda self: self.memory[0, :, :, : self.length] if self.is_initialized else None)
    values = property(lambda self: self.memory[1, :, :, : self.length] if self.is_initialized else None)

    def reserve(self, new: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Allocate space for `new` more columns; shape (B, K, D)."""
        if self.is_initialized and self.length + new <= self.memory.shape[3]:
            return
        capacity = max(2 * self.memory.shape[3], self.length + new + FREE_COLUMNS)
        memory = torch.zeros(2, *shape[:2], -(-capacity // 64) * 64, shape[2], dtype=dtype, device=device)
        if self.is_initialized:
            memory[:, :, :, : self.length] = self.memory[:, :, :, : self.length]
        self.memory, self.is_initialized = memory, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        B, K, new, D = key_states.shape
        self.reserve(new, (B, K, D), key_states.dtype, key_states.device)
        end = self.length + new
        self.memory[0, :, :, self.length : end] = key_states
        self.memory[1, :, :, self.length : end] = value_states
        self.length = end
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last -tokens_to_remove tokens; until 5.23, a positive number is the remaining length."""
        self.length = max(0, self.length + tokens_to_remove) if tokens_to_remove <= 0 else min(tokens_to_remove, self.length)

    def reset(self) -> None:
        self.memory, self.length, self.is_initialized = torch.empty(2, 0, 0, 0, 0), 0, False

    def _replace_rows(self, select: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.is_initialized:
            self.memory = select(self.memory)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._replace_rows(lambda memory: memory.index_select(1, beam_idx.to(memory.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace_rows(lambda memory: memory.repeat_interleave(repeats, dim=1))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._replace_rows(lambda memory: memory[:, indices].contiguous())


# ----------------------------------------------------------------------------------------------------- all layers of this model


class DecodingStep:
    """`forward` of a [`GPTScratchForCausalLM`] on a CPU: the layers run in `decoding.c` if only logits and a dynamic cache are needed.

    Any other call, for example with labels or without a cache, uses the model's own `forward` with the same weights. Hooks of the layers
    are called only there.

    Args:
        model: [`supports`] it.
        memory: for the weights.
    """

    def __init__(self, model: GPTScratchForCausalLM, memory: WeightMemory):
        self.model: Any = model
        self.plain: Any = model.forward
        config: Any = model.config
        blocks: Any = model.model.layers
        self.layers = (c.Layer * config.num_hidden_layers)()
        for layer, block in zip(self.layers, blocks):
            attention, mlp = block.self_attn, block.mlp
            norms = block.input_layernorm, block.post_attention_layernorm
            vectors = [vector for norm in norms for vector in (norm.weight, getattr(norm, "bias", None))]
            vectors += [attention.q_norm.weight, attention.k_norm.weight] if config.qk_norm else [None, None]
            for (name, *_), vector in zip(c.Layer._fields_, vectors):
                setattr(layer, name, address(vector))
            layer.qkv = memory.stack([attention.q_proj, attention.k_proj, attention.v_proj])
            layer.o = memory.stack([attention.o_proj])
            layer.up = memory.stack([mlp.gate_proj, mlp.up_proj] if mlp.gated else [mlp.up_proj])
            layer.down = memory.stack([mlp.down_proj])
        self.shape = config.num_key_value_heads, config.head_dim
        self.structure = c.Model(
            self.layers,
            *(config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads, *self.shape),
            *(config.mlp_type == "gated", c.ACTIVATIONS[config.hidden_act], config.norm_type == "rmsnorm"),
            *(config.sliding_window or 0, config.norm_eps, config.head_dim**-0.5),
        )
        # The structures contain addresses: the tensors must live as long as they do, even if the model's are replaced (`model.to`).
        self.tensors = [*blocks.parameters(), *blocks.buffers()]
        self.rotary_table: tuple[torch.Tensor, torch.Tensor] | None = (
            None  # cosines and sines of the first positions, (positions, D)
        )

    @staticmethod
    def supports(model: PreTrainedModel) -> bool:
        """Whether decoding.c can run the layers of `model`, whose linear layers have been replaced.

        It needs a model of this package without adapters, in fp32 on a CPU, one of its activations, an even head dimension, and sizes that
        are multiples of `GROUP`.
        """
        if type(model) is not GPTScratchForCausalLM or model.device.type != "cpu":
            return False
        linears = (module for name, module in model.model.layers.named_modules() if name.endswith("_proj"))
        return all(type(linear) is StreamedLinear for linear in linears) and _supports_architecture(model.config)

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        cache: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        known = past_key_values if cache is None else cache
        others = inputs_embeds, labels, num_items_in_batch, *kwargs.values(), past_key_values if cache is not None else None
        config = self.model.config
        only_logits = not (config.output_attentions or config.output_hidden_states) and all(value is None for value in others)
        if (
            only_logits
            and (config.use_cache if use_cache is None else use_cache)
            and self._fits(input_ids, attention_mask, known)
        ):
            logits = self._logits(input_ids, attention_mask, position_ids, known, logits_to_keep)
            return self.model.as_asked(CausalLMOutputWithPast(logits=logits, **{CACHE: known}), return_dict)
        return self.plain(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, use_cache, logits_to_keep,
            num_items_in_batch, return_dict, cache, **kwargs,
        )  # fmt: skip

    def _fits(self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, cache: Any) -> bool:
        """Whether decoding.c can compute this call: token ids, a mask of tokens, and a cache that is empty or [`PreallocatedLayer`]s.

        Sizes that do not match are left to PyTorch, which reports them; C would access memory that it does not own.
        """
        if input_ids is None or input_ids.ndim != 2 or type(cache) is not DynamicCache or self.model.training:
            return False
        B, T = input_ids.shape
        if attention_mask is not None and attention_mask.shape != (B, cache.get_seq_length() + T):
            return False
        embedding = self.model.model.embed_tokens.weight
        if input_ids.device.type != "cpu" or embedding.device.type != "cpu" or embedding.dtype != torch.float32:
            return False
        if not any(layer.is_initialized for layer in cache.layers):
            cache.layers[:] = [PreallocatedLayer() for _ in self.layers]
        layers = cache.layers
        return (
            self.model.config.num_hidden_layers
            == len(layers)
            == len(self.layers)  # early-exit assisted decoding lowers it temporarily
            and all(type(layer) is PreallocatedLayer and layer.length == layers[0].length for layer in layers)
            and all(
                layer.memory.dtype == torch.float32
                and layer.memory.is_contiguous()
                and (layer.memory.shape[1:3] + layer.memory.shape[4:] == (B, *self.shape))
                and layer.memory.shape == layers[0].memory.shape
                for layer in layers
                if layer.is_initialized
            )
        )

    def _logits(
        self, input_ids: Any, attention_mask: Any, position_ids: Any, cache: Any, logits_to_keep: int | torch.Tensor
    ) -> torch.Tensor:
        """The arguments of `forward` -> logits (B, T or fewer, V); keys and values are added to the cache."""
        B, T = input_ids.shape
        base, config, past = self.model.model, self.model.config, cache.get_seq_length()
        columns = torch.arange(past, past + T)
        if position_ids is None:
            position_ids = count_positions(columns, attention_mask)
        hidden = base.embed_tokens(input_ids)
        cosine = sine = None
        if config.position_embedding_type == "learned":
            refuse_positions_beyond(config.max_position_embeddings, position_ids)
            hidden = hidden + base.embed_positions(position_ids)
        else:
            cosine, sine = (table.expand(B, T, -1).reshape(B * T, -1) for table in self._rotary(position_ids))
        hidden, sequence, column = hidden.reshape(B * T, -1), torch.arange(B).repeat_interleave(T), columns.repeat(B)
        if attention_mask is None or (attention_mask != 0).all():
            self._run(hidden, sequence, column, cosine, sine, None, cache, B, T)
        else:  # without the rows of padding
            real = (attention_mask != 0).to(torch.uint8).contiguous()
            rows = real[:, past:].flatten().nonzero()[:, 0]
            tokens = hidden[rows]
            cosine, sine = (None if table is None else table[rows] for table in (cosine, sine))
            self._run(tokens, sequence[rows], column[rows], cosine, sine, real, cache, B, T)
            hidden = torch.zeros_like(hidden).index_copy(0, rows, tokens)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # -0: from the start
        return self.model.lm_head(base.norm(hidden.view(B, T, -1)[:, kept]))

    def _rotary(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (B or 1, T, D), from a table, unless they depend on the longest sequence of the call."""
        config = self.model.config
        first, last = (int(position) for position in position_ids.aminmax())
        if config.rope_parameters["rope_type"] == "dynamic" or first < 0:
            cosine, sine = rotary_embedding(config, position_ids, torch.float32)
            return cosine[:, 0], sine[:, 0]
        if self.rotary_table is None or last >= len(self.rotary_table[0]):
            cosine, sine = rotary_embedding(config, torch.arange(max(256, 2 * last))[None], torch.float32)
            self.rotary_table = cosine[0, 0], sine[0, 0]
        return self.rotary_table[0][position_ids], self.rotary_table[1][position_ids]

    def _run(
        self, hidden: Any, sequence: Any, column: Any, cosine: Any, sine: Any, real: Any, cache: Any, B: int, T: int
    ) -> None:
        """All layers, hidden (rows, C) in place; keys and values are added to the cache."""
        layers = cache.layers
        for layer in layers:
            layer.reserve(T, (B, *self.shape), torch.float32, hidden.device)
        memories = [layer.memory for layer in layers]
        caches = (c.Cache * len(memories))(*(c.Cache(address(memory[0]), address(memory[1])) for memory in memories))
        failed = loaded_library().gpt_scratch_decode(
            byref(self.structure), caches, memories[0].shape[3], address(hidden), len(hidden), address(sequence), address(column),
            address(cosine), address(sine), address(real), 0 if real is None else real.shape[1], threads_of_c(),
        )  # fmt: skip
        if failed:
            raise MemoryError("not enough memory for a decoding step")
        for layer in layers:
            layer.length += T


def _supports_architecture(config: Any) -> bool:
    sizes = config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim
    return config.hidden_act in c.ACTIVATIONS and config.head_dim % 2 == 0 and not any(size % GROUP for size in sizes)


# ------------------------------------------------------------------------------------------------------------------------ for users


def default_weights(model: PreTrainedModel) -> str | None:
    """The format for [`prepare_for_decoding`] that keeps the weights of `model`: "bfloat16" if they are, else "float32".

    `None` if the model would not run in `decoding.c`: it is not on a CPU or not of this package, it has adapters or an architecture that
    [`DecodingStep`] does not support, or there is no C compiler.
    """
    if type(model) is not GPTScratchForCausalLM or model.device.type != "cpu" or not _supports_architecture(model.config):
        return None
    if (
        not all(type(module) is nn.Linear for name, module in model.named_modules() if name.endswith("_proj"))
        or not has_compiler()
    ):
        return None
    return "bfloat16" if model.dtype is torch.bfloat16 else "float32"


def prepare_as_asked(model: PreTrainedModel, weights: str | None) -> bool:
    """[`prepare_for_decoding`] with the format of the flag `--weights`: "auto" is [`default_weights`], "none" leaves `model` unchanged.

    Prints the format that was chosen, on standard error. Returns whether the model was prepared.
    """
    if weights == "auto":
        weights = default_weights(model)
        if weights is not None and library() is not None:
            print(f"generating in C with {weights} weights; --weights none uses PyTorch", file=sys.stderr)
    if weights in (None, "none"):
        return False
    prepare_for_decoding(model, weights)
    return model.device.type != "cpu" or library() is not None


def prepare_for_decoding(model: PreTrainedModel, weights: str = "float32") -> PreTrainedModel:
    """Replace every linear layer of `model` in place, and run the layers of a model of this package in `decoding.c` on a CPU.

    For inference only: the model cannot be trained, saved, copied or moved afterwards. On a CPU, all other parameters become fp32. Without
    a C compiler, one line on standard error says so, and the model is unchanged.

    Args:
        weights: "float32" (same tokens), "bfloat16" or "int8" (weights only; activations and arithmetic are fp32), or "int4" (except
            in prompts, inputs of its products are rounded to 8 bits).

    Raises:
        UserError: an unknown name.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}: choose one of {', '.join(WEIGHTS)}")
    on_cpu = model.device.type == "cpu"
    if on_cpu and library() is None:
        return model
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = weights == "float32" and head is not None and head.weight is embedding.weight
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, StreamedLinear(child, weights))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        if on_cpu:
            parameter.data = parameter.data.float()
    if on_cpu:
        _use_c(model)
        if tied and not (head := model.get_output_embeddings()).padding:
            embedding.weight.data = head.weight
        return_memory()  # of the previous weights
    return model


def _use_c(model: Any) -> None:
    """Move the weights of all [`StreamedLinear`] to [`WeightMemory`], and run all layers in decoding.c, if it can."""
    linears = [module for module in model.modules() if type(module) is StreamedLinear]
    memory = WeightMemory.of(linears)
    if DecodingStep.supports(model):
        model.forward = functools.wraps(model.forward)(functools.partial(DecodingStep(model, memory)))
        model.generate = functools.wraps(model.generate)(one_torch_thread()(model.generate))
        linears = [model.lm_head]
    for linear in linears:
        memory.stack([linear])


def generation_settings(model: PreTrainedModel, tokens: int = 0) -> dict[str, object]:
    """Settings for `generate` of a prepared model: on a GPU they compile the decoding step, on a CPU there are none.

    Args:
        tokens: for conversations with at most `tokens` tokens in prompt and reply. The cache size is then rounded up to a power of two, at
            least 256, since each size is compiled separately. With 0, the cache has the exact size of the call.
    """
    if model.device.type == "cpu":
        return {}
    settings: dict[str, object] = {"compile_config": CompileConfig(fullgraph=True, dynamic=False, mode="default")}
    settings["disable_compile"] = False
    if not tokens:
        return settings | {"cache_implementation": "static"}
    length = min(max(256, 1 << (tokens - 1).bit_length()), model.config.max_position_embeddings)
    return settings | {CACHE: StaticCache(config=model.config, max_cache_len=length)}
