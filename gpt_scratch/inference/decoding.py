"""Generation at the speed of memory: weights in fewer bytes, each read once a step.

Generating one token reads every weight and does two operations with it, so its time is bytes / bandwidth, if nothing else costs. Two things
do: matrix products of one row, which general libraries read at a third of the bandwidth (`scripts/benchmark.py ceilings`), and some twenty
calls a layer. On a CPU both are written out in `decoding.c`: [`StreamedLinear`] is its product, for any model, and a model of this package
runs all its layers there, prompts as well. Weights in bf16, 8 or 4 bits are widened on their way from memory; all arithmetic is fp32.

On a GPU the step is compiled by `torch.compile` over a static cache instead.
"""

import functools
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
from .decoding_library import GROUP, address

WEIGHTS = ("float32", "bfloat16", "int8", "int4")
ROWS_AT_ONCE = 1 << 24  # weights that are rounded at a time, so that their fp32 copies stay small


def narrowed(weight: torch.Tensor, weights: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A weight (out, in) as it is kept, and its scales.

    int8 is symmetric, one fp32 scale per output: weight = scale * q, scale = max |row| / 127. int4 has a scale and a minimum, in bf16, for
    every `GROUP` columns: weight = scale * q + minimum, scale = (max - min) / 15; two columns share a byte, 16 apart. in is a multiple
    of `GROUP`.

    Returns:
        float32, bfloat16: (out, in) and `None`; int8: (out, in), (out,); int4: uint8 (out, in / 2), (out, in / GROUP, 2).
    """
    if weights == "float32":
        return weight.float().contiguous(), None
    if weights == "bfloat16":
        return weight.bfloat16().contiguous(), None
    kept, scales = zip(*(_rounded(rows.float(), weights) for rows in weight.split(max(1, ROWS_AT_ONCE // weight.shape[1]))))
    return torch.cat(kept), torch.cat(scales)


def _rounded(rows: torch.Tensor, weights: str) -> tuple[torch.Tensor, torch.Tensor]:
    if weights == "int8":
        scale = rows.abs().amax(1).clamp(min=1e-12) / 127
        return (rows / scale[:, None]).round().to(torch.int8), scale
    groups = rows.view(len(rows), -1, GROUP)
    low, high = groups.aminmax(dim=-1)
    low = low.bfloat16()
    scale = ((high - low.float()) / 15).clamp(min=1e-12).bfloat16()
    q = ((groups - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15).to(torch.uint8)
    return (q[..., : GROUP // 2] | q[..., GROUP // 2 :] << 4).view(len(rows), -1), torch.stack((scale, low), dim=-1)


def widened(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The fp32 weight, (out, in), of what [`narrowed`] returns."""
    if scale is None:
        return weight.float()
    if weight.dtype == torch.int8:
        return weight.float() * scale[:, None]
    pairs = weight.view(*scale.shape[:2], GROUP // 2)
    q = torch.cat((pairs & 15, pairs >> 4), dim=-1)  # (out, in / GROUP, GROUP)
    return (q.float() * scale[..., :1].float() + scale[..., 1:].float()).flatten(1)


class StreamedLinear(nn.Module):
    """`nn.Linear` for inference: (..., in) -> (..., out), its weight (out, in) kept as [`narrowed`] returns it."""

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, weights: str):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.padding = -linear.in_features % GROUP  # columns of zeros
        weight = linear.weight.detach()
        weight, scale = narrowed(nn.functional.pad(weight, (0, self.padding)) if self.padding else weight, weights)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().contiguous())

    def structure(self) -> c.Linear:
        """As decoding.c takes it; its addresses hold while the buffers do."""
        size = self.in_features + self.padding
        kind = c.FORMATS[self.weight.dtype]
        return c.Linear(address(self.weight), address(self.scale), address(self.bias), size, len(self.weight), kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            weight = widened(self.weight, self.scale)[:, : self.in_features].to(x.dtype)
            return nn.functional.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))
        rows = x.reshape(-1, self.in_features).float()
        rows = nn.functional.pad(rows, (0, self.padding)) if self.padding else rows.contiguous()
        y = rows.new_empty(len(rows), self.out_features)
        c.library().linear(byref(self.structure()), address(rows), address(y), len(rows), torch.get_num_threads())
        return y.view(*x.shape[:-1], self.out_features).to(x.dtype)


