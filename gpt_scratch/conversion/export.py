"""Back again: this package's checkpoints in the stock layouts of GPT-2 and Llama, for vLLM, llama.cpp, MLX and the rest."""

from typing import Any

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from .weight_maps import HF_GPT2, LLAMA, Layout

CLASSES = {
    ("gpt2", "lm"): "GPT2LMHeadModel",
    ("gpt2", "classifier"): "GPT2ForSequenceClassification",
    ("llama", "lm"): "LlamaForCausalLM",
    ("llama", "classifier"): "LlamaForSequenceClassification",
}


def foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    """transformers' own configuration for `target`, "gpt2" or "llama".

    Raises:
        UserError: a setting that the target cannot express; names it.
    """
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "architectures": [CLASSES[target, head]],
    }
    if head == "classifier":
        common |= {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
    _require(config, target, qk_norm=False)
    if target == "gpt2":
        _require(config, target, position_embedding_type="learned", norm_type="layernorm", mlp_type="plain")
        _require(config, target, num_key_value_heads=config.num_attention_heads)
        _require(config, target, head_dim=config.hidden_size / config.num_attention_heads)
        return GPT2Config(
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_positions=config.max_position_embeddings,
            n_inner=config.intermediate_size,
            activation_function=config.hidden_act,
            layer_norm_epsilon=config.norm_eps,
            embd_pdrop=config.embedding_dropout,
            attn_pdrop=config.attention_dropout,
            resid_pdrop=config.residual_dropout,
            **common,
        )
    _require(config, target, position_embedding_type="rope", norm_type="rmsnorm", mlp_type="gated")
    _require(config, target, embedding_dropout=0, residual_dropout=0, o_bias=config.qkv_bias)
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        hidden_act=config.hidden_act,
        rms_norm_eps=config.norm_eps,
        rope_parameters=config.rope_parameters,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        attention_dropout=config.attention_dropout,
        **common,
    )


def _require(config: GPTScratchConfig, target: str, **settings: Any) -> None:
    for name, needed in settings.items():
        if getattr(config, name) != needed:
            raise UserError(f"{target} cannot express {name}={getattr(config, name)!r}: it needs {needed!r}")


def inverted(target: str, config: GPTScratchConfig, head: str) -> dict[str, tuple[Layout, tuple[str, ...]]]:
    """Every tensor of the stock model, by its name, with the layout and our names that it is made of."""
    weight_map, prefix = (HF_GPT2, "transformer.") if target == "gpt2" else (LLAMA, "")
    heads = {"lm_head.weight": head == "lm" and not config.tie_word_embeddings, "score.weight": head == "classifier"}
    biases = {  # Llama leaves out what is switched off; GPT-2 has every bias
        "self_attn.": target == "gpt2" or config.qkv_bias,
        "mlp.": target == "gpt2" or config.mlp_bias,
    }
    rules: dict[str, tuple[Layout, tuple[str, ...]]] = {}
    for key, rule in weight_map.items():
        if rule is None or not heads.get(key, True):
            continue
        layout, ours = rule
        if ours[0].endswith(".bias") and any(part in ours[0] and not on for part, on in biases.items()):
            continue
        for layer in map(str, range(config.num_hidden_layers) if "{}" in key else [0]):
            name = (key if key in heads else prefix + key).replace("{}", layer)
            rules[name] = layout, tuple(part.replace("{}", layer) for part in ours)
    return rules
