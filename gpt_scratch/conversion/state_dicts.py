"""State dicts without a configuration: reading them, and the book's `GPTModel` with its variants, Llama and Qwen 3.

Settings that a file does not contain (heads, dropout, LoRA's alpha) must be passed, or are derived and reported; never guessed silently.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from .checkpoint import PUBLISHED_HEADS, Checkpoint, Options, build_config
from .sources import (
    DTYPES,
    OTHER_DTYPES,
    PLAIN_WEIGHTS,
    LoraSource,
    RenamedSource,
    SafetensorsSource,
    Source,
    StateDictSource,
    equal_bits,
    load_pickle_safely,
)
from .weight_maps import BOOK, SAME

# Features of the book's later variants that this architecture does not support, by tensor names.
BEYOND = {
    r"\.ff\.gate\.|\.ff\.fc\d\.\d": "a mixture of experts",
    r"(?i)\.att\.W_(d|u)(q|k|v|kv)\b": "multi-head latent attention",
    r"\.att\.(indexer|W_gate|W_beta|A_log)": "attention other than softmax over all keys",
}
GPT2_VOCABULARY = 50257
PADDED_VOCABULARY = 50304  # the next multiple of 64, which is faster on a GPU; the last 47 rows are unused
PADDING_NOTE = "the vocabulary was padded from 50,257 to 50,304 rows: the last 47, unused rows were removed"
WRAPPERS = ("model_state_dict", "model", "state_dict", "model_state", "state")
HEAD_NAMES = ("n_head", "n_heads", "num_attention_heads")
# Parts of names: added by torch.compile, FSDP, activation checkpointing and Lightning Fabric, at the beginning or at each block.
WRAPPING = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
# Beginnings of tensor names and their formats, in the order in which they are tried.
STARTS = {
    "trf_blocks.": "book",
    "blocks.0.sa.heads.": "lecture",
    "tok_embeddings.": "llama2c",
    "layers.0.attention.": "llama2c",
    "transformer.h.0.norm_1.": "litgpt",
    "transformer.h.": "nanogpt",
}
KNOWN = (*STARTS, "h.0.attn.c_attn.", "model.embed_tokens.")  # also those of transformers
SAVE_STATE = "save the tensors by name, torch.save(model.state_dict(), 'weights.pth')"


def read_state_dict(path: Path) -> tuple[Source, Mapping[str, Any]]:
    """The tensors of a file, with prefixes removed from their names, and all other contents.

    Raises:
        UserError: a broken or unsafe file, a file without tensors, or with quantized or sparse tensors.
    """
    if path.suffix == ".safetensors":
        source: Source = SafetensorsSource(path)
        return RenamedSource(source, _plain_names(list(source.describe()))), {}
    content = load_pickle_safely(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains a {type(content).__name__}, not a dictionary of tensors: {SAVE_STATE}")
    state = _state_of(content, path)
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    refuse_unreadable(tensors, path)
    rest = {str(name): value for name, value in content.items() if name not in tensors and value is not state}
    rest |= {str(name): value for name, value in state.items() if name not in tensors and state is not content}
    return RenamedSource(StateDictSource(tensors), _plain_names(list(tensors))), rest


def refuse_unreadable(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Refuse tensors of a pickle that cannot be converted.

    Raises:
        UserError: names that are not strings; quantized, sparse or empty tensors.
    """
    if wrong := [name for name in tensors if not isinstance(name, str)]:
        raise UserError(f"{path}: the name of a tensor is {one_line(repr(wrong[0]), 100)}, which is not a string")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = "quantized" if tensor.is_quantized else str(tensor.layout).removeprefix("torch.")
            raise UserError(f"{path}: {name} is a {kind} tensor: save the plain weights (tensor.dequantize(), tensor.to_dense())")
        if tensor.dtype not in (*DTYPES.values(), *OTHER_DTYPES.values()):
            raise UserError(f"{path}: {name} is of type {tensor.dtype}. {PLAIN_WEIGHTS}")
    if 2 * sum(not tensor.numel() for tensor in tensors.values()) > len(tensors):
        raise UserError(
            f"{path}: most tensors are empty, as in a part of a sharded model (DeepSpeed's ZeRO-3, FSDP): save the whole model, for "
            "DeepSpeed with zero_to_fp32.py"
        )


def not_converted(rest: Mapping[str, Any], *used: str) -> list[str]:
    """A note about the contents of a file that are not converted; none if there are only the `used` ones."""
    names = [one_line(name, 100) for name in rest if name not in used]
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return [f"not converted, since these are not the model's tensors: {', '.join(names[:10])}{more}"] if names else []


