"""Back again: this package's checkpoints in the stock layouts of GPT-2 and Llama, for vLLM, llama.cpp, MLX and the rest."""

from typing import Any

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from .weight_maps import HF_GPT2, LLAMA, Layout, WeightMap

GELU_TANH = ("gelu_new", "gelu_pytorch_tanh")


def foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    """transformers' own configuration for `target`, "gpt2" or "llama".

    Raises:
        UserError: a setting that the target cannot express; names it.
    """
    labels = {"id2label": config.id2label, "label2id": config.label2id} if head == "classifier" else {}
    ids = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    common: dict[str, Any] = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_word_embeddings, **ids, **labels}
    if target == "gpt2":
        _require(config, "gpt2", position_embedding_type="learned", norm_type="layernorm", mlp_type="plain")
        _require(config, "gpt2", num_key_value_heads=config.num_attention_heads)
        _require(config, "gpt2", head_dim=config.hidden_size // config.num_attention_heads)
        return GPT2Config(
            n_embd=config.hidden_size, n_layer=config.num_hidden_layers, n_head=config.num_attention_heads,
            n_positions=config.max_position_embeddings, n_inner=config.intermediate_size, activation_function=config.hidden_act,
            layer_norm_epsilon=config.norm_eps, embd_pdrop=config.embedding_dropout, attn_pdrop=config.attention_dropout,
            resid_pdrop=config.residual_dropout, initializer_range=config.initializer_range, architectures=[
                "GPT2ForSequenceClassification" if head == "classifier" else "GPT2LMHeadModel"
            ], **common,
        )  # fmt: skip
    _require(config, "llama", position_embedding_type="rope", norm_type="rmsnorm", mlp_type="gated", embedding_dropout=0)
    _require(config, "llama", residual_dropout=0, o_bias=config.qkv_bias)
    return LlamaConfig(
        hidden_size=config.hidden_size, intermediate_size=config.intermediate_size, num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads, num_key_value_heads=config.num_key_value_heads, head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings, hidden_act=config.hidden_act, rms_norm_eps=config.norm_eps,
        rope_parameters=config.rope_parameters, attention_bias=config.qkv_bias, mlp_bias=config.mlp_bias,
        attention_dropout=config.attention_dropout, initializer_range=config.initializer_range, architectures=[
            "LlamaForSequenceClassification" if head == "classifier" else "LlamaForCausalLM"
        ], **common,
    )  # fmt: skip


def _require(config: GPTScratchConfig, target: str, **settings: Any) -> None:
    for name, needed in settings.items():
        if getattr(config, name) != needed:
            raise UserError(f"{target} cannot express {name}={getattr(config, name)!r}: it needs {needed!r}")


def inverted(target: str, layers: int) -> dict[str, tuple[Layout, tuple[str, ...]]]:
    """Every foreign name of a model with `layers` layers, with the layout and our names that it is made of."""
    weight_map: WeightMap = HF_GPT2 if target == "gpt2" else LLAMA
    prefix = "transformer." if target == "gpt2" else ""
    names: dict[str, tuple[Layout, tuple[str, ...]]] = {}
    for key, rule in weight_map.items():
        if rule is None:
            continue
        layout, ours = rule
        for layer in range(layers) if "{}" in key else [0]:
            foreign = key if key in ("lm_head.weight", "score.weight") else prefix + key
            names[foreign.replace("{}", str(layer))] = (layout, tuple(name.replace("{}", str(layer)) for name in ours))
    return names
