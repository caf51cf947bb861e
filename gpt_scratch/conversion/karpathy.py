"""Checkpoints of Andrej Karpathy's projects: nanoGPT, minGPT, makemore, the GPT of his lecture and llama2.c. nanochat is not supported.

Sources: `model.py` of nanoGPT and llama2.c, llama2.c `export.py`, minGPT `mingpt/model.py`, `makemore.py`, `gpt.py` of ng-video-lecture,
nanochat `nanochat/gpt.py`. Settings that a file does not contain must be passed, or are derived and reported.
"""

import math
import re
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError, one_line
from .checkpoint import Checkpoint, Options, build_config, open_tokenizer
from .sources import CutSource, PairedSource, RenamedSource, Source, StateDictSource, equal_bits, read_json
from .state_dicts import GPT2_VOCABULARY, HEAD_NAMES, PADDED_VOCABULARY, PADDING_NOTE, heads_of, not_converted, read_state_dict
from .weight_maps import LECTURE, LLAMA2C, NANOGPT

MAGIC = 0x616B3432  # "ak42"
LLM_C = 20240326  # of llm.c's checkpoints
HEADER_BYTES = 256  # of llama2.c's versions from 1 on
SIZES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


def open_nanogpt(path: Path, options: Options) -> Checkpoint:
    """Open nanoGPT's `ckpt.pt`, or a bare state dict of nanoGPT, minGPT or makemore; optimizer and training state are ignored.

    Raises:
        UserError: a broken or unsafe file, settings of a wrong type, or a missing setting.
    """
    source, rest = read_state_dict(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    for name in ("transformer.wte.weight", "transformer.wpe.weight"):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}: it is not a complete nanoGPT model")
    notes = not_converted(rest, "model_args")
    args: Any = rest.get("model_args")
    tied = "lm_head.weight" not in shapes or equal_bits(source.get("lm_head.weight"), source.get("transformer.wte.weight"))
    if "lm_head.weight" not in shapes:
        notes.append("lm_head.weight is not in the file: tied to wte, as in nanoGPT")
    if args is not None:
        if not tied:
            raise UserError(
                f"{path}: lm_head.weight differs from transformer.wte.weight, but nanoGPT ties them; if this program does not, save the "
                "state dict without model_args"
            )
        values, sizes_from = _nanogpt_args(path, args, options), f"the sizes in model_args of {path}"
    else:
        values, sizes_from = _nanogpt_shapes(path, shapes, options, notes), f"the sizes derived from the shapes in {path}"
    names = {name: name for name in shapes}
    if tied:
        names.pop("lm_head.weight", None)
        values |= {"hidden_act": "gelu"}
        notes.append(
            "the activation is the exact (erf) GELU, as nanoGPT's nn.GELU(); for one of build-nanogpt, of nanoGPT's first versions "
            "or of minGPT with GPT-2's weights, which have the tanh approximation, pass --config_overrides hidden_act=gelu_new"
        )
    else:
        values |= {"hidden_act": "gelu_new", "tie_word_embeddings": False}
        notes.append(
            "lm_head differs from wte, as in minGPT and makemore: not tied, and the activation is the tanh approximation of GELU"
        )
    rows = {}
    if values["vocab_size"] == PADDED_VOCABULARY and "vocab_size" not in options.config_overrides:
        values["vocab_size"], rows = GPT2_VOCABULARY, {"transformer.wte.weight": GPT2_VOCABULARY}
        rows |= {} if tied else {"lm_head.weight": GPT2_VOCABULARY}
        notes.append(PADDING_NOTE)
    config = build_config(values, options.config_overrides)
    checkpoint = Checkpoint(RenamedSource(source, names, rows), NANOGPT, config, "lm", sizes_from, notes=notes)
    if (meta := path.with_name("meta.pkl")).is_file() and options.tokenizer is None:
        checkpoint.tokenizer = open_tokenizer(str(meta), config)
        notes.append(f"the tokenizer was read from {meta}")
    return checkpoint