def _state_of(content: Mapping, path: Path) -> Mapping:
    """The mapping of names to tensors in a file: the file itself, or one of its entries, under any name.

    Raises:
        UserError: there is none, or several and none has a common name.
    """
    found = {name: value for name, value in content.items() if isinstance(value, Mapping) and _holds_tensors(value)}
    for name in WRAPPERS:
        if name in found:
            return found[name]
    if _holds_tensors(content):
        return content
    others = [name for name in found if "optim" not in str(name)]
    if len(others) == 1:
        return found[others[0]]
    if others:
        raise UserError(
            f"{path} contains several sets of tensors, {', '.join(map(str, others[:5]))}: save the one to convert in its own file"
        )
    entries = one_line(", ".join(map(str, list(content)[:5])), 200)
    raise UserError(f"{path} contains no named tensors, neither directly nor in one of its entries, {entries}: {SAVE_STATE}")


def _holds_tensors(value: Mapping) -> bool:
    return any(isinstance(tensor, torch.Tensor) and getattr(tensor, "ndim", 0) for tensor in value.values())


def _plain_names(names: list[str]) -> dict[str, str]:
    """Names of tensors to the same names without what wrappers add, and without the name of an attribute that holds the whole model.

    >>> _plain_names(["module.trf_blocks.0._orig_mod.norm1.scale", "tok_emb.weight"])
    {'module.trf_blocks.0._orig_mod.norm1.scale': 'trf_blocks.0.norm1.scale', 'tok_emb.weight': 'tok_emb.weight'}
    >>> _plain_names(["net.transformer.h.0.ln_1.weight", "net.lm_head.weight"])["net.lm_head.weight"]
    'lm_head.weight'
    """
    plain = {name: _unwrapped(name) for name in names}
    inner = {name: new.partition(".")[2] for name, new in plain.items()}
    one_prefix = len({new.partition(".")[0] for new in plain.values()}) == 1
    if one_prefix and not _any_known(plain.values()) and _any_known(inner.values()):
        return inner
    return plain


def _unwrapped(name: str) -> str:
    name = ".".join(part for part in name.split(".") if part not in WRAPPING)
    while name.startswith("module."):  # DistributedDataParallel
        name = name.removeprefix("module.")
    return name


def _any_known(names: Iterable[str]) -> bool:
    return any(name.startswith(KNOWN) for name in names)


def heads_of(path: Path, width: int, options: Options, notes: list[str]) -> int:
    """The number of heads, which cannot be derived from tensors: from the command line, or GPT-2's published sizes.

    Raises:
        UserError: the number is unknown.
    """
    given = [options.config_overrides[name] for name in HEAD_NAMES if name in options.config_overrides]
    if given:
        return given[0]
    if width not in PUBLISHED_HEADS:
        raise UserError(
            f"{path}: the number of heads is not in the file, and width {width} is not one of GPT-2's published sizes: "
            "pass --config_overrides n_head=N"
        )
    notes.append(f"the number of heads is not in the file: set to {PUBLISHED_HEADS[width]}, as in GPT-2 of width {width}")
    return PUBLISHED_HEADS[width]


def open_book(path: Path, options: Options) -> Checkpoint:
    """Open a state dict of the book's `GPTModel`, of its fast variant, its classifier, or with LoRA layers.

    Raises:
        UserError: a broken or unsafe file, an incomplete model, or a missing setting.
    """
    source, rest = read_state_dict(path)
    notes = not_converted(rest)
    if any(".lora." in name for name in source.describe()):
        source = _merged_lora(path, source, options, notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    firsts = {what: next((name for name in shapes if re.search(pattern, name)), None) for pattern, what in BEYOND.items()}
    if beyond := [f"{what} ({one_line(name, 100)})" for what, name in firsts.items() if name]:
        raise UserError(f"{path} has {' and '.join(beyond)}, which this architecture does not support")
    for name in ("tok_emb.weight", "out_head.weight"):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}: it is not a complete model of the book")
    vocabulary, width = shapes["tok_emb.weight"]
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "emb_dim": width,
        "n_layers": len({name.split(".")[1] for name in shapes if name.startswith("trf_blocks.")}),
        "drop_rate": 0.0,
        "qkv_bias": bool({"trf_blocks.0.att.W_query.bias", "trf_blocks.0.att.qkv.bias"} & shapes.keys()),
        "o_bias": bool({"trf_blocks.0.att.out_proj.bias", "trf_blocks.0.att.proj.bias"} & shapes.keys()),
        **_book_mlp(shapes),
        **_book_positions(path, shapes, options, notes),
    }
    notes.append("dropout is not in the file: set to 0")
    values |= _book_heads(path, shapes, options, notes)
    if "out_head.bias" in shapes or shapes["out_head.weight"][0] != vocabulary:
        return _book_classifier(path, source, values, options, notes)

    names, rows = {name: name for name in shapes}, {}
    values["tie_word_embeddings"] = equal_bits(source.get("out_head.weight"), source.get("tok_emb.weight"))
    if values["tie_word_embeddings"]:
        del names["out_head.weight"]
        notes.append("out_head equals tok_emb bit for bit: the head is tied to the embedding")
    else:
        notes.append("out_head differs from tok_emb: the head is not tied")
    if vocabulary == PADDED_VOCABULARY and "vocab_size" not in options.config_overrides:
        values["vocab_size"] = GPT2_VOCABULARY
        rows = {"tok_emb.weight": GPT2_VOCABULARY, "out_head.weight": GPT2_VOCABULARY}
        notes.append(PADDING_NOTE)
    config = build_config(values, options.config_overrides)
    return Checkpoint(
        RenamedSource(source, names, rows), BOOK, config, "lm", f"the sizes derived from the shapes in {path}", notes=notes
    )


