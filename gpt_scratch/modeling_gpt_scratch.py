"""A GPT, written by hand: one readable file that covers GPT-2 and the Llama family.

Read it top to bottom: norms, rotary positions, attention, MLP, block, base model, then the two heads. The mathematics is here; key/value
caches, fused attention kernels, `generate` and checkpoint loading come from transformers. Position ids count real tokens only, so padding
on either side changes nothing, and documents packed into one row do not attend to each other: see `positions_gpt_scratch.py`.

Sources: GPT-2 (Radford et al. 2019; OpenAI `gpt-2/src/model.py`), Llama (Touvron et al. 2023), rotary positions (Su et al. 2021,
arXiv:2104.09864), RMSNorm (Zhang & Sennrich 2019, arXiv:1910.07467), grouped-query attention (Ainslie et al. 2023, arXiv:2305.13245),
gated MLPs (Shazeer 2020, arXiv:2002.05202), sliding windows (Jiang et al. 2023, arXiv:2310.06825).

Shapes: B batch, T tokens of this call, S tokens seen so far (cache included), C hidden_size, H query heads, K key/value heads,
D head_dim, I intermediate_size, V vocab_size, L num_labels.

This file is copied into every saved checkpoint, so it imports only torch, transformers and the files beside it (`from .name import x`).
"""

# mypy: no-strict-optional
# (optional settings are filled in when the configuration is built; their types still include None)

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from .configuration_gpt_scratch import GPTScratchConfig
from .loss_gpt_scratch import chunked_language_modeling_loss, classification_loss, language_modeling_loss, problem_type_of
from .positions_gpt_scratch import last_real_token, mask_and_positions, real_span, refuse_positions_beyond
from .recomputation_gpt_scratch import recomputed
from .releases_gpt_scratch import (
    CACHE,
    AnyRelease,
    attention_function,
    only_cache,
    refuse_contradictions,
    refuse_lost_tokens,
    scaled_rotary_frequencies,
)


class GPTScratchLayerNorm(nn.Module):
    """Layer normalization (Ba et al. 2016): over the last axis, biased variance, scale and shift. (..., C) -> (..., C)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # (x - mean) / sqrt(variance + eps) * weight + bias, in one kernel that computes the statistics in fp32
        return nn.functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class GPTScratchRMSNorm(nn.Module):
    """Root-mean-square normalization: no mean, no shift; computed in fp32 as Llama does. (..., C) -> (..., C)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x32 = x.float()
        normed = x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


NORMS: dict[str, type[nn.Module]] = {"layernorm": GPTScratchLayerNorm, "rmsnorm": GPTScratchRMSNorm}