def stacked(linears: list[StreamedLinear]) -> c.Linear:
    """Layers with one input as a single one, whose outputs follow each other; they keep views of its buffers."""
    for name in ("weight", "scale", "bias"):
        parts = [getattr(linear, name) for linear in linears]
        if parts[0] is not None:
            for linear, part in zip(linears, torch.cat(parts).split([len(part) for part in parts])):
                setattr(linear, name, part)
    whole = linears[0].structure()
    whole.out = sum(linear.out_features for linear in linears)
    return whole


class RoomyLayer(DynamicLayer):
    """Keys and values of a layer with room behind them: a new token is written there, and nothing is copied until the room is full.

    `room` is (2, B, K, capacity, D), `length` of its columns are taken.
    """

    supports_early_init = False

    def __init__(self) -> None:
        self.room, self.length, self.is_initialized = torch.empty(2, 0, 0, 0, 0), 0, False

    # the base class assigns them in methods that are all replaced here
    keys = property(lambda self: self.room[0, :, :, : self.length] if self.is_initialized else None)
    values = property(lambda self: self.room[1, :, :, : self.length] if self.is_initialized else None)

    def reserve(self, new: int, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Make room for `new` columns more; shape (B, K, D) is read at the first call."""
        if self.is_initialized and self.length + new <= self.room.shape[3]:
            return
        before = self.keys, self.values
        capacity = max(2 * self.room.shape[3], self.length + new + 192) + 63 & -64
        room = torch.zeros(2, *shape[:2], capacity, shape[2], dtype=dtype, device=device)
        if self.is_initialized:
            room[:, :, :, : self.length] = self.room[:, :, :, : self.length]
        self.room, self.is_initialized = room, True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        B, K, new, D = key_states.shape
        self.reserve(new, (B, K, D), key_states.dtype, key_states.device)
        self.room[0, :, :, self.length : self.length + new] = key_states
        self.room[1, :, :, self.length : self.length + new] = value_states
        self.length += new
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens: int) -> None:
        """Forget the last `-tokens`; a positive number, until 5.23, is what is left."""
        self.length = min(tokens, self.length) if tokens > 0 else self.length + tokens

    def reset(self) -> None:
        self.length = 0

    def _take(self, rows: Callable[[torch.Tensor], torch.Tensor]) -> None:
        if self.is_initialized:
            self.room = rows(self.room)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._take(lambda room: room.index_select(1, beam_idx.to(room.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._take(lambda room: room.repeat_interleave(repeats, dim=1))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._take(lambda room: room[:, indices])


class DecodingStep:
    """`forward` of a [`GPTScratchForCausalLM`] on a CPU, through `decoding.c` where nothing but logits is asked for.

    Takes the place of the model's own `forward`, which still answers everything else, with the same weights.

    Args:
        model: all of its linear layers are [`StreamedLinear`], everything else is fp32.
    """

    def __init__(self, model: GPTScratchForCausalLM):
        self.model, self.plain, config = model, model.forward, model.config
        self.layers = (c.Layer * config.num_hidden_layers)()
        self.kept: list[torch.Tensor | None] = []  # what the structures point to
        for layer, block in zip(self.layers, model.model.layers):
            attention, mlp = block.self_attn, block.mlp
            norms = block.input_layernorm, block.post_attention_layernorm
            vectors = [vector for norm in norms for vector in (norm.weight, getattr(norm, "bias", None))]
            vectors += [attention.q_norm.weight, attention.k_norm.weight] if config.qk_norm else [None, None]
            self.kept += vectors
            for (name, _), vector in zip(c.Layer._fields_, vectors):
                setattr(layer, name, address(vector))
            layer.qkv = stacked([attention.q_proj, attention.k_proj, attention.v_proj])
            layer.o, layer.down = attention.o_proj.structure(), mlp.down_proj.structure()
            layer.up = stacked([mlp.gate_proj, mlp.up_proj]) if mlp.gated else mlp.up_proj.structure()
        self.shape = config.num_key_value_heads, config.head_dim
        self.structure = c.Model(
            self.layers,
            *(config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads, *self.shape),
            *(config.mlp_type == "gated", c.ACTIVATIONS[config.hidden_act], config.norm_type == "rmsnorm"),
            *(config.sliding_window or 0, config.norm_eps, config.head_dim**-0.5),
        )
        self.turns: tuple[torch.Tensor, torch.Tensor] | None = None  # cosines and sines of the first positions, (positions, D)

    @staticmethod
    def suits(model: PreTrainedModel) -> bool:
        """Whether the layers of `model` can run there: of this package, fp32 on a CPU, an activation and sizes that decoding.c has."""
        config = model.config
        return (
            isinstance(model, GPTScratchForCausalLM)
            and model.device.type == "cpu"
            and config.hidden_act in c.ACTIVATIONS
            and config.head_dim % 2 == 0
            and not any(
                size % GROUP
                for size in (config.hidden_size, config.intermediate_size, config.num_attention_heads * config.head_dim)
            )
        )

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        cache: DynamicCache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        known = past_key_values if cache is None else cache
        unusual = (inputs_embeds, labels, num_items_in_batch), kwargs.keys() - {"cache_position"}, (past_key_values, cache)
        usual = all(x is None for x in unusual[0]) and not unusual[1] and None in unusual[2] and return_dict is not False
        if usual and input_ids is not None and known is not None and self._takes(known, attention_mask, input_ids):
            logits = self._logits(input_ids, attention_mask, position_ids, known, logits_to_keep)
            return CausalLMOutputWithPast(logits=logits, **{CACHE: known})
        return self.plain(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, labels, use_cache, logits_to_keep,
            num_items_in_batch, return_dict, cache, **kwargs,
        )  # fmt: skip

    def _takes(self, cache: Any, attention_mask: torch.Tensor | None, input_ids: torch.Tensor) -> bool:
        """Whether the keys and values are, or can be, where decoding.c finds them, and the mask is one of tokens."""
        if type(cache) is not DynamicCache:
            return False
        if attention_mask is not None and attention_mask.shape != (len(input_ids), cache.get_seq_length() + input_ids.shape[1]):
            return False
        if len(cache.layers) != len(self.layers) or type(cache.layers[0]) is not RoomyLayer:
            if any(layer.is_initialized for layer in cache.layers):
                return False
            cache.layers[:] = [RoomyLayer() for _ in self.layers]
        return self.model.config.num_hidden_layers == len(self.layers)  # early-exit decoding lowers it

    def _logits(
        self, input_ids: torch.Tensor, attention_mask: Any, position_ids: Any, cache: Any, logits_to_keep: Any
    ) -> torch.Tensor:
        B, T = input_ids.shape
        base, config, past = self.model.model, self.model.config, cache.get_seq_length()
        columns = torch.arange(past, past + T)
        if position_ids is None:
            position_ids = count_positions(columns, attention_mask)
        real = rows = None
        if attention_mask is not None and not (attention_mask != 0).all():
            real = (attention_mask != 0).to(torch.uint8)
            rows = real[:, past:].flatten().nonzero()[:, 0]  # tokens, without padding
        hidden = base.embed_tokens(input_ids)
        cosine = sine = None
        if config.position_embedding_type == "learned":
            refuse_positions_beyond(config.max_position_embeddings, position_ids)
            hidden = hidden + base.embed_positions(position_ids)
        else:
            cosine, sine = (turn.expand(B, T, -1).reshape(B * T, -1) for turn in self._turns(position_ids))
        hidden = hidden.reshape(B * T, -1)
        sequence, column = torch.arange(B).repeat_interleave(T), columns.repeat(B)
        if rows is not None:
            hidden, sequence, column = hidden[rows], sequence[rows], column[rows]
            cosine, sine = (None, None) if cosine is None else (cosine[rows], sine[rows])
        self._run(hidden, sequence, column, cosine, sine, real, cache, B, T)
        if rows is not None:
            hidden = hidden.new_zeros(B * T, hidden.shape[1]).index_copy(0, rows, hidden)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # -0: from the start
        return self.model.lm_head(base.norm(hidden.view(B, T, -1)[:, kept]))

    def _turns(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, (B or 1, T, D): rows of a table, except where they depend on the longest sequence."""
        config = self.model.config
        if config.rope_parameters["rope_type"] == "dynamic":
            cosine, sine = rotary_embedding(config, position_ids, torch.float32)
            return cosine[:, 0], sine[:, 0]
        last = int(position_ids.max())
        if self.turns is None or last >= len(self.turns[0]):
            cosine, sine = rotary_embedding(config, torch.arange(max(256, 2 * last))[None], torch.float32)
            self.turns = cosine[0, 0], sine[0, 0]
        return self.turns[0][position_ids], self.turns[1][position_ids]

    def _run(
        self, hidden: Any, sequence: Any, column: Any, cosine: Any, sine: Any, real: Any, cache: Any, B: int, T: int
    ) -> None:
        """All layers, `hidden` (rows, C) in place; keys and values join the cache."""
        layers = cache.layers
        for layer in layers:
            layer.reserve(T, (B, *self.shape), torch.float32, hidden.device)
        rooms = [layer.room for layer in layers]
        caches = (c.Cache * len(rooms))(*((room.data_ptr(), room.data_ptr() + 4 * room.stride(0)) for room in rooms))
        failed = c.library().decode(
            byref(self.structure), caches, rooms[0].shape[3], address(hidden), len(hidden), address(sequence), address(column),
            address(cosine), address(sine), address(real), 0 if real is None else real.shape[1], torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory is left for a step of decoding")
        for layer in layers:
            layer.length += T


def prepare_for_decoding(model: PreTrainedModel, weights: str = "float32") -> PreTrainedModel:
    """Replace every linear layer of `model`, in place, and run the layers of a model of this package in `decoding.c`.

    For inference only: what was there cannot be trained or saved any more. On a CPU everything else becomes fp32.

    Args:
        weights: "float32" (the same tokens), "bfloat16", "int8" or "int4" (weights only; activations and arithmetic are fp32).

    Raises:
        UserError: an unknown name; on a CPU, no C compiler.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}: choose one of {', '.join(WEIGHTS)}")
    on_cpu = model.device.type == "cpu"
    if on_cpu:
        c.library()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, StreamedLinear(child, weights))
    if on_cpu:
        for parameter in model.parameters():
            parameter.data = parameter.data.float()
        if DecodingStep.suits(model):
            model.forward = functools.wraps(model.forward)(functools.partial(DecodingStep(model)))
    return model


def generation_settings(model: PreTrainedModel, tokens: int = 0) -> dict[str, object]:
    """Settings for `generate` of a prepared model: on a GPU they make it compile the decoding step, on a CPU there are none.

    Args:
        tokens: for conversations: prompt and reply have at most `tokens` tokens. The cache then has one of a few sizes (powers of two from
            256 on), since every size is compiled for itself. Without it the cache has exactly the size of one call.
    """
    if model.device.type == "cpu":
        return {}
    settings: dict[str, object] = {"compile_config": CompileConfig(fullgraph=True, dynamic=False, mode="default")}
    settings["disable_compile"] = False
    if not tokens:
        return settings | {"cache_implementation": "static"}
    length = min(max(256, 1 << (tokens - 1).bit_length()), model.config.max_position_embeddings)
    return settings | {CACHE: StaticCache(config=model.config, max_cache_len=length)}