def _book_mlp(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The plain MLP of the book's GPT, or the gated one of its Llama, Qwen 3 and ch04/07_moe."""
    gated = "trf_blocks.0.ff.fc1.weight" in shapes
    rows = _rows(shapes, "trf_blocks.0.ff.fc1.weight" if gated else "trf_blocks.0.ff.layers.0.bias")
    values = {"mlp_type": "gated", "hidden_act": "silu", "mlp_bias": False} if gated else {}
    return values | {"intermediate_size": rows or None}


def _rows(shapes: Mapping[str, tuple[int, ...]], name: str) -> int:
    """Number of rows of a tensor; 0 if it is missing or a scalar."""
    return next(iter(shapes.get(name, ())), 0)


def _book_positions(path: Path, shapes: Mapping[str, tuple[int, ...]], options: Options, notes: list[str]) -> dict[str, Any]:
    """Settings of positions and norms: learned positions of the book's GPT, or rotary ones, whose settings are not in the file.

    Raises:
        UserError: rotary positions without their settings on the command line.
    """
    if len(shapes.get("pos_emb.weight", ())) == 2:
        if "sliding_window" not in options.config_overrides:
            notes.append(
                "the book's variant with a sliding window (ch04/06_swa) has the same tensors: for a window in every layer "
                "(sliding_window_stride -1), pass --config_overrides sliding_window=N; layers with and without a window cannot be mixed"
            )
        return {"context_length": shapes["pos_emb.weight"][0]}
    given = {GPTScratchConfig.attribute_map.get(name, name) for name in options.config_overrides}
    if lacking := {"max_position_embeddings", "rope_parameters"} - given:
        raise UserError(
            f"{path} has rotary positions, whose settings are not in the file: pass {' and '.join(sorted(lacking))}, e.g. "
            '--config_overrides \'{"context_length": 40960, "rope_parameters": {"rope_theta": 1000000.0}}\''
        )
    eps = 1e-6 if "trf_blocks.0.att.q_norm.scale" in shapes else 1e-5
    notes.append(f"norm_eps is not in the file: set to {eps:g}, as in the book's {'Qwen 3' if eps == 1e-6 else 'Llama'}")
    return {"position_embedding_type": "rope", "norm_type": "rmsnorm", "norm_eps": eps}


def _book_heads(path: Path, shapes: Mapping[str, tuple[int, ...]], options: Options, notes: list[str]) -> dict[str, Any]:
    """The number of heads, from the width of the query norm, the command line, or GPT-2's published sizes.

    Raises:
        UserError: the number is unknown.
    """
    if "trf_blocks.0.att.qkv.weight" in shapes:
        queries = keys = _rows(shapes, "trf_blocks.0.att.qkv.weight") // 3
    else:
        queries, keys = (_rows(shapes, f"trf_blocks.0.att.W_{kind}.weight") for kind in ("query", "key"))
    given = [
        options.config_overrides[name]
        for name in ("n_heads", "n_head", "num_attention_heads")
        if name in options.config_overrides
    ]
    width = shapes["tok_emb.weight"][1]
    if "trf_blocks.0.att.q_norm.scale" in shapes:
        head = _rows(shapes, "trf_blocks.0.att.q_norm.scale") or 1
        values: dict[str, Any] = {
            "qk_norm": True,
            "head_dim": head,
            "n_heads": queries // head,
            "num_key_value_heads": keys // head,
        }
        return values if not given else values | {"n_heads": given[0]}
    heads = given[0] if given else PUBLISHED_HEADS.get(width)
    if heads is None or (not given and keys != queries):
        why = (
            f"width {width} is not one of GPT-2's published sizes"
            if heads is None
            else "its keys have fewer heads than its queries"
        )
        raise UserError(f"{path}: the number of heads is not in the file, and {why}: pass --config_overrides n_heads=N")
    if not given:
        notes.append(f"the number of heads is not in the file: set to {heads}, as in GPT-2 of width {width}")
    if type(heads) is not int or heads < 1 or keys == queries:
        return {} if given else {"n_heads": heads}
    if queries % heads or keys % max(1, queries // heads):
        raise UserError(f"{path}: n_heads={heads} does not fit {queries} rows of queries and {keys} of keys")
    notes.append(f"queries have {queries} rows and keys {keys}: {keys * heads // queries} key/value heads for {heads} heads")
    return {"num_key_value_heads": keys * heads // queries}


def _merged_lora(path: Path, source: Source, options: Options, notes: list[str]) -> Source:
    if options.lora_alpha is None or options.lora_scaling is None:
        raise UserError(
            f"{path} contains LoRA layers, whose alpha is not in the file: pass --lora_alpha, and --lora_scaling alpha_over_rank "
            "(appendix E) or alpha (chapter 6's script and the printed book)"
        )
    notes.append(f"LoRA layers were merged with alpha {options.lora_alpha:g}, scaling {options.lora_scaling}")
    return LoraSource(source, options.lora_alpha, options.lora_scaling == "alpha_over_rank")


def _book_classifier(path: Path, source: Source, values: dict[str, Any], options: Options, notes: list[str]) -> Checkpoint:
    """The book's classifier, whose head has a bias; ours has none.

    The bias b is moved into the shift of the final norm, whose output is only used by the head: if the rows of the head W are linearly
    independent, there is a d with W d = b, and W (n + d) = W n + b for every n.

    Raises:
        UserError: there is no such d.
    """
    described = source.describe()
    replaced = {}
    if "out_head.bias" in described:
        shift = "final_norm.shift" if "final_norm.shift" in described else "final_norm.bias"
        shapes = [tuple(described[name].shape) if name in described else () for name in ("out_head.bias", shift)]
        if shapes != [tuple(described["out_head.weight"].shape[:1]), tuple(described["out_head.weight"].shape[1:])]:
            raise UserError(f"{path}: out_head.bias and {shift} do not have the sizes of out_head.weight")
        weight, bias = source.get("out_head.weight").double(), source.get("out_head.bias").double()
        old = source.get(shift)
        try:
            new = (old.double() + torch.linalg.pinv(weight) @ bias).to(old.dtype)
        except torch.linalg.LinAlgError as error:  # NaN or infinite values
            raise UserError(f"{path}: out_head.weight has values that are not finite ({one_line(error, 100)})") from error
        remainder = (weight @ (new.double() - old.double()) - bias).abs().max().item()
        if not remainder <= 1e-6 * max(1.0, bias.abs().max().item()):
            raise UserError(
                f"{path}: the bias of out_head cannot be moved into the final norm (this package's classifier has none): the rows of "
                f"out_head.weight are linearly dependent (error {remainder:.1e})"
            )
        replaced[shift] = new
        notes.append(f"the bias of out_head was moved into {shift}, which gives the same scores (error {remainder:.0e})")
    names = {name: name for name in described if name != "out_head.bias"}
    classes = described["out_head.weight"].shape[0]
    labels: dict[str, Any] = {"num_labels": classes}
    if classes == 2:
        labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
        notes.append(
            "the classes are named ham and spam, as in the book's chapter 6; for another task change id2label in config.json"
        )
    notes.append(
        "the book classifies at the last position, including padding; this model at the last real token, by the attention mask: for the "
        "book's scores, pad every text to its length (120) and pass a mask of ones"
    )
    values |= labels | {"pad_token_id": 50256 if values["vocab_size"] > 50256 else None}
    weight_map = BOOK | {"out_head.weight": (SAME, ("score.weight",))}
    config = build_config(values, options.config_overrides)
    renamed, sizes_from = RenamedSource(source, names, replaced=replaced), f"the sizes derived from the shapes in {path}"
    return Checkpoint(renamed, weight_map, config, "classifier", sizes_from, notes=notes)
