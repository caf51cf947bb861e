"""litgpt's `lit_model.pth` with its `model_config.yaml`; unsupported settings are refused by name.

Source: litgpt `config.py` and `model.py`.
"""

from pathlib import Path
from typing import Any

import torch
import yaml

from ..errors import UserError, one_line
from .checkpoint import Checkpoint, Options, build_config
from .sources import CutSource, RenamedSource, Source, equal_bits
from .state_dicts import not_converted, read_state_dict
from .weight_maps import LITGPT

# Settings with a single supported value, and litgpt's default if the file does not contain them.
ONLY: dict[str, tuple[Any, Any]] = {
    "norm_qk_type": ("default", "default"),
    "post_attention_norm": (False, False),
    "post_mlp_norm": (False, False),
    "parallel_residual": (False, True),
    "shared_attention_norm": (False, False),
    "attention_scores_scalar": (None, None),
    "attention_logit_softcapping": (None, None),
    "rotary_percentage": (1.0, 0.25),
    "rope_interleave": (False, False),
    "n_expert": (0, 0),
    "n_shared_expert": (None, None),
    "scale_embeddings": (False, False),
    "final_logit_softcapping": (None, None),
    "norm_1": (True, True),
    "norm_2": (True, True),
    "latent_attention": (None, None),
    "rope_local_base_freq": (None, None),
}
# Supported settings, with litgpt's defaults.
READ: dict[str, Any] = {
    "block_size": 4096,
    "n_layer": 16,
    "n_embd": 4096,
    "vocab_size": 50254,
    "padded_vocab_size": None,
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "norm_qk": False,
    "n_head": 32,
    "head_size": None,
    "n_query_groups": None,
    "attn_bias": False,
    "sliding_window_size": None,
    "sliding_window_indices": None,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "intermediate_size": None,
    "bias": True,
    "mlp_class_name": "GptNeoxMLP",
    "gelu_approximate": "none",
    "lm_head_bias": False,
}
# Metadata, and settings of experts, which are refused by n_expert.
IGNORED = {
    "name",
    "hf_config",
    "padding_multiple",
    "moe_intermediate_size",
    "n_expert_groups",
    "n_topk_groups",
    "n_topk_scores_per_group",
}
IGNORED |= {"n_expert_per_token", "first_k_dense_replace", "routed_scaling_factor", "norm_topk_prob", "rope_indices"}
LLAMA3 = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}  # rope_adjustments of Llama 3.1 and later


def open_litgpt(path: Path, options: Options) -> Checkpoint:
    """Open a directory with `lit_model.pth` and `model_config.yaml`, or the path of the first.

    Raises:
        UserError: a missing or broken file, or unsupported settings; names each.
    """
    file = path / "lit_model.pth" if path.is_dir() else path
    settings_file = file.with_name("model_config.yaml")
    settings = _read_yaml(settings_file)
    source, rest = read_state_dict(file)
    try:
        values = litgpt_settings(settings, settings_file)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{settings_file} has a setting of a wrong type: {one_line(error)}") from error
    config = build_config(values, options.config_overrides)
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    assert groups is not None and size is not None  # filled in by the configuration
    names = {name: name for name in source.describe()}
    if "lm_head.weight" in names and "transformer.wte.weight" in names:
        config.tie_word_embeddings = equal_bits(source.get("lm_head.weight"), source.get("transformer.wte.weight"))
        if config.tie_word_embeddings:
            del names["lm_head.weight"]
    apart = _apart(RenamedSource(source, names), heads, groups, size)
    return Checkpoint(apart, LITGPT, config, "lm", f"the sizes in {settings_file}", notes=not_converted(rest))


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: litgpt writes it beside lit_model.pth, and its settings cannot be derived")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read as YAML: {one_line(error)}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} must contain a mapping of settings, not {type(settings).__name__}")
    return settings


