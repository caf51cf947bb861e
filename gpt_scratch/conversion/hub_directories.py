"""Checkpoint directories of transformers: GPT-2, the Llama family, and this package.

Sources: `GPT2Config`, `LlamaConfig`, `MistralConfig`, `Qwen2Config` and `Qwen3Config` of transformers. A setting that changes the outputs
and that this architecture does not support is refused by name.
"""

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedConfig,
)

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from ..inference.loading import (
    AUTO,
    load_config,
    load_generation_config,
    load_model,
    refuse_beyond_files,
    refuse_incomplete,
    weight_files,
)
from .checkpoint import Checkpoint, Options, build_config, open_tokenizer
from .sources import (
    RenamedSource,
    SafetensorsSource,
    Source,
    StateDictSource,
    equal_bits,
    load_pickle_safely,
    read_json,
    shards_of,
)
from .state_dicts import WRAPPING, refuse_unreadable
from .weight_maps import HF_GPT2, LLAMA, WeightMap

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")
# Same names in both families and here. `None` is copied, too: our default ids are GPT-2's and would be wrong for other models.
SHARED = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_range", "tie_word_embeddings")
LABELS = ("id2label", "label2id", "problem_type")
FAMILY = ("llama", "mistral", "qwen2", "qwen3")  # model types with Llama's names of settings and tensors


def open_hub_directory(path: Path, options: Options) -> Checkpoint:
    """Open a directory with `config.json` and weights of GPT-2, Llama, Mistral, Qwen 2 or 3, or this package.

    Raises:
        UserError: a missing or broken file, or an unsupported setting.
    """
    values = read_json(path / "config.json")
    if "quantization_config" in values:
        raise UserError(f"{path / 'config.json'} has a quantization_config: convert the weights before they are quantized")
    theirs = load_config(str(path))  # fills in defaults and reads older forms of the settings
    source, notes = _weights(path), list[str]()
    prefix = "transformer." if theirs.model_type == "gpt2" else ""
    wrapping = WRAPPING | {"module"}
    if wrapped := next((name for name in source.describe() if wrapping & set(name.split("."))), None):
        raise UserError(
            f"{path}: the names of its tensors are those of a wrapper (torch.compile, DDP, FSDP), e.g. {wrapped}: save the original model, "
            "accelerator.unwrap_model(model).save_pretrained(...)"
        )
    source = RenamedSource(source, {name: name.removeprefix(prefix) for name in source.describe()})
    head = "classifier" if "score.weight" in source.describe() else "lm"
    weight_map: WeightMap = {}
    if theirs.model_type == "gpt2":
        config, weight_map = gpt2_config(theirs, head, options.config_overrides), HF_GPT2
    elif theirs.model_type in FAMILY:
        config, weight_map = llama_config(theirs, head, options.config_overrides), LLAMA
    else:
        config = theirs
    if head == "lm":
        source = _with_one_head(source, "wte.weight" if prefix else "model.embed_tokens.weight", config, notes)
    if not weight_map:  # with one, each tensor is used exactly once
        _refuse_other_tensors(path, source, config, head)
    checkpoint = Checkpoint(source, weight_map, config, head, f"the sizes in {path / 'config.json'}", notes=notes)
    checkpoint.reference = lambda: load_model(str(path), head, torch.float32)
    found = [name for name in TOKENIZER_FILES if (path / name).is_file()]
    if found and options.tokenizer is None:
        if found == ["tokenizer.model"] and importlib.util.find_spec("sentencepiece") is None:
            raise UserError(
                f"{path / 'tokenizer.model'} needs the package sentencepiece, which is not installed: install it, or pass "
                "another --tokenizer"
            )
        checkpoint.tokenizer = open_tokenizer(str(path), config)
    if (path / "generation_config.json").is_file():
        checkpoint.generation_config = load_generation_config(str(path))
    return checkpoint


def _weights(path: Path) -> Source:
    for name in ("model.safetensors.index.json", "model.safetensors"):
        if (path / name).is_file():
            return SafetensorsSource(path / name)
    index = path / "pytorch_model.bin.index.json"
    files = shards_of(index) if index.is_file() else [path / "pytorch_model.bin"]
    if not index.is_file() and not files[0].is_file():
        raise UserError(f"{path} contains neither model.safetensors nor pytorch_model.bin")
    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        content = load_pickle_safely(file)
        if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
            raise UserError(f"{file} contains something other than named tensors")
        refuse_unreadable(content, file)
        if twice := tensors.keys() & content.keys():
            raise UserError(f"{min(twice)} is in {file} and in another file of the index: keep one of them")
        tensors |= content
    return StateDictSource(tensors)