def _nanogpt_args(path: Path, args: Any, options: Options) -> dict[str, Any]:
    """Translate `model_args` into our settings.

    Raises:
        UserError: names a missing size or a value of a wrong type.
    """
    if not isinstance(args, Mapping):
        raise UserError(f"{path}: model_args is a {type(args).__name__}, expected a dictionary")
    _refuse_unknown(path, args, ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "bias", "dropout"), "nanoGPT")
    sizes = {
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_embd": "n_embd",
        "block_size": "n_positions",
        "vocab_size": "vocab_size",
    }
    values: dict[str, Any] = {}
    for name, ours in sizes.items():
        if name in args:
            values[ours] = _typed(path, args, name, int, "a whole number")
        elif ours not in options.config_overrides:
            raise UserError(f"{path}: model_args has no {name}: pass --config_overrides {ours}=N")
    bias = _typed(path, args, "bias", bool, "true or false") if "bias" in args else True  # the first versions always had biases
    dropout = _typed(path, args, "dropout", float, "a number") if "dropout" in args else 0.0
    values.setdefault("vocab_size", options.config_overrides.get("vocab_size"))
    return values | {"drop_rate": dropout, "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias}


def _refuse_unknown(path: Path, args: Mapping, known: Iterable[str], program: str, name: str = "model_args") -> None:
    """A setting that the original program does not have may change the outputs.

    Raises:
        UserError: names each.
    """
    if unknown := [f"{one_line(str(key), 60)}={one_line(repr(args[key]), 60)}" for key in args if key not in known]:
        raise UserError(
            f"{path}: {name} has settings that {program} does not have: {', '.join(unknown[:10])}; if they do not change the outputs, "
            f"remove them from {name} and save the file again"
        )


def _typed(path: Path, args: Mapping, name: str, kind: type, needed: str) -> Any:
    value = args[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise UserError(f"{path}: {name} of model_args is {str(value)[:60]!r}, of type {type(value).__name__}: expected {needed}")
    return value


def _nanogpt_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]], options: Options, notes: list[str]) -> dict[str, Any]:
    """Derive the sizes of a state dict without `model_args` from its shapes."""
    (vocabulary, width), (positions, _) = shapes["transformer.wte.weight"], shapes["transformer.wpe.weight"]
    notes.append("dropout is not in the file: set to 0")
    return {
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_layer": len({name.split(".")[2] for name in shapes if name.startswith("transformer.h.")}),
        "n_head": heads_of(path, width, options, notes),
        "n_positions": positions,
        "n_inner": next(iter(shapes.get("transformer.h.0.mlp.c_fc.weight", ())), None),
        "drop_rate": 0.0,
        "qkv_bias": "transformer.h.0.attn.c_attn.bias" in shapes,
        "o_bias": "transformer.h.0.attn.c_proj.bias" in shapes,
        "mlp_bias": "transformer.h.0.mlp.c_fc.bias" in shapes,
    }


def open_lecture(path: Path, options: Options) -> Checkpoint:
    """Open the GPT of Karpathy's lecture ("Let's build GPT", `gpt.py`): one matrix per head, ReLU, an output head with a bias.

    Raises:
        UserError: a broken or unsafe file, or an incomplete model.
    """
    source, rest = read_state_dict(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    for name in (
        "token_embedding_table.weight",
        "position_embedding_table.weight",
        "lm_head.weight",
        "blocks.0.ffwd.net.0.weight",
    ):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}: it is not a complete model of Karpathy's lecture")
    layers = {name.split(".")[1] for name in shapes if name.startswith("blocks.")}
    heads = {match[1] for name in shapes if (match := re.match(r"blocks\.0\.sa\.heads\.(\d+)\.", name))}
    made = {
        f"blocks.{layer}.sa.{kind}.weight": [
            f"blocks.{layer}.sa.heads.{head}.{kind}.weight" for head in map(str, range(len(heads)))
        ]
        for layer in layers
        for kind in ("query", "key", "value")
    }
    if missing := [name for names in made.values() for name in names if len(shapes.get(name, ())) != 2]:
        raise UserError(f"{path} has no matrix {missing[0]}: it is not a complete model of Karpathy's lecture")
    kept = {name: name for name in shapes if not name.endswith(".tril")}  # the causal masks
    joined = CutSource(RenamedSource(source, kept), made, lambda name, parts: torch.cat(parts))
    vocabulary, width = shapes["token_embedding_table.weight"]
    notes = not_converted(rest)
    notes += [f"the matrices of {len(heads)} heads were joined", "dropout is not in the file: set to 0"]
    size = shapes["blocks.0.sa.heads.0.key.weight"][0]
    if size != width:
        notes.append(
            f"attention scores are scaled by the head size, {size}**-0.5, as in the lecture's repository; if your copy has C**-0.5, from "
            f"the video, C is the width: multiply its query weights by ({size} / {width})**0.5 first"
        )
    notes.append(
        "pre-norm is assumed, as in the lecture; a post-norm GPT with the same names, as in freeCodeCamp's course, computes something else "
        "and is not supported"
    )
    values = {
        "vocab_size": vocabulary,
        "n_embd": width,
        "n_layer": len(layers),
        "n_head": len(heads),
        "head_dim": size,
        "n_positions": shapes["position_embedding_table.weight"][0],
        "n_inner": shapes["blocks.0.ffwd.net.0.weight"][0],
        "hidden_act": "relu",
        "drop_rate": 0.0,
        "tie_word_embeddings": False,
        "lm_head_bias": "lm_head.bias" in shapes,
    }
    return Checkpoint(
        joined,
        LECTURE,
        build_config(values, options.config_overrides),
        "lm",
        f"the sizes derived from the shapes in {path}",
        notes=notes,
    )


