"""Opens a file of tensors with the names of transformers and without `config.json`: `torch.save(model.state_dict())` of GPT-2, Llama,
Mistral or Qwen, and minimind's `.pth`, which has Qwen 3's layout.

Sources: transformers' `GPT2LMHeadModel`, `LlamaForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`; minimind `model/model_minimind.py`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from .checkpoint import Checkpoint, Options, build_config
from .sources import RenamedSource, Source, equal_bits
from .state_dicts import heads_of, not_converted, read_state_dict
from .stock_layouts import CLASSES, foreign_config, obstacles
from .weight_maps import HF_GPT2, LLAMA

EXPERTS = re.compile(r"\.mlp\.(experts\.|gate\.|shared_expert|router)|\.block_sparse_moe\.")
MATRICES = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "mlp.gate_proj.weight")
ROTARY = '--config_overrides \'{"max_position_embeddings": 32768, "rope_parameters": {"rope_theta": 1000000.0}}\''
Shapes = Mapping[str, tuple[int, ...]]


def is_hub_file(shapes: Shapes) -> bool:
    """Whether tensors have the names of transformers; of GPT-2 in nanoGPT's names, whether they lie (in, out) as `Conv1D` has them.

    >>> is_hub_file({"transformer.h.0.attn.c_attn.weight": (8, 24)}), is_hub_file({"transformer.h.0.attn.c_attn.weight": (24, 8)})
    (True, False)
    """
    fused = next(
        (shapes[name] for name in ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight") if name in shapes), ()
    )
    return "model.embed_tokens.weight" in shapes or (len(fused) == 2 and fused[0] < fused[1])


def open_hub_file(path: Path, options: Options) -> Checkpoint:
    """GPT-2, the Llama family or Qwen by the shapes of the tensors; what they do not tell is asked for, or assumed and printed.

    Raises:
        UserError: a broken or unsafe file, an incomplete model, experts, or a setting that the file does not hold.
    """
    if path.with_name("config.json").is_file():
        raise UserError(
            f"{path} has a config.json beside it: name the directory, where the weights are called model.safetensors or pytorch_model.bin"
        )
    source, rest = read_state_dict(path)
    gpt2 = "model.embed_tokens.weight" not in source.describe()
    source = RenamedSource(source, {name: name.removeprefix("transformer.") if gpt2 else name for name in source.describe()})
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    notes = not_converted(rest)
    if found := next(filter(EXPERTS.search, shapes), None):
        raise UserError(f"{path} has a mixture of experts ({found}), which cannot be expressed")
    if "score.weight" in shapes:
        raise UserError(
            f"{path} is a classifier, whose classes are named in its config.json: put it beside the file, and name the directory"
        )
    embedding = "wte.weight" if gpt2 else "model.embed_tokens.weight"
    needed = (
        ("wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight")
        if gpt2
        else [f"model.layers.0.{name}" for name in MATRICES]
    )
    for name in (embedding, *needed):
        if len(shapes.get(name, ())) != 2:
            kinds = "GPT-2" if gpt2 else "Llama or Qwen"
            raise UserError(
                f"{path} has no matrix {name}: it is no complete model of {kinds}, and another needs its config.json beside it"
            )
    values = (_gpt2 if gpt2 else _llama)(path, shapes, options, notes)
    names = {name: name for name in shapes}
    tied = "lm_head.weight" not in shapes or equal_bits(source.get("lm_head.weight"), source.get(embedding))
    if tied:
        names.pop("lm_head.weight", None)
    notes.append("dropout is not in the file: set to 0")
    config = build_config(values | {"tie_word_embeddings": tied, "drop_rate": 0.0}, options.config_overrides)
    used = RenamedSource(source, names)
    checkpoint = Checkpoint(
        used, HF_GPT2 if gpt2 else LLAMA, config, "lm", f"the sizes derived from the shapes in {path}", notes=notes
    )
    layout = (
        "gpt2" if gpt2 else next((name for name in ("llama", "qwen2", "qwen3", "mistral") if not obstacles(config, name)), None)
    )
    if layout is not None:
        checkpoint.reference = lambda: _theirs(used, config, layout)
    return checkpoint


def _theirs(source: Source, config: GPTScratchConfig, layout: str) -> PreTrainedModel:
    """transformers' own model of these tensors."""
    model = getattr(transformers, CLASSES[layout, "lm"])(foreign_config(config, layout, "lm")).float()
    prefix = "transformer." if layout == "gpt2" else ""
    model.load_state_dict(
        {prefix + name: source.get(name) for name in source.describe()}, strict=False
    )  # tied or not; masks of old
    return model


