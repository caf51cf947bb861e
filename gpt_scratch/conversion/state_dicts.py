"""Single files of tensors, whose configuration is in the program that wrote them: the book's `GPTModel` and nanoGPT's `ckpt.pt`.

What a file does not hold (heads, dropout, LoRA's alpha) is asked for, or derived and reported; never guessed silently.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError, one_line
from .checkpoint import PUBLISHED_HEADS, Checkpoint, Options, build_config
from .sources import LoraSource, RenamedSource, SafetensorsSource, Source, StateDictSource, load_pickle_safely
from .weight_maps import BOOK, NANOGPT, SAME

GPT2_VOCABULARY = 50257
PADDED_VOCABULARY = 50304  # the next multiple of 64: faster on a GPU, and its last 47 rows belong to no token
PADDING_NOTE = "the vocabulary was padded from 50,257 to 50,304 rows: the last 47, which no token has, were cut off"
PREFIXES = ("_orig_mod.", "module.")  # put in front of every name by torch.compile and DistributedDataParallel


def read_state_dict(path: Path) -> tuple[Source, Mapping[str, Any]]:
    """The tensors of a file, prefixes taken off their names, and everything else that it holds.

    Raises:
        UserError: a broken or unsafe file, or one without tensors.
    """
    if path.suffix == ".safetensors":
        source: Source = SafetensorsSource(path)
        return RenamedSource(source, {name: _stripped(name) for name in source.describe()}), {}
    content = load_pickle_safely(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    nested = [content[name] for name in ("model_state_dict", "model", "state_dict") if isinstance(content.get(name), Mapping)]
    state = nested[0] if nested else content
    tensors = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if wrong := [name for name in tensors if not isinstance(name, str)]:
        raise UserError(f"{path}: the name of a tensor is {one_line(repr(wrong[0]), 100)}, which is no text")
    if not tensors:
        raise UserError(f"{path} holds no tensors by name; its entries are {', '.join(map(str, list(content)[:5]))}")
    rest = {name: value for name, value in content.items() if name not in tensors and value is not state}
    return RenamedSource(StateDictSource(tensors), {name: _stripped(name) for name in tensors}), rest


def _stripped(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.split(".", 1)[1]
    return name


def open_nanogpt(path: Path, options: Options) -> Checkpoint:
    """nanoGPT's `ckpt.pt`: `model`, `model_args`, and the optimizer and progress of its training, which are left out.

    Raises:
        UserError: a broken or unsafe file, or one without `model_args`.
    """
    source, rest = read_state_dict(path)
    args: Any = rest.get("model_args")
    if not isinstance(args, Mapping):
        raise UserError(f"{path} holds no model_args; nanoGPT's ckpt.pt does, and the number of heads is nowhere else")
    if type(args.get("dropout", 0.0)) not in (int, float):
        raise UserError(f"{path}: dropout of model_args is {one_line(repr(args['dropout']), 100)}, a number is needed")
    for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"):
        if type(args.get(name)) is not int:
            raise UserError(f"{path}: {name} of model_args is {one_line(repr(args.get(name)), 100)}, a whole number is needed")
    names = {name: name for name in source.describe()}
    if not {"lm_head.weight", "transformer.wte.weight"} <= names.keys():
        raise UserError(f"{path} does not hold both lm_head.weight and transformer.wte.weight, as nanoGPT writes them")
    if not torch.equal(source.get("lm_head.weight"), source.get("transformer.wte.weight")):
        raise UserError(f"{path}: lm_head.weight differs from transformer.wte.weight; nanoGPT ties them")
    del names["lm_head.weight"]
    notes = [
        "the activation is the exact (erf) GELU of nanoGPT's nn.GELU(); for a checkpoint of its first versions, which had OpenAI's "
        "tanh form, pass --config_overrides hidden_act=gelu_new"
    ]
    vocabulary, rows = args["vocab_size"], {}
    if vocabulary == PADDED_VOCABULARY and "vocab_size" not in options.config_overrides:
        vocabulary, rows = GPT2_VOCABULARY, {"transformer.wte.weight": GPT2_VOCABULARY}
        notes.append(PADDING_NOTE)
    bias = bool(args.get("bias", True))  # its first versions had biases always
    values = {
        "vocab_size": vocabulary,
        "n_embd": args["n_embd"],
        "n_layer": args["n_layer"],
        "n_head": args["n_head"],
        "n_positions": args["block_size"],
        "drop_rate": float(args.get("dropout", 0.0)),
        "hidden_act": "gelu",
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bias,
    }
    config = build_config(values, options.config_overrides)
    return Checkpoint(RenamedSource(source, names, rows), NANOGPT, config, "lm", f"model_args of {path}", notes=notes)


def open_book(path: Path, options: Options) -> Checkpoint:
    """A state dict of the book's `GPTModel`, of its fast variant, its classifier, or with LoRA layers.

    Raises:
        UserError: a broken or unsafe file, no whole model, or a setting that the file does not hold.
    """
    source, rest = read_state_dict(path)
    notes = [f"left out, since it is not a weight of the model: {', '.join(map(str, rest))}"] if rest else []
    if any(".lora." in name for name in source.describe()):
        source = _merged_lora(path, source, options, notes)
    shapes = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    for name in ("tok_emb.weight", "pos_emb.weight", "out_head.weight"):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}: it is not a complete model of the book's")
    vocabulary, width = shapes["tok_emb.weight"]
    values: dict[str, Any] = {
        "vocab_size": vocabulary,
        "emb_dim": width,
        "n_layers": len({name.split(".")[1] for name in shapes if name.startswith("trf_blocks.")}),
        "context_length": shapes["pos_emb.weight"][0],
        "drop_rate": 0.0,
        "qkv_bias": bool({"trf_blocks.0.att.W_query.bias", "trf_blocks.0.att.qkv.bias"} & shapes.keys()),
    }
    notes.append("dropout is not in the file: set to 0")
    if not {"n_heads", "n_head", "num_attention_heads"} & options.config_overrides.keys():
        if width not in PUBLISHED_HEADS:
            raise UserError(
                f"{path}: the number of heads is not in the file, and width {width} is none of GPT-2's published sizes: "
                "pass --config_overrides n_heads=N"
            )
        values["n_heads"] = PUBLISHED_HEADS[width]
        notes.append(f"heads are not in the file: {PUBLISHED_HEADS[width]}, as GPT-2 of width {width} has")
    if "out_head.bias" in shapes or shapes["out_head.weight"][0] != vocabulary:
        return _book_classifier(path, source, values, options, notes)

    names, rows = {name: name for name in shapes}, {}
    values["tie_word_embeddings"] = torch.equal(source.get("out_head.weight"), source.get("tok_emb.weight"))
    if values["tie_word_embeddings"]:
        del names["out_head.weight"]
        notes.append("out_head equals tok_emb bit for bit: the head is tied to the embedding")
    else:
        notes.append("out_head differs from tok_emb: the head stays a tensor of its own")
    if vocabulary == PADDED_VOCABULARY and "vocab_size" not in options.config_overrides:
        values["vocab_size"] = GPT2_VOCABULARY
        rows = {"tok_emb.weight": GPT2_VOCABULARY, "out_head.weight": GPT2_VOCABULARY}
        notes.append(PADDING_NOTE)
    config = build_config(values, options.config_overrides)
    return Checkpoint(RenamedSource(source, names, rows), BOOK, config, "lm", f"the shapes in {path}", notes=notes)


def _merged_lora(path: Path, source: Source, options: Options, notes: list[str]) -> Source:
    if options.lora_alpha is None or options.lora_scaling is None:
        raise UserError(
            f"{path} holds LoRA layers, whose alpha is not in the file: pass --lora_alpha, and --lora_scaling alpha_over_rank "
            "(appendix E) or alpha (chapter 6's script and the printed book)"
        )
    notes.append(f"LoRA layers were merged with alpha {options.lora_alpha:g}, scaling {options.lora_scaling}")
    return LoraSource(source, options.lora_alpha, options.lora_scaling == "alpha_over_rank")


def _book_classifier(path: Path, source: Source, values: dict[str, Any], options: Options, notes: list[str]) -> Checkpoint:
    """The book's classifier: a head with a row a class and a bias, which ours does not have.

    The bias b moves into the shift of the final norm, which feeds nothing but the head: where the rows of the head W are independent,
    there is a d with W d = b, and W (n + d) = W n + b for every n.

    Raises:
        UserError: no such d.
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
        except torch.linalg.LinAlgError as error:  # NaN, or infinite values
            raise UserError(f"{path}: out_head.weight is no matrix of finite numbers ({one_line(error, 100)})") from error
        remainder = (weight @ (new.double() - old.double()) - bias).abs().max().item()
        if not remainder <= 1e-6 * max(1.0, bias.abs().max().item()):
            raise UserError(
                f"{path}: the bias of out_head cannot be moved into the final norm, and this package's classifier has none: the rows of "
                f"out_head.weight depend on one another (error {remainder:.1e})"
            )
        replaced[shift] = new
        notes.append(f"the bias of out_head was moved into {shift}, which gives the same scores (to {remainder:.0e})")
    names = {name: name for name in described if name != "out_head.bias"}
    classes = described["out_head.weight"].shape[0]
    labels: dict[str, Any] = {"num_labels": classes}
    if classes == 2:
        labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
        notes.append(
            "the classes are named ham and spam, as in the book's chapter 6; for another task change id2label in config.json"
        )
    notes.append(
        "the book scores the last position, padding included; this model scores the last real token, by the attention mask: for the "
        "book's scores pad every text to its length (120) and give a mask of ones"
    )
    values |= labels | {"pad_token_id": 50256 if values["vocab_size"] > 50256 else None}
    weight_map = BOOK | {"out_head.weight": (SAME, ("score.weight",))}
    config = build_config(values, options.config_overrides)
    return Checkpoint(
        RenamedSource(source, names, replaced=replaced), weight_map, config, "classifier", f"the shapes in {path}", notes=notes
    )
