"""Which format a checkpoint is in, and what configuration its tensors belong to. A format is recognized by its files and names, and says so."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from ..tokenization.gpt2 import load_gpt2_tokenizer
from .sources import LoraSource, RenamedSource, SafetensorsSource, Source, StateDictSource, load_pickle_safely
from .weight_maps import BOOK, HF_GPT2, LLAMA, NANOGPT, OPENAI, WeightMap

FORMATS = ("openai", "gpt2", "llama", "gguf", "book", "nanogpt", "gpt_scratch")
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25}  # GPT-2's sizes: width to heads
GPT2_VOCABULARY = 50257


@dataclass
class Options:
    """What a file does not tell, from the command line."""

    config_overrides: dict[str, Any] = field(default_factory=dict)
    lora_alpha: float | None = None
    lora_scaling: str | None = None
    tokenizer: str | None = None


@dataclass
class Checkpoint:
    """A recognized checkpoint, ready to be converted.

    reference: how transformers loads the same checkpoint, for comparison; `None` where it has no class for it.
    """

    format: str
    reason: str
    source: Source
    weight_map: WeightMap
    config: GPTScratchConfig
    head: str  # "lm", "classifier" or "base"
    tokenizer: PreTrainedTokenizerBase | None = None
    notes: list[str] = field(default_factory=list)
    reference: dict[str, Any] | None = None


def recognize(path: str, options: Options, wanted: str = "auto") -> Checkpoint:
    """Open `path` in the format it is in.

    Raises:
        UserError: an unknown format, a broken file, or something that the file does not tell and no option does.
    """
    location = Path(path)
    files = {file.name for file in location.iterdir()} if location.is_dir() else set()
    if not location.exists() and not location.with_name(location.name + ".index").is_file():
        if wanted in ("auto", "gpt2", "llama") and not location.is_absolute() and not location.suffix:
            location = _from_hub(path)
            files = {file.name for file in location.iterdir()}
        else:
            raise UserError(f"{path}: no such file or directory")
    if wanted != "auto" and wanted not in FORMATS:
        raise UserError(f"format {wanted!r} is unknown: choose auto or one of {', '.join(FORMATS)}")
    kind, reason = (wanted, "as asked for") if wanted != "auto" else _kind(location, files)
    openers = {"openai": _openai, "gpt2": _hub_directory, "llama": _hub_directory, "gpt_scratch": _hub_directory, "gguf": _gguf}
    opened = openers[kind](location, options) if kind in openers else _state_dict(location, kind, options)
    opened.format, opened.reason = kind, reason
    if options.tokenizer:
        opened.tokenizer = open_tokenizer(options.tokenizer, opened.config)
    return opened


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]))
    except Exception as error:  # not found, no access, no network: one message each
        raise UserError(f"{name} is neither a path nor a repository that can be fetched: {str(error).splitlines()[0]}") from error


def _kind(path: Path, files: set[str]) -> tuple[str, str]:
    if path.suffix == ".gguf":
        return "gguf", "its suffix is .gguf"
    if (
        any(name.endswith(".index") for name in files)
        or path.suffix == ".index"
        or path.with_name(path.name + ".index").is_file()
    ):
        return "openai", "there is a TensorFlow checkpoint index"
    if "config.json" in files:
        model_type = _json(path / "config.json").get("model_type")
        if model_type in ("gpt2", "gpt_scratch"):
            return model_type, f"config.json says model_type {model_type}"
        if model_type in ("llama", "mistral"):
            return "llama", f"config.json says model_type {model_type}"
        raise UserError(
            f"{path}: config.json says model_type {model_type!r}; gpt2, llama, mistral and gpt_scratch can be converted"
        )
    if path.is_dir():
        raise UserError(f"{path} holds neither config.json nor a TensorFlow index: name the checkpoint file itself")
    names, content = _names(path)
    if "model_args" in content or "transformer.wte.weight" in names:
        return (
            "nanogpt",
            "it holds model_args" if "model_args" in content else "its tensors are named transformer.wte.weight, ...",
        )
    if any(name.startswith("trf_blocks.") for name in names):
        return "book", "its tensors are named trf_blocks.0...."
    if any(name.startswith("transformer_blocks.") for name in names):
        raise UserError(
            f"{path} has post-norm blocks (transformer_blocks.N...), which GPT-2's pre-norm architecture cannot express"
        )
    if "wte.weight" in names:
        raise UserError(f"{path} holds GPT-2 tensors without the config.json that belongs to them: name a directory with both")
    raise UserError(f"{path}: unknown tensor names: {', '.join(sorted(names)[:5])}, ...")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold a JSON object")
    return content


def _names(path: Path) -> tuple[set[str], Mapping[str, Any]]:
    """Tensor names with prefixes taken off, and the other entries of the file."""
    if path.suffix == ".safetensors":
        return {_stripped(name) for name in SafetensorsSource(path).shapes()}, {}
    content = load_pickle_safely(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, not a dictionary of tensors")
    return {_stripped(name) for name in _state(content)}, content


def _state(content: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("model_state_dict", "model", "state_dict"):
        if isinstance(content.get(name), Mapping):
            return content[name]
    return content


def _stripped(name: str) -> str:
    """Without what torch.compile and DistributedDataParallel put in front."""
    while name.startswith(("_orig_mod.", "module.")):
        name = name.split(".", 1)[1]
    return name


def open_tokenizer(name: str, config: GPTScratchConfig) -> PreTrainedTokenizerBase:
    """A tokenizer by directory or Hub name; it must not have more tokens than the model."""
    limit = config.max_position_embeddings
    try:
        if (Path(name) / "encoder.json").is_file():
            tokenizer = load_gpt2_tokenizer(name, model_max_length=limit)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"tokenizer {name}: {' '.join(str(error).split())[:200]}") from error
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"tokenizer {name} has {len(tokenizer):,} tokens, the model only {config.vocab_size:,}")
    return tokenizer


def build_config(values: dict[str, Any], overrides: dict[str, Any]) -> GPTScratchConfig:
    """A configuration from what the checkpoint tells and what the user adds.

    Raises:
        UserError: an impossible value.
    """
    try:
        return GPTScratchConfig(**values | overrides)
    except (ValueError, TypeError) as error:
        raise UserError(f"configuration: {' '.join(str(error).split())[:300]}") from error


# OpenAI's TensorFlow checkpoints


def _openai(path: Path, options: Options) -> Checkpoint:
    from .tensorflow_bundle import TensorFlowCheckpoint

    checkpoint = TensorFlowCheckpoint(path)
    folder = path if path.is_dir() else path.parent
    hparams = _json(folder / "hparams.json")
    missing = [key for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer") if not isinstance(hparams.get(key), int)]
    if missing:
        raise UserError(f"{folder / 'hparams.json'} has no whole number {missing[0]}")
    sizes = {key: hparams[key] for key in ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")}
    names = [name for name in checkpoint.tensors if not _training_variable(name)]
    skipped = len(checkpoint.tensors) - len(names)
    tokenizer = None
    if (folder / "encoder.json").is_file():
        tokenizer = load_gpt2_tokenizer(folder, model_max_length=sizes["n_ctx"])
    config = build_config(sizes | {"qkv_bias": True}, options.config_overrides)
    return Checkpoint(
        "openai", "", TensorFlowSource(checkpoint, names), OPENAI, config, "lm", tokenizer,
        [f"{skipped} optimizer variables and counters were skipped"] if skipped else [],
    )  # fmt: skip


def _training_variable(name: str) -> bool:
    """Optimizer slots, their powers and counters, as fine-tuned checkpoints carry them; by name."""
    last = name.rsplit("/", 1)[-1]
    return (
        last.startswith(("Adam", "Adagrad", "Momentum", "RMSProp"))
        or last in ("global_step", "beta1_power", "beta2_power")
        or name.startswith("_CHECKPOINTABLE")
    )


class TensorFlowSource:
    """The model's variables of a TensorFlow checkpoint."""

    def __init__(self, checkpoint, names: list[str]):
        self.checkpoint, self.names = checkpoint, names

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every variable."""
        return {name: tuple(self.checkpoint.tensors[name].shape) for name in self.names}

    def get(self, name: str) -> torch.Tensor:
        """One variable, its checksum verified."""
        return torch.from_numpy(self.checkpoint.read(name))


# Directories as transformers writes them


def _hub_directory(path: Path, options: Options) -> Checkpoint:
    values = _json(path / "config.json")
    model_type = values.get("model_type")
    if model_type == "gpt2":
        config, weight_map, notes = gpt2_config(values, options.config_overrides), HF_GPT2, []
    elif model_type in ("llama", "mistral"):
        config, weight_map, notes = llama_config(path, values, options.config_overrides), LLAMA, []
    else:
        config, weight_map, notes = AutoConfig.from_pretrained(path), {}, []
    source = _weights(path)
    if model_type == "gpt2":
        names = {name: name.removeprefix("transformer.") for name in source.shapes()}
        source = RenamedSource(source, names)
    names = set(source.shapes())
    head = "classifier" if "score.weight" in names else "lm"
    if head == "lm" and "lm_head.weight" not in names and not config.tie_word_embeddings:
        raise UserError(f"{path}: the head is not tied, but there is no lm_head.weight")
    if head == "lm" and config.tie_word_embeddings and "lm_head.weight" in names:
        source = _without(source, "lm_head.weight")
    tokenizer = None
    if {"tokenizer.json", "vocab.json"} & {file.name for file in path.iterdir()}:
        tokenizer = open_tokenizer(str(path), config)
    return Checkpoint("", "", source, weight_map, config, head, tokenizer, notes, {"path": str(path)} if weight_map else None)


def _weights(path: Path) -> Source:
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path / name).is_file():
            return SafetensorsSource(path / name)
    if (path / "pytorch_model.bin").is_file():
        return StateDictSource(
            {k: v for k, v in load_pickle_safely(path / "pytorch_model.bin").items() if isinstance(v, torch.Tensor)}
        )
    raise UserError(f"{path} holds no model.safetensors and no pytorch_model.bin")


def _without(source: Source, *dropped: str) -> Source:
    return RenamedSource(source, {name: name for name in source.shapes() if name not in dropped})


COMMON = (
    "vocab_size",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "initializer_range",
)


def _common(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in COMMON if values.get(name) is not None}


def gpt2_config(values: dict[str, Any], overrides: dict[str, Any]) -> GPTScratchConfig:
    """transformers' GPT2Config, as a dictionary, in our terms.

    Raises:
        UserError: a setting that changes the function and that this architecture does not have; names it.
    """
    for name, usual in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False), ("add_cross_attention", False)):
        if values.get(name, usual) != usual:
            raise UserError(f"config.json: {name}={values[name]} cannot be expressed")
    names = ("n_embd", "n_layer", "n_head", "n_positions", "n_inner", "activation_function", "layer_norm_epsilon",
             "resid_pdrop", "embd_pdrop", "attn_pdrop", "tie_word_embeddings")  # fmt: skip
    ours = {name: values[name] for name in names if values.get(name) is not None}
    return build_config(_common(values) | ours | {"qkv_bias": True}, overrides)


def llama_config(path: Path, values: dict[str, Any], overrides: dict[str, Any]) -> GPTScratchConfig:
    """transformers' LlamaConfig or MistralConfig in our terms, rotary settings in today's or the older form.

    Raises:
        UserError: a setting that changes the function and that this architecture does not have; names it.
    """
    theirs = AutoConfig.from_pretrained(path)  # fills in the family's defaults, and reads both forms of the rotary settings
    window = values.get("sliding_window")
    if window is not None and window < values.get("max_position_embeddings", window + 1):
        raise UserError(f"config.json: sliding_window={window} cannot be expressed: every position attends to all before it")
    if getattr(theirs, "partial_rotary_factor", None) not in (None, 1.0):
        raise UserError(f"config.json: partial_rotary_factor={theirs.partial_rotary_factor} cannot be expressed")
    bias = bool(values.get("attention_bias", False))
    ours = {
        "hidden_size": theirs.hidden_size,
        "intermediate_size": theirs.intermediate_size,
        "num_hidden_layers": theirs.num_hidden_layers,
        "num_attention_heads": theirs.num_attention_heads,
        "num_key_value_heads": theirs.num_key_value_heads,
        "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
        "max_position_embeddings": theirs.max_position_embeddings,
        "hidden_act": theirs.hidden_act,
        "norm_eps": theirs.rms_norm_eps,
        "tie_word_embeddings": bool(theirs.tie_word_embeddings),
        "rope_parameters": {k: v for k, v in dict(theirs.rope_parameters).items() if k != "type"},
        "qkv_bias": bias,
        "o_bias": bias,
        "mlp_bias": bool(values.get("mlp_bias", False)),
        "attention_dropout": float(theirs.attention_dropout or 0),
    }
    fixed = {
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "mlp_type": "gated",
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
    }
    return build_config(_common(theirs.to_dict()) | _special_ids(theirs) | ours | fixed, overrides)


def _special_ids(config: Any) -> dict[str, Any]:
    """Also `None`: our own defaults are GPT-2's ids, which would be wrong in another vocabulary."""
    return {name: getattr(config, name, None) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _gguf(path: Path, options: Options) -> Checkpoint:
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError('GGUF files are read through the gguf package: pip install "gpt_scratch[gguf]"') from error
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:
        raise UserError(f"{path} cannot be read as GGUF: {' '.join(str(error).split())[:200]}") from error
    if model.config.model_type != "llama":
        raise UserError(f"{path} holds a {model.config.model_type} model; llama can be converted from GGUF")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        config = llama_config(Path(folder), _json(Path(folder) / "config.json"), options.config_overrides)
    state = {
        name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight" or not config.tie_word_embeddings
    }
    notes = ["quantized weights were dequantized to float32"]
    return Checkpoint("gguf", "", StateDictSource(state), LLAMA, config, "lm", tokenizer, notes, {"model": model})


# Single files: the book's and nanoGPT's


def _state_dict(path: Path, kind: str, options: Options) -> Checkpoint:
    content: Mapping[str, Any] = {}
    if path.suffix == ".safetensors":
        source: Source = SafetensorsSource(path)
    else:
        content = load_pickle_safely(path)
        tensors = {name: value for name, value in _state(content).items() if isinstance(value, torch.Tensor)}
        if not tensors:
            raise UserError(f"{path} holds no tensors")
        source = StateDictSource(tensors)
    source = RenamedSource(source, {name: _stripped(name) for name in source.shapes()})
    return _nanogpt(path, source, content, options) if kind == "nanogpt" else _book(path, source, options)


def _nanogpt(path: Path, source: Source, content: Mapping[str, Any], options: Options) -> Checkpoint:
    args = content.get("model_args")
    if not isinstance(args, Mapping):
        raise UserError(f"{path} holds no model_args: nanoGPT's ckpt.pt has them, and the number of heads is nowhere else")
    missing = [
        name for name in ("n_layer", "n_head", "n_embd", "block_size", "vocab_size") if not isinstance(args.get(name), int)
    ]
    if missing:
        raise UserError(f"{path}: model_args has no whole number {missing[0]}")
    notes = []
    vocabulary = args["vocab_size"]
    if vocabulary == 50304:
        # nanoGPT pads GPT-2's vocabulary to a multiple of 64; no token has the last 47 ids, and none can be decoded.
        vocabulary = GPT2_VOCABULARY
        notes.append("the vocabulary was padded from 50,257 to 50,304: the last 47 rows were cut off")
    vocabulary = options.config_overrides.get("vocab_size", vocabulary)
    cut = {"transformer.wte.weight": vocabulary, "lm_head.weight": vocabulary}
    source = RenamedSource(source, {name: name for name in source.shapes()}, rows=cut)
    if "lm_head.weight" not in source.shapes():
        raise UserError(f"{path}: there is no lm_head.weight, which nanoGPT stores beside the embedding that it is tied to")
    if not torch.equal(source.get("lm_head.weight"), source.get("transformer.wte.weight")):
        raise UserError(f"{path}: lm_head.weight differs from transformer.wte.weight, but nanoGPT ties them")
    bias = bool(args.get("bias", False))
    values = {
        "vocab_size": vocabulary, "n_embd": args["n_embd"], "n_layer": args["n_layer"], "n_head": args["n_head"],
        "n_positions": args["block_size"], "drop_rate": float(args.get("dropout", 0.0)), "hidden_act": "gelu",
        "qkv_bias": bias, "o_bias": bias, "mlp_bias": bias,
    }  # fmt: skip
    notes.append("the activation is the exact (erf) GELU, as nanoGPT's nn.GELU()")
    config = build_config(values, options.config_overrides)
    return Checkpoint("nanogpt", "", _without(source, "lm_head.weight"), NANOGPT, config, "lm", None, notes)


def _book(path: Path, source: Source, options: Options) -> Checkpoint:
    notes = []
    if any(".lora." in name for name in source.shapes()):
        if options.lora_alpha is None or options.lora_scaling is None:
            raise UserError(
                f"{path} holds LoRA layers; their alpha is not in the file: pass --lora_alpha, and --lora_scaling alpha_over_rank (appendix E) "
                "or alpha (the printed book)"
            )
        source = LoraSource(source, options.lora_alpha, options.lora_scaling == "alpha_over_rank")
        notes.append(f"LoRA layers were merged with alpha {options.lora_alpha}, scaling {options.lora_scaling}")
    shapes = source.shapes()
    for name in ("tok_emb.weight", "pos_emb.weight", "out_head.weight"):
        if len(shapes.get(name, ())) != 2:
            raise UserError(f"{path} has no matrix {name}, so it is not a whole model of the book's")
    vocabulary, width = shapes["tok_emb.weight"]
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("trf_blocks."))
    heads = {"num_attention_heads": PUBLISHED_HEADS[width]} if width in PUBLISHED_HEADS else {}
    given = {"n_heads", "n_head", "num_attention_heads"} & options.config_overrides.keys()
    if given:
        heads = {}
    elif heads:
        notes.append(f"heads are not in the file: {heads['num_attention_heads']}, as GPT-2 has at width {width}")
    else:
        raise UserError(
            f"{path}: the number of heads is not in the file and width {width} is none of GPT-2's: pass --config_overrides n_heads=N"
        )
    values: dict[str, Any] = {
        "vocab_size": vocabulary, "emb_dim": width, "n_layers": layers, "context_length": shapes["pos_emb.weight"][0], "drop_rate": 0.0,
        "qkv_bias": "trf_blocks.0.att.W_query.bias" in shapes or "trf_blocks.0.att.qkv.bias" in shapes,
    } | heads  # fmt: skip
    notes.append("dropout is not in the file: set to 0")
    if shapes["out_head.weight"][0] != vocabulary:
        return _book_classifier(source, values, options, notes)
    tied = torch.equal(source.get("out_head.weight"), source.get("tok_emb.weight"))
    notes.append("out_head equals tok_emb: the head is tied" if tied else "out_head differs from tok_emb: the head stays its own")
    if tied:
        source = _without(source, "out_head.weight")
    if vocabulary == 50304:
        rows = {"tok_emb.weight": GPT2_VOCABULARY, "out_head.weight": GPT2_VOCABULARY}
        source = RenamedSource(source, {name: name for name in source.shapes()}, rows=rows)
        values["vocab_size"] = GPT2_VOCABULARY
        notes.append("the vocabulary was padded from 50,257 to 50,304: the last 47 rows were cut off")
    config = build_config(values | {"tie_word_embeddings": tied}, options.config_overrides)
    return Checkpoint("book", "", source, BOOK, config, "lm", None, notes)