def rotary_embedding(config, position_ids: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the positions, each (B, 1, T, D), to be broadcast over the heads.

    Pair i of a head is rotated by theta^(-2i/D) radians per position (Su et al. 2021, section 3.2.2). The scaled types for longer
    contexts come from transformers. The table is computed in each call: a buffer would stay uninitialized after loading on the meta
    device. The angles are always fp32, because bf16 cannot represent both position 1000 and 1001.
    """
    if config.rope_parameters["rope_type"] == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=position_ids.device) / config.head_dim
        frequencies, scale = 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0  # (D/2,)
    else:
        frequencies, scale = scaled_rotary_frequencies(config, position_ids)
    angles = position_ids[:, None, :, None].float() * frequencies  # (B, T) -> (B, 1, T, D/2)
    angles = torch.cat((angles, angles), dim=-1)
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pair (i, i + D/2) of each head by its angle: the "half split" layout of Llama checkpoints on the Hub.

    x (B, heads, T, D) -> the same shape.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def eager_attention_forward(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask, scaling, dropout=0.0, **kwargs
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out: softmax(Q K^T * scaling + mask) V (Vaswani et al. 2017, equation 1).

    query (B, H, T, D), key and value (B, K, S, D), boolean or additive mask (B, 1, T, S), `None` for causal attention -> output
    (B, T, H, D), weights (B, H, T, S). Each key/value head is shared by H/K consecutive query heads. The softmax runs in fp32.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, T, S)
    if attention_mask is None:  # query t of the last T tokens attends to the keys up to its own position
        T, S = scores.shape[-2:]
        attention_mask = torch.ones(T, S, dtype=torch.bool, device=scores.device).tril(S - T)
    if attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)  # not -inf: a padding row may be fully masked
    else:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, H, T, D) -> (B, T, H, D)


class GPTScratchAttention(nn.Module):
    """Causal multi-head self-attention with optional grouped key/value heads and rotary positions.

    Any function of `ALL_ATTENTION_FUNCTIONS` can compute it. `set_attn_implementation` works only if transformers finds the text
    `ALL_ATTENTION_FUNCTIONS.get_interface(` or `ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]` in this file.
    """

    def __init__(self, config: GPTScratchConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        query_size, key_value_size = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.o_bias)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = GPTScratchRMSNorm(self.head_dim, eps=config.norm_eps)
            self.k_norm = GPTScratchRMSNorm(self.head_dim, eps=config.norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask=None, position_embeddings=None, past_key_values=None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) -> (B, T, C), and the weights if the attention function returns them; cosines and sines (B, 1, T, D)."""
        B, T, _ = hidden_states.shape
        # (B, T, heads * D) -> (B, heads, T, D); a view, nothing is copied
        query = self.q_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        key = self.k_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        value = self.v_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        if position_embeddings is not None:
            cos, sin = position_embeddings
            query, key = apply_rotary(query, cos, sin), apply_rotary(key, cos, sin)
        if past_key_values is not None:
            # kwargs as one object: a static cache reads cache_position from it, a paged cache modifies its settings
            key, value = past_key_values.update(key, value, self.layer_idx, kwargs)  # (B, K, S, D)
        attend = attention_function(self.config._attn_implementation, eager_attention_forward)
        kwargs |= {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling}
        kwargs |= {"sliding_window": self.config.sliding_window}  # for flash attention; for the others the mask contains it
        output, weights = attend(self, query, key, value, attention_mask, **kwargs)
        return self.o_proj(output.reshape(B, T, -1)), weights  # (B, T, H, D) -> (B, T, C)


class GPTScratchMLP(nn.Module):
    """plain: down(act(up(x))), as in GPT-2. gated: down(act(gate(x)) * up(x)), as in Llama. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTScratchConfig):
        super().__init__()
        self.gated = config.mlp_type == "gated"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        # GPT-2's GELU, 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), in one kernel; transformers' "gelu_new" needs seven
        self.act_fn = ACT2FN["gelu_pytorch_tanh" if config.hidden_act == "gelu_new" else config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = (self.gate_proj(x), self.up_proj(x)) if self.gated else (self.up_proj(x),)
        activated = self._activate(*wide)
        with recomputed(activated, self._activate, *wide):
            return self.down_proj(activated)

    def _activate(self, x: torch.Tensor, up: torch.Tensor | None = None) -> torch.Tensor:
        activated = self.act_fn(x)
        if up is None:
            return activated
        with recomputed(activated, self.act_fn, x, others=(up,)):
            return activated * up


class GPTScratchBlock(nn.Module):
    """One layer: x + attention(norm(x)), then x + mlp(norm(x)) (pre-norm, GPT-2 section 2.3)."""

    def __init__(self, config: GPTScratchConfig, layer_idx: int):
        super().__init__()
        norm = NORMS[config.norm_type]
        self.input_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.self_attn = GPTScratchAttention(config, layer_idx)
        self.post_attention_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GPTScratchMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)
        # The outputs of these two are summed in the residual stream over all layers: see _init_weights.
        self.self_attn.o_proj.adds_to_residual = self.mlp.down_proj.adds_to_residual = True  # type: ignore[assignment]

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) -> (B, T, C), and the attention weights (B, H, T, S) if the attention function returns them."""
        attention_output, weights = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attention_output)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states))), weights