def _layers(shapes: Shapes, start: str) -> int:
    return len({name.removeprefix(start).split(".")[0] for name in shapes if name.startswith(start)})


def _gpt2(path: Path, shapes: Shapes, options: Options, notes: list[str]) -> dict[str, Any]:
    (vocabulary, width), (positions, _) = shapes["wte.weight"], shapes["wpe.weight"]
    notes.append("the activation and norm_eps are GPT-2's: gelu_new and 1e-05")
    return {
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_layer": _layers(shapes, "h."),
        "n_head": heads_of(path, width, options, notes),
        "n_positions": positions,
        "n_inner": shapes["h.0.mlp.c_fc.weight"][1],
        "hidden_act": "gelu_new",
        "qkv_bias": True,
    }


def _llama(path: Path, shapes: Shapes, options: Options, notes: list[str]) -> dict[str, Any]:
    """
    Raises:
        UserError: positions or heads that nothing tells, or heads that do not fit.
    """
    given = {GPTScratchConfig.attribute_map.get(name, name): value for name, value in options.config_overrides.items()}
    asked = {"max_position_embeddings", "rope_parameters"}
    if lacking := sorted(asked - given.keys()):
        raise UserError(
            f"{path} has the names of Llama and Qwen and no config.json, and {' and '.join(lacking)} are in no tensor: put config.json "
            f"beside it and name the directory, or pass them, here as minimind has them: {ROTARY}"
        )
    (vocabulary, width), block = shapes["model.embed_tokens.weight"], "model.layers.0."
    queries, keys = (shapes[f"{block}self_attn.{kind}_proj.weight"][0] for kind in "qk")
    heads: Any
    normed = len(shapes.get(block + "self_attn.q_norm.weight", ())) == 1
    if normed:
        size = max(1, shapes[block + "self_attn.q_norm.weight"][0])
        heads = queries // size
    else:
        heads = given.get("num_attention_heads")
        if heads is None:
            raise UserError(f"{path}: the number of heads is in no tensor: pass --config_overrides num_attention_heads=N")
        size = queries // heads if type(heads) is int and heads > 0 else 0
    if not size or queries % size or keys % size:
        raise UserError(f"{path}: heads of {size} do not fit {queries} rows of queries and {keys} of keys")
    notes.append(
        "the activation is not in the file: silu, and nothing scales embeddings, residuals or logits, as in Llama, Mistral and Qwen; a "
        "file of Gemma or Granite has the same names and would become another function"
    )
    eps = 1e-6 if normed else 1e-5
    if "norm_eps" not in given:
        notes.append(
            f"norm_eps is not in the file: {eps:g}, as {'Qwen 3' if normed else 'Llama 3'} has; another: --config_overrides norm_eps=..."
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[block + "mlp.gate_proj.weight"][0],
        "num_hidden_layers": _layers(shapes, "model.layers."),
        "num_attention_heads": heads,
        "num_key_value_heads": keys // size,
        "head_dim": size,
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "norm_eps": eps,
        "mlp_type": "gated",
        "hidden_act": "silu",
        "qk_norm": normed,
        **{f"{part}_bias": f"{block}{name}.bias" in shapes
           for part, name in (("qkv", "self_attn.q_proj"), ("o", "self_attn.o_proj"), ("mlp", "mlp.up_proj"))},
        "bos_token_id": None,
        "eos_token_id": None,
    }  # fmt: skip
