"""GGUF files of GPT-2, the Llama family and Qwen 2 and 3: every key and every tensor is used, or refused by name.

Keys and tensors are documented in ggml's docs/gguf.md. The conversion of llama.cpp's `convert_hf_to_gguf.py` is reversed here: matrices
are (out, in), and the rows of Llama's queries and keys are ordered by adjacent pairs. Quantized values become float32.

The result is verified against transformers' own GGUF reader. That reader ignores unknown keys, so settings that change the outputs are
added to its configuration: scaled rotary positions, the head dimension of Qwen, the sizes of GPT-2.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from ..inference.loading import refusal, refuse_incomplete
from .checkpoint import Checkpoint, Options, build_config
from .gguf_header import check_gguf
from .sources import PairedSource, RenamedSource, Source, equal_bits
from .weight_maps import GGUF_GPT2, GGUF_LLAMA

ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
# Keys, without the prefix of the architecture, and our settings.
SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
OPTIONAL = {"attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim", "vocab_size": "vocab_size"}
# Keys that must have this value: any other value changes the outputs in a way that this architecture does not support.
NEUTRAL: dict[str, Any] = {
    "attention.causal": True,
    "use_parallel_residual": False,
    "expert_count": 0,
    "expert_used_count": 0,
    "pooling_type": 0,
    "rope.scaling.attn_factor": 1.0,
}
ABOUT = ("tensor_data_layout", "rope.scaling.finetuned")  # do not affect the outputs
# Keys of the file and of the tokenizer, which transformers reads; GGUF.* are counters of the reader.
OTHERS = ("general.", "tokenizer.", "quantize.", "GGUF.")
# Values of tokenizer.ggml.pre with GPT-2's pattern, by which transformers splits text for every value that it does not know.
GPT2_PATTERN = ("gpt-2", "phi-2", "jina-es", "jina-de", "mpt", "olmo", "jais", "trillion", "granite-docling")
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # of every Llama 3.1 to 3.3


class GGUFSource:
    """The tensors of a GGUF file in float32, in the layout of nn.Linear. `reader`: a `gguf.GGUFReader`, which maps the file."""

    def __init__(self, reader: Any):
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape of every tensor; the file stores the axes in reverse order."""
        shapes = {name: [int(size) for size in reversed(tensor.shape)] for name, tensor in self.tensors.items()}
        return {name: torch.empty(shape, dtype=torch.float32, device="meta") for name, shape in shapes.items()}

    def get(self, name: str) -> torch.Tensor:
        """Read and dequantize one tensor.

        Raises:
            UserError: a type that is not a weight type.
        """
        import gguf

        tensor = self.tensors[name]
        try:
            array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError, IndexError) as error:
            raise UserError(f"{name} is of type {tensor.tensor_type.name}, which cannot be read as a weight") from error
        return torch.from_numpy(np.array(array, dtype=np.float32)).reshape([int(size) for size in reversed(tensor.shape)])


def open_gguf(path: Path, options: Options) -> Checkpoint:
    """Open a GGUF file of one of `ARCHITECTURES`; quantized weights are dequantized to float32.

    Raises:
        UserError: the gguf package is missing, the file cannot be read, or has another architecture or unsupported keys; names each
            key.
    """
    reader, source, values = _open(path)
    architecture = values.pop("architecture")
    names = {name: name for name in source.tensors}
    if values["tie_word_embeddings"]:
        names.pop("output.weight", None)
    config = build_config(values, options.config_overrides)
    used: Source = RenamedSource(source, names)
    if architecture == "llama":
        key_heads = config.num_key_value_heads or config.num_attention_heads
        used = PairedSource(used, {".attn_q.weight": config.num_attention_heads, ".attn_k.weight": key_heads})
    tokenizer = read_gguf_tokenizer(path, f"the tokenizer in {path} cannot be read")
    notes = []
    if any(tensor.tensor_type.name not in ("F32", "F16", "BF16") for tensor in reader.tensors):
        notes.append("quantized weights were dequantized to float32")
    notes += _pattern_note(reader)
    if "rope_freqs.weight" in names and values["rope_parameters"]["rope_type"] == "llama3":
        notes.append(f"rope_freqs.weight is Llama 3.1's scaling of rotary positions by {values['rope_parameters']['factor']:g}")
    weight_map = GGUF_GPT2 if architecture == "gpt2" else GGUF_LLAMA
    checkpoint = Checkpoint(used, weight_map, config, "lm", f"the sizes in the keys of {path}", tokenizer, notes=notes)
    checkpoint.reference = lambda: read_gguf(path, config)
    return checkpoint