class GPTScratchPreTrainedModel(AnyRelease, PreTrainedModel):
    """Base class of the model and both heads: weight initialization and the features declared to transformers."""

    config_class = GPTScratchConfig
    config: GPTScratchConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["GPTScratchBlock"]
    _skip_keys_device_placement = ["past_key_values", "cache"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = _can_compile_fullgraph = True

    def __init__(self, config: GPTScratchConfig):
        config.validate_architecture()  # again: from_pretrained(..., hidden_act="...") changes it after it was built
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize the parameters of one module.

        "gpt2" is OpenAI's, normal with standard deviation 0.02: "We scale the weights of residual layers at initialization by a factor
        of 1/sqrt(N) where N is the number of residual layers" (Radford et al. 2019, section 2.3), N = 2 layers. "gpt2_zero" sets these
        to zero. "pytorch" is the default of nn.Linear and nn.Embedding.
        """
        init = nn.init  # looked up here: transformers patches these functions to skip loaded weights
        if isinstance(module, nn.Linear | nn.Embedding) and self.config.initialization == "pytorch":
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            std = self.config.initializer_range
            if getattr(module, "adds_to_residual", False):
                std *= 0 if self.config.initialization == "gpt2_zero" else (2 * self.config.num_hidden_layers) ** -0.5
            init.normal_(module.weight, mean=0.0, std=std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, GPTScratchLayerNorm | GPTScratchRMSNorm):
            init.ones_(module.weight)
            if isinstance(module, GPTScratchLayerNorm):
                init.zeros_(module.bias)


class GPTScratchModel(GPTScratchPreTrainedModel):
    """The base model without a head: embeddings, blocks and the final norm; token ids in, hidden states out."""

    def __init__(self, config: GPTScratchConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(GPTScratchBlock(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = NORMS[config.norm_type](config.hidden_size, eps=config.norm_eps)
        self.gradient_checkpointing = False  # set by transformers, together with _gradient_checkpointing_func
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast | tuple:
        r"""
        input_ids (`torch.LongTensor`, (B, T)): token ids; or pass `inputs_embeds` (B, T, C) instead.
        attention_mask (`torch.Tensor`, (B, S) or a prepared (B, 1, T, S)): 1 for tokens, 0 for padding, on either side.
        position_ids (`torch.LongTensor`, (B, T) or (1, T)): by default the number of real tokens before each one. Without a cache, a new
            document starts where they restart or jump; it does not attend to the previous one.
        past_key_values (`Cache`): keys and values of earlier calls, updated in place. Transformers 5.24 calls it `cache`.

        Returns last_hidden_state (B, T, C), the cache, and optionally hidden_states and attentions (eager only).

        Raises `ValueError` for contradictory arguments, and for sequences longer than `max_position_embeddings` if positions are
        learned; `TypeError` for an unknown argument.
        """
        past_key_values = only_cache(past_key_values, cache, kwargs)
        output_attentions = self.config.output_attentions if output_attentions is None else output_attentions
        output_hidden_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        checkpointing = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and not checkpointing
        refuse_contradictions(input_ids, inputs_embeds, attention_mask, position_ids, past_key_values, kwargs)

        implementation, tokens = self.config._attn_implementation, input_ids if inputs_embeds is None else inputs_embeds
        mask, position_ids = mask_and_positions(
            tokens, attention_mask, position_ids, past_key_values, implementation, self.config.sliding_window
        )
        if self.config.position_embedding_type == "learned":
            refuse_positions_beyond(self.config.max_position_embeddings, position_ids)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()  # keeps all keys; `generate` creates one that keeps only the sliding window
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        position_embeddings = None
        if self.config.position_embedding_type == "learned":
            hidden_states = hidden_states + self.embed_positions(position_ids)
        else:
            position_embeddings = rotary_embedding(self.config, position_ids, hidden_states.dtype)
        hidden_states = self.dropout(hidden_states)
        kwargs |= {"attention_mask": mask, "position_embeddings": position_embeddings, "position_ids": position_ids}
        kwargs |= {"past_key_values": past_key_values}
        all_states, all_weights = [hidden_states], []
        # Sliced because early-exit assisted decoding temporarily lowers num_hidden_layers.
        for block in self.layers[: self.config.num_hidden_layers]:
            if checkpointing:
                hidden_states, weights = self._gradient_checkpointing_func(partial(block.__call__, **kwargs), hidden_states)
            else:
                hidden_states, weights = block(hidden_states, **kwargs)
            all_states.append(hidden_states)
            all_weights.append(weights)
        if output_attentions and None in all_weights:
            raise ValueError(f'{self.config._attn_implementation} keeps no attention weights: set attn_implementation="eager"')
        hidden_states = self.norm(hidden_states)
        outputs = BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            hidden_states=(*all_states[:-1], hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
            **{CACHE: past_key_values if use_cache else None},
        )
        return self.as_asked(outputs, return_dict)


class GPTScratchForCausalLM(GPTScratchPreTrainedModel, GenerationMixin):
    """The language model: a linear head, optionally tied to the token embedding, computes next-token logits."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: GPTScratchConfig):
        super().__init__(config)
        self.model = GPTScratchModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=config.lm_head_bias)
        # Settings of a training run: the scripts set them on the model, so that they are not saved in the configuration.
        self.loss_implementation = config.loss_implementation
        self.label_smoothing = 0.0  # in training mode only
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        r"""
        Arguments of [`GPTScratchModel.forward`], and:

        labels (`torch.LongTensor`, (B, T)): token ids, usually `input_ids`. They are shifted here, so that position t predicts token
            t + 1; -100 is ignored. `shift_labels` in kwargs are shifted already.
        logits_to_keep (`int` or `torch.Tensor`): compute logits for the last n positions, or for these indices; 0 for all.
        num_items_in_batch (`int` or `torch.Tensor`): divisor of the summed loss, the number of target tokens over all accumulated
            batches and processes. Without it, the loss is the mean over this batch.

        Returns loss (scalar, fp32) if labels are given, and logits (B, T, V), which are `None` in training mode with labels and
        `loss_implementation` "chunked".
        """
        shift_labels = kwargs.pop("shift_labels", None)  # not a named argument: Trainer would expect it in every batch
        kwargs |= {"cache": cache, "return_dict": True}
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs)
        hidden_states, logits, loss = outputs.last_hidden_state, None, None
        scored = labels is not None or shift_labels is not None
        smoothing = self.label_smoothing if self.training else 0.0
        # The chunked loss reads the head's weight directly: only if the head is a plain nn.Linear (no adapter, not quantized) without bias.
        chunked = self.loss_implementation == "chunked" and type(self.lm_head) is nn.Linear and self.lm_head.bias is None
        if scored and self.training and chunked:
            loss = chunked_language_modeling_loss(
                hidden_states, self.lm_head.weight, labels, smoothing, num_items_in_batch, shift_labels
            )
        else:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep  # -0: from the start
            logits = self.lm_head(hidden_states[:, kept])
            if scored:
                loss = language_modeling_loss(logits, labels, smoothing, num_items_in_batch, shift_labels)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return self.as_asked(CausalLMOutputWithPast(loss=loss, logits=logits, **others), return_dict)

    def prepare_inputs_for_generation(self, input_ids, *args, inputs_embeds=None, **kwargs):
        """Also checks, outside of a possibly compiled forward, that the cache contains the skipped tokens and that positions suffice."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, inputs_embeds=inputs_embeds, **kwargs)
        positions = inputs.get("position_ids")
        if positions is not None and self.config.position_embedding_type == "learned":
            refuse_positions_beyond(self.config.max_position_embeddings, positions)
        refuse_lost_tokens(inputs, input_ids)
        return inputs


class GPTScratchForSequenceClassification(GPTScratchPreTrainedModel):
    """A classifier: a linear layer on the last real token, the only one that attends to the whole text."""

    # The loss is a mean over the rows of the batch. Because of **kwargs, Trainer would assume that forward divides by
    # num_items_in_batch, and would no longer divide accumulated losses itself.
    accepts_loss_kwargs = False

    def __init__(self, config: GPTScratchConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        # Not AutoModel.from_config, which cannot find this class when the code comes from a checkpoint directory.
        self.model = GPTScratchModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple:
        r"""
        Arguments of [`GPTScratchModel.forward`], and:

        labels: class ids (B,) for `problem_type` "single_label_classification", 0/1 floats (B, L) for
            "multi_label_classification", floats (B,) or (B, L) for "regression".

        Returns loss (scalar, mean over rows) if labels are given, and logits (B, L). Raises `ValueError` if the last token of several
        rows cannot be found: without an attention_mask, and without a pad token in the configuration or with embeddings as input.
        """
        knows_padding = input_ids is not None and self.config.pad_token_id is not None
        if attention_mask is None and past_key_values is None and cache is None and knows_padding:
            attention_mask = real_span(input_ids, self.config.pad_token_id)
        kwargs |= {"cache": cache, "return_dict": True}
        outputs = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs)
        hidden_states = outputs.last_hidden_state  # (B, T, C)
        rows = torch.arange(len(hidden_states), device=hidden_states.device)
        logits = self.score(hidden_states[rows, last_real_token(attention_mask, hidden_states)])  # (B, C) -> (B, L)
        loss = None
        if labels is not None:
            self.config.problem_type = self.config.problem_type or problem_type_of(labels, self.num_labels)
            loss = classification_loss(logits, labels, self.config.problem_type)
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return self.as_asked(SequenceClassifierOutputWithPast(loss=loss, logits=logits, **others), return_dict)


# Saving copies this file and those beside it into the checkpoint. Registered here and not in the package, so that a model whose code was
# loaded from a checkpoint is saved with its code, too: transformers 4.46 does not do this itself.
GPTScratchModel.register_for_auto_class("AutoModel")
GPTScratchForCausalLM.register_for_auto_class("AutoModelForCausalLM")
GPTScratchForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = ["GPTScratchForCausalLM", "GPTScratchForSequenceClassification", "GPTScratchModel", "GPTScratchPreTrainedModel"]