def open_llama2c(path: Path, options: Options) -> Checkpoint:
    """Open llama2.c's `ckpt.pt`, a state dict with Meta's names, with Meta's `params.json` beside it if there is one, or a `.bin` of
    version 0 or 1.

    Raises:
        UserError: a broken or unsafe file, an incomplete model, or an unknown number of heads.
    """
    notes: list[str] = []
    if path.suffix == ".bin":
        source, sizes = read_llama2c_bin(path)
    else:
        source, sizes = _llama2c_state(path, options, notes)
    described = source.describe()
    names = {name: name for name in described}
    tied = "output.weight" not in names or equal_bits(source.get("output.weight"), source.get("tok_embeddings.weight"))
    if tied:
        names.pop("output.weight", None)
    values = {
        "vocab_size": sizes["vocab_size"],
        "hidden_size": sizes["dim"],
        "intermediate_size": sizes["hidden_dim"],
        "num_hidden_layers": sizes["n_layers"],
        "num_attention_heads": sizes["n_heads"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "max_position_embeddings": sizes["max_seq_len"],
        "position_embedding_type": "rope",
        "rope_parameters": {"rope_type": "default", "rope_theta": sizes.get("rope_theta", 10000.0)},
        "norm_type": "rmsnorm",
        "norm_eps": sizes.get("norm_eps", 1e-5),
        "mlp_type": "gated",
        "hidden_act": "silu",
        "qkv_bias": False,
        "o_bias": False,
        "mlp_bias": False,
        "drop_rate": sizes.get("dropout", 0.0),
        "tie_word_embeddings": tied,
        "bos_token_id": 1 if sizes["vocab_size"] > 2 else None,  # of Llama's tokenizer, and of those that llama2.c trains
        "eos_token_id": 2 if sizes["vocab_size"] > 2 else None,
    }
    config = build_config(values, options.config_overrides)
    heads = {"wq.weight": config.num_attention_heads, "wk.weight": config.num_key_value_heads or config.num_attention_heads}
    paired = PairedSource(RenamedSource(source, names), heads)
    return Checkpoint(paired, LLAMA2C, config, "lm", f"the sizes in {path}", notes=notes)


LLAMA2C_ARGS: tuple[str, ...] = (
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "vocab_size",
    "hidden_dim",
    "multiple_of",
    "norm_eps",
    "max_seq_len",
    "dropout",
)
META_ARGS = ("ffn_dim_multiplier", "rope_theta", "use_scaled_rope", "max_batch_size")  # of Meta's params.json, besides


def _llama2c_state(path: Path, options: Options, notes: list[str]) -> tuple[Source, dict[str, Any]]:
    """Tensors and sizes of a state dict: from their shapes, `model_args` or `params.json`.

    Raises:
        UserError: an incomplete model, a setting that is missing or contradicts the shapes.
    """
    source, rest = read_state_dict(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    for name in (
        "tok_embeddings.weight",
        "layers.0.attention.wq.weight",
        "layers.0.attention.wk.weight",
        "layers.0.feed_forward.w1.weight",
    ):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}: it is not a complete llama2.c model")
    notes += not_converted(rest, "model_args")
    args: Any = rest.get("model_args", {})
    if not isinstance(args, Mapping):
        raise UserError(f"{path}: model_args is a {type(args).__name__}, expected a dictionary")
    known, place = LLAMA2C_ARGS, "model_args"
    if not args and (params := path.with_name("params.json")).is_file():
        args, known, place = read_json(params), LLAMA2C_ARGS + META_ARGS, "params.json"
        notes.append(f"the settings were read from {params}")
    _refuse_unknown(path, args, known, "llama2.c", place)
    vocabulary, width = shapes["tok_embeddings.weight"]
    given = [options.config_overrides[name] for name in HEAD_NAMES if name in options.config_overrides]
    if "n_heads" not in args and not given:
        raise UserError(f"{path}: {place} has no n_heads, which cannot be derived: pass --config_overrides n_heads=N")
    heads = given[0] if given else _typed(path, args, "n_heads", int, "a whole number")
    positions = options.config_overrides.get("context_length", options.config_overrides.get("max_position_embeddings"))
    if "max_seq_len" not in args and positions is None:
        raise UserError(f"{path}: {place} has no max_seq_len, which cannot be derived: pass --config_overrides context_length=N")
    if type(heads) is not int or heads < 1 or width % heads:
        raise UserError(f"{path}: width {width} is not a multiple of n_heads {heads}")
    if args.get("use_scaled_rope") and "rope_parameters" not in options.config_overrides:
        raise UserError(
            f"{path}: use_scaled_rope does not tell by what factor: pass Llama 3.1's (8.0) or 3.2's (32.0), --config_overrides "
            '\'{"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, '
            '"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}\''
        )
    sizes = {
        "dim": width,
        "hidden_dim": shapes["layers.0.feed_forward.w1.weight"][0],
        "n_layers": len({name.split(".")[1] for name in shapes if name.startswith("layers.")}),
        "n_heads": heads,
        "n_kv_heads": shapes["layers.0.attention.wk.weight"][0] // (width // heads),
        "vocab_size": vocabulary,
        "max_seq_len": _typed(path, args, "max_seq_len", int, "a whole number") if "max_seq_len" in args else positions,
    }
    for name in ("dim", "n_layers", "n_kv_heads", "vocab_size"):
        if args.get(name) not in (None, -1, sizes[name]):  # -1: Llama 2's vocabulary is its tokenizer's
            raise UserError(f"{path}: {name} is {one_line(repr(args[name]), 60)}, but the tensors have {sizes[name]}")
    for name in ("dropout", "norm_eps", "rope_theta"):
        if name in args:
            sizes[name] = _typed(path, args, name, float, "a number")
    if "rope_theta" not in args and "rope_parameters" not in options.config_overrides:
        notes.append("rope_theta is 10,000, as in llama2.c and Llama 2; for another, pass --config_overrides rope_parameters=...")
    if "norm_eps" not in args:
        notes.append("norm_eps is 1e-05, as in llama2.c")
    return source, sizes


def is_llama2c_bin(path: Path) -> bool:
    """Whether a `.bin` is a llama2.c file, which is not a pickle."""
    with path.open("rb") as file:
        start = file.read(4)
    return path.suffix == ".bin" and start[:2] != b"PK" and start[:1] != b"\x80"


def read_llama2c_bin(path: Path) -> tuple[Source, dict[str, int]]:
    """The memory-mapped tensors of a `.bin`, and its header.

    Raises:
        UserError: another version, invalid sizes, or a file whose length does not match the sizes.
    """
    total = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER_BYTES)
    magic, version = struct.unpack("<Ii", header[:8]) if len(header) >= 8 else (0, 0)
    if magic == LLM_C:
        raise UserError(
            f"{path} is a checkpoint of llm.c: convert it to transformers' GPT-2 with llm.c's dev/eval/export_hf.py first"
        )
    if magic != MAGIC:
        version = 0
    elif version != 1:
        raise UserError(
            f"{path} is a llama2.c file of version {version}; only 0 and 1 (float32) are supported: convert the original ckpt.pt"
        )
    if len(header) < (HEADER_BYTES if version else 28):
        raise UserError(f"{path} is truncated: it has {total:,} bytes")
    sizes = dict(zip(SIZES, struct.unpack_from("<7i", header, 8 if version else 0)))
    shared = header[36] == 1 if version else sizes["vocab_size"] > 0  # version 0 negates the vocabulary where the head is its own
    sizes["vocab_size"] = abs(sizes["vocab_size"])
    if wrong := [f"{name} {size:,}" for name, size in sizes.items() if not 0 < size < 10_000_000]:
        raise UserError(f"{path} is not a llama2.c file or is damaged: its header contains {', '.join(wrong)}")
    if sizes["dim"] % sizes["n_heads"] or sizes["n_heads"] % sizes["n_kv_heads"] or sizes["n_layers"] > 10_000:
        raise UserError(f"{path} is not a llama2.c file or is damaged: its header contains {sizes}")
    places = _places(sizes, version, shared)
    needed = (HEADER_BYTES if version else 28) + 4 * sum(math.prod(shape) for _, shape in places)
    if needed != total:
        raise UserError(
            f"{path} has {total:,} bytes, but the sizes in its header need {needed:,}: it is not a llama2.c file or is truncated"
        )
    data = np.memmap(path, dtype="<f4", mode="c", offset=HEADER_BYTES if version else 28)  # never written to
    tensors, start = {}, 0
    for name, shape in places:
        count = math.prod(shape)
        if name:
            tensors[name] = torch.from_numpy(data[start : start + count]).view(shape)
        start += count
    return StateDictSource(tensors), sizes