def _pattern_note(reader: Any) -> list[str]:
    """A note if transformers does not know how the tokenizer of the file splits text."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    model, pattern = (
        field and field.contents() for field in map(reader.get_field, ("tokenizer.ggml.model", "tokenizer.ggml.pre"))
    )
    if model != "gpt2" or pattern is None or pattern in GPT2_PATTERN or pattern in GGUF_PRE_TOKENIZER_SPLITS:
        return []
    return [
        f"tokenizer.ggml.pre is {pattern!r}, a way to split text that transformers does not know: it uses GPT-2's, which may give other "
        "tokens; for the original tokenizer, pass --tokenizer"
    ]


def _open(path: Path) -> tuple[Any, GGUFSource, dict[str, Any]]:
    """The reader, the tensors, and the settings, including "architecture"."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError('reading GGUF files needs the gguf package: pip install "gpt_scratch[gguf]"')
    if not path.is_file():
        raise UserError(f"{path} is missing")
    check_gguf(path)
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except Exception as error:  # whatever gguf and numpy raise
        raise UserError(f"{path} is damaged or not a GGUF file: {one_line(error)}") from error
    architecture = fields.get("general.architecture")
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UserError(f"{path} contains a model of the architecture {architecture!r}; {known} can be converted from GGUF")
    source = GGUFSource(reader)
    values = _settings(path, architecture, fields, source)
    values["tie_word_embeddings"] = "output.weight" not in source.tensors
    if architecture == "gpt2" and not values["tie_word_embeddings"]:  # llama.cpp writes the tied head as a tensor of its own
        values["tie_word_embeddings"] = equal_bits(source.get("output.weight"), source.get("token_embd.weight"))
    return reader, source, values | {"architecture": architecture}


def _settings(path: Path, architecture: str, fields: dict[str, Any], source: GGUFSource) -> dict[str, Any]:
    """Translate the keys of the architecture into our settings.

    Raises:
        UserError: lists missing keys, unknown keys and unsupported values.
    """
    prefix = architecture + "."
    tensor = source.describe().get("token_embd.weight")
    embedding = () if tensor is None else tuple(tensor.shape)
    left = {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}
    unknown = [name for name in fields if not name.startswith((prefix, *OTHERS))]
    eps = "attention.layer_norm_epsilon" if architecture == "gpt2" else "attention.layer_norm_rms_epsilon"
    missing = [prefix + name for name in (*SIZES, eps) if name not in left]
    if len(embedding) != 2:
        missing.append("matrix token_embd.weight")
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}")
    refused: list[str] = []

    def take(name: str, kind: type, default: Any = None) -> Any:
        value = left.pop(name, default)
        if value is not default and type(value) is not kind:
            refused.append(f"{prefix}{name}={str(value)[:60]} (expected a single {kind.__name__})")
            return default
        return float(str(np.float32(value))) if kind is float and value is not None else value

    values = {ours: take(name, int) for name, ours in SIZES.items()}
    values |= {ours: value for name, ours in OPTIONAL.items() if (value := take(name, int)) is not None}
    values["norm_eps"] = take(eps, float)
    if values.setdefault("vocab_size", embedding[0]) != embedding[0]:
        refused.append(f"{prefix}vocab_size={values['vocab_size']} (token_embd.weight has {embedding[0]} rows)")
    if values["num_attention_heads"] == 0:
        refused.append(f"{prefix}attention.head_count=0 (expected at least 1)")
    width = values.get("head_dim") or (values["hidden_size"] or 0) // (values["num_attention_heads"] or 1)
    for name in ("attention.value_length", "rope.dimension_count"):
        if (size := take(name, int, width)) != width:
            refused.append(f"{prefix}{name}={size} (expected the head dimension, {width})")
    window = take("attention.sliding_window", int)
    if window and window < (values["max_position_embeddings"] or 0):  # llama.cpp does not support it for these architectures
        refused.append(
            f"{prefix}attention.sliding_window={window} (runtimes disagree about it; only files without it are supported)"
        )
    if architecture != "gpt2":
        values["rope_parameters"] = _rotary(take, width, values["max_position_embeddings"], source, refused)
    for name, neutral in NEUTRAL.items():
        if left.pop(name, neutral) != neutral:
            refused.append(f"{prefix}{name}={fields[prefix + name]!r} (expected {neutral!r})")
    if fields.get("split.count", 1) != 1:
        refused.append(f"split.count={fields['split.count']} (join the parts with llama-gguf-split --merge)")
    unknown = [name for name in unknown if not name.startswith("split.")]
    unknown += [prefix + name for name in left if name not in ABOUT]
    if unknown:
        refused.append(f"unknown keys: {', '.join(f'{name}={one_line(repr(fields[name]), 40)}' for name in unknown[:10])}")
    if refused:
        raise UserError(f"{path} has unsupported keys: {'; '.join(refused)}")
    tokens = {name: fields.get(f"tokenizer.ggml.{name}") for name in ("bos_token_id", "eos_token_id")}
    values |= tokens | {"pad_token_id": fields.get("tokenizer.ggml.padding_token_id")}
    return values | _implied_settings(architecture)


