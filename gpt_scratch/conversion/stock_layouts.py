"""Back again: this package's checkpoints in the stock layouts of GPT-2 and Llama, for vLLM, llama.cpp, MLX and the rest."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from ..files import write_json
from .weight_maps import HF_GPT2, LLAMA, Layout

CLASSES = {
    ("gpt2", "lm"): "GPT2LMHeadModel",
    ("gpt2", "classifier"): "GPT2ForSequenceClassification",
    ("llama", "lm"): "LlamaForCausalLM",
    ("llama", "classifier"): "LlamaForSequenceClassification",
}
LAYOUTS = tuple(dict.fromkeys(layout for layout, _ in CLASSES))


def foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    """transformers' own configuration for `target`, one of `LAYOUTS`.

    Raises:
        UserError: settings that the target cannot express; names each.
    """
    _require(config, target)
    try:
        return _foreign_config(config, target, head)
    except StrictDataclassError as error:  # transformers' own bounds, e.g. of initializer_range
        raise UserError(f"{target} cannot express a setting: {one_line(error)}") from error


def _foreign_config(config: GPTScratchConfig, target: str, head: str) -> PreTrainedConfig:
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": float(config.initializer_range),  # transformers refuses whole numbers here
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
    return LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        hidden_act=config.hidden_act,
        rms_norm_eps=float(config.norm_eps),
        rope_parameters=config.rope_parameters,
        attention_bias=config.qkv_bias,
        mlp_bias=config.mlp_bias,
        attention_dropout=float(config.attention_dropout),
        **common,
    )


def _require(config: GPTScratchConfig, target: str) -> None:
    needed: dict[str, Any] = {
        "gpt2": {
            "position_embedding_type": "learned",
            "norm_type": "layernorm",
            "mlp_type": "plain",
            "num_key_value_heads": config.num_attention_heads,
            "head_dim": config.hidden_size / config.num_attention_heads,
        },
        "llama": {
            "position_embedding_type": "rope",
            "norm_type": "rmsnorm",
            "mlp_type": "gated",
            "embedding_dropout": 0,
            "residual_dropout": 0,
            "o_bias": config.qkv_bias,
        },
    }[target] | {"qk_norm": False}
    wrong = {name: value for name, value in needed.items() if getattr(config, name) != value}
    if wrong:
        listed = ", ".join(f"{name}={getattr(config, name)!r} (it needs {value!r})" for name, value in wrong.items())
        raise UserError(f"{target} cannot express {listed}")


def save_config(theirs: PreTrainedConfig, folder: Path) -> None:
    """Write `config.json` with the names of transformers 5 and of transformers 4, each of which reads its own and accepts the other's.

    4 ignores `rope_parameters` and would silently rotate with a base of 10,000 and no scaling: it reads `rope_theta` and `rope_scaling`.
    Before 4.56 `dtype` was `torch_dtype`. llama.cpp, MLX and vLLM read the older names too.
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