def _places(sizes: dict[str, int], version: int, shared: bool) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes in the order of the file; version 0 also contains rotary tables, which have an empty name here."""
    dim, inner, layers, vocabulary = sizes["dim"], sizes["hidden_dim"], range(sizes["n_layers"]), sizes["vocab_size"]
    head = dim // sizes["n_heads"]
    shapes = {
        "attention_norm": (dim,),
        "attention.wq": (dim, dim),
        "attention.wk": (head * sizes["n_kv_heads"], dim),
        "attention.wv": (head * sizes["n_kv_heads"], dim),
        "attention.wo": (dim, dim),
        "ffn_norm": (dim,),
        "feed_forward.w1": (inner, dim),
        "feed_forward.w2": (dim, inner),
        "feed_forward.w3": (inner, dim),
    }
    embedding, norm, table = (
        ("tok_embeddings.weight", (vocabulary, dim)),
        ("norm.weight", (dim,)),
        ("", (sizes["max_seq_len"], head // 2)),
    )
    matrices = [name for name in shapes if "norm" not in name]

    def blocks(names: Iterable[str]) -> list[tuple[str, tuple[int, ...]]]:
        return [(f"layers.{layer}.{name}.weight", shapes[name]) for name in names for layer in layers]

    if version:
        places = [*blocks(["attention_norm", "ffn_norm"]), norm, embedding, *blocks(matrices)]
    else:
        places = [embedding, *blocks(shapes), norm, table, table]
    return places if shared else [*places, ("output.weight", (vocabulary, dim))]


NANOCHAT = {  # features of every nanochat model, then of later ones, by their tensor names
    "": "logits capped by a tanh (softcap)",
    "value_embeds.": "value embeddings",
    "ve_gate": "gates of value embeddings",
    "resid_lambdas": "scales of the residual stream (resid_lambdas)",
    "x0_lambdas": "the embedding added to every layer (x0_lambdas)",
    "smear": "tokens mixed with those before (smear)",
    "backout": "a middle layer taken back out (backout)",
}


def refuse_nanochat(path: Path, names: Mapping[str, Any]) -> None:
    """Refuse a checkpoint of nanochat.

    Raises:
        UserError: always; names what the model has and this architecture does not.
    """
    found = [what for part, what in NANOCHAT.items() if any(part in name for name in names)]
    raise UserError(
        f"{path} has the tensor names of nanochat or modded-nanogpt, which are not supported: nanochat has {', '.join(found)}"
    )