def _implied_settings(architecture: str) -> dict[str, Any]:
    """Settings without a key in the file: they follow from the architecture."""
    dropouts = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "residual_dropout": 0.0}
    if architecture == "gpt2":
        return dropouts | {"qkv_bias": True}
    return dropouts | {
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "mlp_type": "gated",
        "hidden_act": "silu",
        "qk_norm": architecture == "qwen3",
        "qkv_bias": architecture == "qwen2",
        "o_bias": False,
        "mlp_bias": False,
    }


def _rotary(take: Any, width: int, positions: int | None, source: GGUFSource, refused: list[str]) -> dict[str, Any]:
    """The rotary settings, with llama.cpp's defaults; Llama 3.1's scaling is stored as a tensor, the divisors of the frequencies."""
    rope = {"rope_theta": take("rope.freq_base", float, 10000.0), "rope_type": "default"}
    kind, factor = take("rope.scaling.type", str, "linear"), take("rope.scaling.factor", float)
    factor = take("rope.scale_linear", float) if factor is None else factor  # the name until 2023
    original = take("rope.scaling.original_context_length", int, positions)
    if kind not in ("none", "linear", "yarn"):
        refused.append(f"rope.scaling.type={kind!r} (expected none, linear or yarn)")
    elif kind == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        rope = {name: value for name, value in rope.items() if value is not None}
    elif kind == "linear" and factor not in (None, 0.0, 1.0):
        rope |= {"rope_type": "linear", "factor": factor}
    if "rope_freqs.weight" not in source.tensors:
        return rope
    divided = source.get("rope_freqs.weight").double()
    if bool((divided == 1).all()):  # no scaling
        return rope
    scaled_twice = rope["rope_type"] != "default"
    frequencies = rope["rope_theta"] ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    rope |= LLAMA3 | {"rope_type": "llama3", "factor": float(str(divided.max().float().numpy()))}
    turns = LLAMA3["original_max_position_embeddings"] * frequencies / (2 * torch.pi)  # rotations within the original length
    low, high = LLAMA3["low_freq_factor"], LLAMA3["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    expected = 1 / (kept + (1 - kept) / rope["factor"])
    if scaled_twice or divided.shape != expected.shape or not torch.allclose(divided, expected, rtol=1e-4):
        refused.append("rope_freqs.weight is not Llama 3.1's scaling (low_freq_factor 1, high_freq_factor 4, of 8,192 positions)")
    return rope


def read_gguf_tokenizer(path: Path, failure: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a GGUF file with transformers.

    Args:
        failure: beginning of the error message.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    except BaseException as error:  # gguf, tokenizers and transformers may raise anything
        raise refusal(failure, error) from error


def read_gguf(path: Path, config: GPTScratchConfig | None = None) -> PreTrainedModel:
    """Load a GGUF file with transformers, in float32 and evaluation mode.

    Args:
        config: settings of the file that transformers reads incorrectly or ignores; by default they are read from its keys.

    Raises:
        UserError: an unsupported key, or missing, unexpected or mismatched tensors.
    """
    from transformers import GgufConfig

    if config is None:
        values = _open(path)[2]
        del values["architecture"]
        config = build_config(values, {})
    theirs = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    theirs.tie_word_embeddings = config.tie_word_embeddings
    if theirs.model_type == "gpt2":  # the reader sets these two under names that GPT2Config does not use
        theirs.n_positions, theirs.n_inner = config.max_position_embeddings, config.intermediate_size
    else:
        theirs.head_dim, theirs.rope_parameters = config.head_dim, config.rope_parameters
    model, report = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=theirs,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    refuse_incomplete(str(path), report["missing_keys"], report["unexpected_keys"], report["mismatched_keys"])
    return model.eval()
