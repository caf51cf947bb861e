"""Export of this package's checkpoints to the stock layouts of GPT-2, Llama, Mistral and Qwen, for vLLM, llama.cpp, MLX and others."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import GPT2Config, LlamaConfig, MistralConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from ..files import write_json
from .weight_maps import HF_GPT2, LLAMA, Layout

CLASSES = {
    ("gpt2", "lm"): "GPT2LMHeadModel",
    ("gpt2", "classifier"): "GPT2ForSequenceClassification",
    ("llama", "lm"): "LlamaForCausalLM",
    ("llama", "classifier"): "LlamaForSequenceClassification",
    ("mistral", "lm"): "MistralForCausalLM",
    ("mistral", "classifier"): "MistralForSequenceClassification",
    ("qwen2", "lm"): "Qwen2ForCausalLM",
    ("qwen2", "classifier"): "Qwen2ForSequenceClassification",
    ("qwen3", "lm"): "Qwen3ForCausalLM",
    ("qwen3", "classifier"): "Qwen3ForSequenceClassification",
}
LAYOUTS = tuple(dict.fromkeys(layout for layout, _ in CLASSES))


def needed_settings(config: GPTScratchConfig, layout: str) -> dict[str, Any]:
    """The settings that `layout` fixes, with the values that `config` must have."""
    width = config.hidden_size / config.num_attention_heads
    covered = config.sliding_window is not None and config.sliding_window >= config.max_position_embeddings
    everywhere = {"lm_head_bias": False}
    no_window = {"sliding_window": config.sliding_window if covered else None}
    if layout == "gpt2":
        return {
            "position_embedding_type": "learned",
            "norm_type": "layernorm",
            "mlp_type": "plain",
            "num_key_value_heads": config.num_attention_heads,
            "head_dim": width,
            "qk_norm": False,
            **no_window,
            **everywhere,
        }
    family = {
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "mlp_type": "gated",
        "embedding_dropout": 0,
        "residual_dropout": 0,
    }
    member: dict[str, dict[str, Any]] = {
        "llama": {"o_bias": config.qkv_bias, "qk_norm": False, **no_window},
        "mistral": {"qkv_bias": False, "o_bias": False, "mlp_bias": False, "qk_norm": False},
        # Before transformers 4.52, head_dim was not read. Missing query, key and value biases are written as zeros.
        "qwen2": {"o_bias": False, "mlp_bias": False, "head_dim": width, "qk_norm": False, **no_window},
        "qwen3": {"o_bias": config.qkv_bias, "mlp_bias": False, "qk_norm": True, **no_window},
    }
    return family | member[layout] | everywhere


def obstacles(config: GPTScratchConfig, layout: str) -> dict[str, Any]:
    """The settings of `config` that `layout` cannot express, with the required values."""
    return {name: value for name, value in needed_settings(config, layout).items() if getattr(config, name) != value}


def refuse_obstacles(config: GPTScratchConfig, layout: str) -> None:
    """Refuse a configuration that `layout` cannot express.

    Raises:
        UserError: names each unsupported setting, and the nearest layout.
    """
    found = obstacles(config, layout)
    if found:
        counts = {other: obstacles(config, other) for other in LAYOUTS}
        raise UserError(f"{layout} cannot express {list_obstacles(config, found)}; {nearest(layout, counts)}")


def list_obstacles(config: GPTScratchConfig, found: dict[str, Any]) -> str:
    """Format each setting with its value and the required value."""
    return ", ".join(f"{name}={getattr(config, name)!r} (it needs {value!r})" for name, value in found.items())


def nearest(asked: str, found: dict[str, dict[str, Any]]) -> str:
    """The layout with the fewest obstacles, for the end of an error message.

    >>> nearest("gpt2", {"gpt2": {"norm_type": "layernorm", "mlp_type": "plain"}, "llama": {"qk_norm": False}, "qwen3": {}})
    'qwen3 can express all of them'
    >>> nearest("gpt2", {"gpt2": {"norm_type": "layernorm", "mlp_type": "plain"}, "llama": {"qk_norm": False}})
    'the nearest layout is llama, where 1 setting differs: qk_norm'
    """
    best = min(found, key=lambda layout: (len(found[layout]), layout != asked))
    count = len(found[best])
    if not count:
        return f"{best} can express all of them"
    if best == asked:
        return f"no other layout is nearer: {count} {'settings differ' if count > 1 else 'setting differs'}"
    return f"the nearest layout is {best}, where {count} {'settings differ' if count > 1 else 'setting differs'}: {', '.join(found[best])}"


def foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    """transformers' configuration for `target`, one of `LAYOUTS`.

    Raises:
        UserError: settings that the target cannot express; names each, and the nearest layout.
    """
    refuse_obstacles(config, target)
    try:
        return _foreign_config(config, target, head)
    except StrictDataclassError as error:  # transformers' own limits, e.g. of initializer_range
        raise UserError(f"{target} cannot express a setting: {one_line(error)}") from error


def _foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": float(config.initializer_range),  # transformers refuses an int
        "architectures": [CLASSES[target, head]],
    }
    if head == "classifier":
        common |= {"id2label": config.id2label, "label2id": config.label2id, "problem_type": config.problem_type}
    if target == "gpt2":
        return GPT2Config(
            n_embd=config.hidden_size,
            n_layer=config.num_hidden_layers,
            n_head=config.num_attention_heads,
            n_positions=config.max_position_embeddings,
            n_inner=config.intermediate_size,
            activation_function=config.hidden_act,
            layer_norm_epsilon=float(config.norm_eps),
            embd_pdrop=float(config.embedding_dropout),
            attn_pdrop=float(config.attention_dropout),
            resid_pdrop=float(config.residual_dropout),
            **common,
        )
    common |= {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": float(config.norm_eps),
        "rope_parameters": config.rope_parameters,
        "attention_dropout": float(config.attention_dropout),
    }
    if target == "qwen2":
        return Qwen2Config(**common)
    common["head_dim"] = config.head_dim
    if target == "mistral":
        return MistralConfig(sliding_window=config.sliding_window, **common)
    if target == "qwen3":
        return Qwen3Config(attention_bias=config.qkv_bias, **common)
    return LlamaConfig(attention_bias=config.qkv_bias, mlp_bias=config.mlp_bias, **common)


def save_config(theirs: PreTrainedConfig, folder: Path) -> None:
    """Write `config.json` with the setting names of both transformers 5 and 4; each ignores those of the other.

    Version 4 ignores `rope_parameters` and would silently use a base of 10,000 without scaling: it reads `rope_theta` and `rope_scaling`.
    Before 4.56, `dtype` was `torch_dtype`. llama.cpp, MLX and vLLM also read the older names.
    """
    theirs.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["torch_dtype"] = values["dtype"]
    if "rope_parameters" in values:
        scaling = dict(values["rope_parameters"])
        values["rope_theta"] = scaling.pop("rope_theta")
        values["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    write_json(path, dict(sorted(values.items())))


def inverted(target: str, config: GPTScratchConfig, head: str) -> dict[str, tuple[Layout, tuple[str, ...]]]:
    """Every tensor of the stock model by name, with its layout and the names of our parameters."""
    weight_map, prefix = (HF_GPT2, "transformer.") if target == "gpt2" else (LLAMA, "")
    heads = {"lm_head.weight": head == "lm" and not config.tie_word_embeddings, "score.weight": head == "classifier"}
    rules: dict[str, tuple[Layout, tuple[str, ...]]] = {}
    for key, rule in weight_map.items():
        if rule is None or not heads.get(key, True):
            continue
        layout, ours = rule
        if not _has(target, config, ours[0]):
            continue
        for layer in map(str, range(config.num_hidden_layers) if "{}" in key else [0]):
            name = (key if key in heads else prefix + key).replace("{}", layer)
            rules[name] = layout, tuple(part.replace("{}", layer) for part in ours)
    return rules


def _has(target: str, config: GPTScratchConfig, name: str) -> bool:
    """Whether the stock model has this parameter: GPT-2 has every bias, the others only those that are enabled."""
    if "q_norm." in name or "k_norm." in name:
        return config.qk_norm
    if target == "gpt2" or not name.endswith(".bias"):
        return True
    if "o_proj." in name:
        return config.o_bias
    return (target == "qwen2" or config.qkv_bias) if "self_attn." in name else config.mlp_bias