def _book_classifier(source: Source, values: dict[str, Any], options: Options, notes: list[str]) -> Checkpoint:
    """The head has a bias, ours has none: it moves into the shift of the final norm, which feeds nothing but the head.

    With W of full row rank there is a d with W d = b (the pseudoinverse), so that W (n + d) = W n + b.
    """
    weight = source.get("out_head.weight").double()
    classes = weight.shape[0]
    shift = "final_norm.shift" if "final_norm.shift" in source.shapes() else "final_norm.bias"
    replaced = {}
    if "out_head.bias" in source.shapes():
        moved = torch.linalg.pinv(weight) @ source.get("out_head.bias").double()
        replaced[shift] = (source.get(shift).double() + moved).to(source.get(shift).dtype)
        notes.append("the head's bias was moved into the shift of the final norm, which gives the same logits")
        source = _without(source, "out_head.bias")
    source = RenamedSource(source, {name: name for name in source.shapes()}, replaced=replaced)
    notes.append(
        "the book reads the last of 120 positions, padding included; this model reads the last real token: expect other scores for padded texts"
    )
    labels = {"num_labels": classes}
    if classes == 2:
        labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}}
        notes.append("classes are named ham and spam, as the book's spam classifier has them")
    config = build_config(
        values | labels | {"pad_token_id": 50256 if values["vocab_size"] > 50256 else None}, options.config_overrides
    )
    weight_map = {key: rule for key, rule in BOOK.items() if key != "out_head.weight"} | {
        "out_head.weight": (BOOK["tok_emb.weight"][0], ("score.weight",))
    }  # type: ignore[index]
    return Checkpoint("book", "", source, weight_map, config, "classifier", None, notes)