def _refuse_other_tensors(path: Path, source: Source, config: PreTrainedConfig, head: str) -> None:
    """Compare the tensors of a checkpoint of this package with its configuration.

    Raises:
        UserError: names those that are missing, unexpected, or of another shape.
    """
    refuse_beyond_files(str(path), config, head, weight_files(str(path)))
    with torch.device("meta"):
        model = AUTO[head].from_config(config, trust_remote_code=False)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in source.describe().items()}
    other = [(name, found[name], wanted[name]) for name in found.keys() & wanted.keys() if found[name] != wanted[name]]
    refuse_incomplete(str(path), wanted.keys() - found.keys(), found.keys() - wanted.keys(), other)


def _with_one_head(source: Source, embedding: str, config: GPTScratchConfig, notes: list[str]) -> Source:
    """Tied weights as one tensor, whichever of the two names they are stored under; both tensors if they differ.

    Raises:
        UserError: a missing output head.
    """
    names = {name: name for name in source.describe()}
    if not config.tie_word_embeddings:
        if "lm_head.weight" not in names:
            raise UserError("tie_word_embeddings is false in config.json, but lm_head.weight is missing")
        return source
    if "lm_head.weight" in names and embedding not in names:
        names["lm_head.weight"] = embedding
    elif "lm_head.weight" in names and equal_bits(source.get("lm_head.weight"), source.get(embedding)):
        del names["lm_head.weight"]
    elif "lm_head.weight" in names:
        config.tie_word_embeddings = False
        notes.append("lm_head differs from the embedding although config.json ties them: not tied, as in transformers")
    return RenamedSource(source, names)


def _shared(theirs: PreTrainedConfig, head: str) -> dict[str, Any]:
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    values = {name: getattr(theirs, name) for name in SHARED}
    # Older Llama configurations contain -1 for no padding token.
    values |= {name: None for name in ids if isinstance(values[name], int) and values[name] < 0}
    return values | ({name: getattr(theirs, name) for name in LABELS} if head == "classifier" else {})


def gpt2_config(theirs: PreTrainedConfig, head: str, overrides: dict[str, Any]) -> GPTScratchConfig:
    """Convert transformers' GPT2Config to our configuration.

    Raises:
        UserError: names each unsupported setting.
    """
    fixed = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    if unusual := [f"{name}={getattr(theirs, name)} (it must be {usual})" for name, usual in fixed.items()
                   if getattr(theirs, name) != usual]:  # fmt: skip
        raise UserError(f"config.json has unsupported settings: {', '.join(unusual)}")
    ours = {
        "hidden_size": theirs.n_embd,
        "num_hidden_layers": theirs.n_layer,
        "num_attention_heads": theirs.n_head,
        "max_position_embeddings": theirs.n_positions,
        "intermediate_size": theirs.n_inner,
        "hidden_act": theirs.activation_function,
        "norm_eps": theirs.layer_norm_epsilon,
        "embedding_dropout": theirs.embd_pdrop,
        "attention_dropout": theirs.attn_pdrop,
        "residual_dropout": theirs.resid_pdrop,
        "qkv_bias": True,
    }
    return build_config(_shared(theirs, head) | ours, overrides)


def llama_config(theirs: PreTrainedConfig, head: str, overrides: dict[str, Any]) -> GPTScratchConfig:
    """Convert transformers' configuration of one of `FAMILY` to our configuration.

    Raises:
        UserError: names an unsupported setting.
    """
    window = getattr(theirs, "sliding_window", None)  # Llama has none
    kinds = set(getattr(theirs, "layer_types", None) or ())  # Qwen's, of each layer
    if window is None or kinds == {"full_attention"}:
        window, kinds = None, kinds - {"sliding_attention"}
    if kinds - {"full_attention", "sliding_attention"} or len(kinds) > 1:
        raise UserError(
            f"config.json: layer_types {', '.join(sorted(kinds))} are not supported: all layers must use the same sliding_window, or full "
            "attention"
        )
    qwen2 = theirs.model_type == "qwen2"
    bias = qwen2 or getattr(theirs, "attention_bias", False)  # Mistral has neither biases nor this setting
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
        "position_embedding_type": "rope",
        "rope_parameters": theirs.rope_parameters,
        "norm_type": "rmsnorm",
        "mlp_type": "gated",
        "qk_norm": theirs.model_type == "qwen3",
        "qkv_bias": bias,
        "o_bias": bias and not qwen2,
        "mlp_bias": getattr(theirs, "mlp_bias", False),
        "sliding_window": window,
        "attention_dropout": theirs.attention_dropout,
        "embedding_dropout": 0.0,
        "residual_dropout": 0.0,
    }
    return build_config(_shared(theirs, head) | ours, overrides)