def litgpt_settings(settings: dict[str, Any], path: Path) -> dict[str, Any]:
    """Translate litgpt's `Config` into our settings.

    Raises:
        UserError: unsupported settings; names each.
    """
    refused = [f"{name}={settings.get(name, default)!r} (it must be {only!r})" for name, (only, default) in ONLY.items()
               if settings.get(name, default) != only]  # fmt: skip
    s = READ | {name: value for name, value in settings.items() if name in READ}
    refused += [f"{name} is unknown" for name in settings if name not in READ and name not in ONLY and name not in IGNORED]
    mlps = {"LLaMAMLP": ("gated", "silu"), "GptNeoxMLP": ("plain", "gelu_new" if s["gelu_approximate"] == "tanh" else "gelu")}
    norms = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
    for name, known in (("mlp_class_name", mlps), ("norm_class_name", norms), ("gelu_approximate", {"none": 0, "tanh": 0})):
        if s[name] not in known:
            refused.append(f"{name}={s[name]!r} (expected one of {', '.join(known)})")
    if s["norm_qk"] and s["norm_class_name"] != "RMSNorm":
        refused.append("norm_qk=True with norm_class_name='LayerNorm' (it needs 'RMSNorm')")
    if "Gemma" in str(settings.get("name", "")) and s["norm_class_name"] == "RMSNorm":
        refused.append(
            f"name={str(settings['name'])[:60]!r} (litgpt adds 1 to the norms' weights of models with Gemma in their name)"
        )
    window = s["sliding_window_size"]
    if window is not None and s["sliding_window_indices"] is not None and not all(s["sliding_window_indices"][: s["n_layer"]]):
        refused.append("sliding_window_indices (every layer must have the window, or none)")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(s["rope_base"])}
    if (adjustments := s["rope_adjustments"]) is not None:
        if not isinstance(adjustments, dict) or set(adjustments) != LLAMA3 or s["rope_condense_ratio"] != 1:
            refused.append(f"rope_adjustments={str(adjustments)[:80]} (only Llama 3.1's are supported)")
        else:
            names = {"original_max_seq_len": "original_max_position_embeddings"}
            rope |= {"rope_type": "llama3"} | {names.get(str(name), str(name)): value for name, value in adjustments.items()}
    elif s["rope_condense_ratio"] != 1:
        rope |= {"rope_type": "linear", "factor": float(s["rope_condense_ratio"])}
    if refused:
        raise UserError(f"{path} has unsupported settings: {'; '.join(refused)}")
    mlp_type, hidden_act = mlps[s["mlp_class_name"]]
    return {
        "vocab_size": s["padded_vocab_size"] or s["vocab_size"],
        "hidden_size": s["n_embd"],
        "num_hidden_layers": s["n_layer"],
        "num_attention_heads": s["n_head"],
        "num_key_value_heads": s["n_query_groups"],
        "head_dim": s["head_size"],
        "intermediate_size": s["intermediate_size"] or 4 * s["n_embd"],
        "max_position_embeddings": s["block_size"],
        "position_embedding_type": "rope",
        "rope_parameters": rope,
        "norm_type": norms[s["norm_class_name"]],
        "norm_eps": s["norm_eps"],
        "qk_norm": s["norm_qk"],
        "mlp_type": mlp_type,
        "hidden_act": hidden_act,
        "qkv_bias": s["bias"] or s["attn_bias"],
        "o_bias": s["bias"],
        "mlp_bias": s["bias"],
        "lm_head_bias": s["lm_head_bias"],
        "sliding_window": window,
        "tie_word_embeddings": False,
        "drop_rate": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def _apart(source: Source, heads: int, groups: int, size: int) -> Source:
    """Split the fused query, key and value of each layer.

    Current files store all queries, all keys, all values (`attn.qkv`); until 2024, queries, key and value of each group (`attn.attn`).
    """
    made: dict[str, list[str]] = {}
    for name in source.describe():
        for fused in (".attn.qkv.", ".attn.attn."):
            if fused in name:
                made |= {name.replace(fused, f".attn.{kind}."): [name] for kind in "qkv"}
    old = {new for new, (name,) in made.items() if ".attn.attn." in name}

    def cut(name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        (fused,), kind, per_group = parts, "qkv".index(name.rsplit(".", 2)[1]), heads // groups
        counts = (per_group, 1, 1) if name in old else (heads, groups, groups)
        if fused.shape[0] != (heads + 2 * groups) * size:
            raise UserError(
                f"{made[name][0]} has {fused.shape[0]} rows: {heads} heads and {groups} groups of {size} need {(heads + 2 * groups) * size}"
            )
        if name in old:
            rows = fused.reshape(groups, per_group + 2, size, *fused.shape[1:]).split(counts, dim=1)[kind]
            return rows.reshape(-1, *fused.shape[1:])
        return fused.split([count * size for count in counts])[kind]

    return CutSource(source, made, cut)
