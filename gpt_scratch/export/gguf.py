"""Export to GGUF, the format of llama.cpp: weights in the layout of GPT-2, Llama or Qwen 2 or 3, and the tokenizer, in one file.

Names, keys and the order of rows are those of llama.cpp's `convert_hf_to_gguf.py`; the file is written with its `gguf` package, one
tensor at a time. Matrices have the shape of nn.Linear, (out, in), in every layout. Llama's query and key rows are reordered: llama.cpp
rotates adjacent pairs of a head in that layout, transformers pairs that lie half a head apart. Qwen's rows keep their order.

The file, including its settings, is read back with transformers and compared. Settings that the file cannot represent, or that the reader
would silently ignore, are refused by name.
"""

import gc
import importlib.util
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..conversion.checkpoint import Checkpoint, Options
from ..conversion.formats import recognize
from ..conversion.gguf_files import ARCHITECTURES, read_gguf, read_gguf_tokenizer
from ..conversion.stock_layouts import foreign_config, inverted, list_obstacles, obstacles
from ..conversion.verify import logits_of, prompts
from ..errors import UserError
from ..files import atomic_path
from ..inference.loading import refusal
from .comparison import Comparison, compare_logits
from .modelfile import ends_of, modelfile_path, modelfile_text, write_modelfile

# Types of matrices; vectors stay in float32. Quantized types need rows of whole blocks.
TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's token types
SAMPLE = "Hello world! It's 1984, they're 12,345 miles away.\n\n  Grüße: été, 漢字 🙂\tTab"  # read by both tokenizers


def export_gguf(model_directory: str, output: str, type: str = "f32", modelfile: bool = False) -> Comparison:
    """Write a language model of this package as GGUF, read the file with transformers and compare. The file is written atomically.

    Args:
        model_directory: a checkpoint of this package, by path or Hub name.
        output: path of the `.gguf` file.
        type: type of the matrices, a key of `TYPES`.
        modelfile: also write ollama's Modelfile next to it.

    Raises:
        UserError: a setting that the format cannot express, a tokenizer other than GPT-2's byte-level BPE, a missing package, or a
            file that does not compute the same as the model.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError('GGUF needs the gguf package: pip install "gpt_scratch[export]"')
    if not output.endswith(".gguf"):
        raise UserError(f"{output}: the output is a file, NAME.gguf")
    if Path(output).is_dir():
        raise UserError(f"{output} is a directory: name the file to write")
    checkpoint = recognize(model_directory, Options())
    check_checkpoint(checkpoint, model_directory)
    target = target_of(checkpoint.config)
    refuse_settings(checkpoint.config, target)
    if type not in TYPES:
        raise UserError(f"type is {type!r}: choose one of {', '.join(TYPES)}")
    tokenizer = tokenizer_fields(checkpoint)
    if modelfile:
        modelfile_path(output)  # refuses a file that this package did not write
        ends = ends_of(checkpoint.generation_config, checkpoint.config)
        positions = checkpoint.config.max_position_embeddings
        text = modelfile_text(Path(output).name, checkpoint.tokenizer, ends, tokenizer["adds_bos"], positions)  # type: ignore[arg-type]
    with atomic_path(output) as path:
        write_gguf(path, checkpoint, target, type, tokenizer, Path(output).stem)
        assert checkpoint.reference is not None and checkpoint.tokenizer is not None
        comparison = read_back(path, checkpoint.reference)
        if type == "f32":
            comparison.refuse_difference()
        comparison.tokenizer = compare_tokenizers(path, checkpoint.tokenizer)
    if modelfile:
        write_modelfile(modelfile_path(output), text)
    return comparison


def check_checkpoint(checkpoint: Checkpoint, name: str) -> None:
    """Check that a checkpoint can be exported.

    Raises:
        UserError: it is not a language model of this package with a tokenizer.
    """
    if checkpoint.format != "gpt_scratch":
        raise UserError(f"{name} is of format {checkpoint.format}: convert it with scripts/convert_checkpoint.py first")
    if checkpoint.head != "lm":
        raise UserError(f"{name} is a classifier: GGUF holds language models")
    if checkpoint.tokenizer is None:
        raise UserError(f"{name} has no tokenizer, and a GGUF file must hold one: save the tokenizer there first")


def obstacles_of(config: GPTScratchConfig, layout: str) -> dict[str, Any]:
    """Settings that the layout or its GGUF file cannot express, each with the value required."""
    found = obstacles(config, layout)
    if layout == "gpt2":
        return found | ({} if config.hidden_act in ("gelu_new", "gelu_pytorch_tanh") else {"hidden_act": "gelu_new"})
    needed: dict[str, Any] = {"hidden_act": "silu", "mlp_bias": False, "o_bias": False}
    needed |= {} if layout == "qwen2" else {"qkv_bias": False}  # readers do not support the bias
    if config.rope_parameters is not None and config.rope_parameters["rope_type"] != "default":
        # transformers would silently drop the scaling when it reads the file
        needed["rope_parameters"] = {"rope_theta": config.rope_parameters["rope_theta"], "rope_type": "default"}
    return found | {name: value for name, value in needed.items() if getattr(config, name) != value}


def target_of(config: GPTScratchConfig) -> str:
    """The layout to write, one of `ARCHITECTURES`: the one with the fewest settings that it cannot express."""
    return min(ARCHITECTURES, key=lambda layout: len(obstacles_of(config, layout)))


def refuse_settings(config: GPTScratchConfig, target: str) -> None:
    """Refuse a configuration that the layout or its GGUF file cannot express.

    Raises:
        UserError: there are such settings; names each.
    """
    if found := obstacles_of(config, target):
        count = f"{len(found)} settings differ" if len(found) > 1 else "1 setting differs"
        raise UserError(f"GGUF cannot express {list_obstacles(config, found)} in the layout {target}, the nearest, where {count}")
    foreign_config(config, target, "lm")


def tokenizer_fields(checkpoint: Checkpoint) -> dict[str, Any]:
    """Tokens in the order of their ids, their types, and the merges of a byte-level BPE that splits text with GPT-2's pattern.

    Ids of the model beyond the tokenizer's vocabulary get unused tokens.

    Raises:
        UserError: any other tokenizer; says what differs.
    """
    tokenizer, vocab_size = checkpoint.tokenizer, checkpoint.config.vocab_size
    assert tokenizer is not None
    described = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    model, splitting = described["model"], described.get("pre_tokenizer") or {}
    if model["type"] != "BPE":
        raise UserError(f"GGUF holds byte-level BPE tokenizers as GPT-2's; this one is {model['type']}")
    if described.get("normalizer") is not None:
        raise UserError(f"GGUF cannot express the tokenizer's normalizer {described['normalizer']['type']}")
    if splitting.get("type") != "ByteLevel" or not splitting["use_regex"] or splitting["add_prefix_space"]:
        raise UserError("GGUF cannot express how the tokenizer splits text before the merges: only GPT-2's pattern is supported")
    tokens = {id: (token, NORMAL) for token, id in model["vocab"].items()}
    tokens |= {
        added["id"]: (added["content"], CONTROL if added["special"] else USER_DEFINED) for added in described["added_tokens"]
    }
    listed = [tokens.get(id, (f"[PAD{id}]", UNUSED)) for id in range(vocab_size)]
    return {
        "tokens": [token for token, _ in listed],
        "types": [type for _, type in listed],
        "merges": [" ".join(pair) for pair in model["merges"]],
        "adds_bos": tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id],
        "chat_template": tokenizer.chat_template,
        "ids": {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")},
    }


@dataclass(frozen=True)
class Tensor:
    """One tensor of the file: our `parts` concatenated, zeros for a missing one. `heads`: reorder the rows of this many heads."""

    name: str
    parts: tuple[str, ...]
    rows: tuple[torch.Size, ...]
    type: Any
    heads: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(row[0] for row in self.rows), *self.rows[0][1:])

    def read(self, checkpoint: Checkpoint) -> np.ndarray:
        """The data in the file's type."""
        from gguf.quants import quantize

        ours = checkpoint.source.describe()
        read = [
            checkpoint.source.get(part).float() if part in ours else torch.zeros(row) for part, row in zip(self.parts, self.rows)
        ]
        array = torch.cat(read).numpy()
        return np.ascontiguousarray(
            quantize(array if self.heads is None else in_neighbouring_pairs(array, self.heads), self.type)
        )


def tensors_of(checkpoint: Checkpoint, target: str, type: str) -> list[Tensor]:
    """Every tensor of the file, in order.

    Raises:
        UserError: rows whose length is not a multiple of the block size of the quantized `type`.
    """
    import gguf

    config, ours = checkpoint.config, checkpoint.source.describe()
    names = gguf.get_tensor_name_map(_architecture(target), config.num_hidden_layers)
    matrices, vectors = gguf.GGMLQuantizationType[TYPES[type]], gguf.GGMLQuantizationType.F32
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if target == "llama" else {}
    tensors = []
    for stock, (_, parts) in inverted(target, config, "lm").items():
        module, _, kind = stock.rpartition(".")
        # The length of a missing bias is the number of rows of its weight.
        rows = tuple(ours[part].shape if part in ours else ours[part.removesuffix("bias") + "weight"].shape[:1] for part in parts)
        # llama.cpp keeps positions in float32
        raw = matrices if kind == "weight" and len(rows[0]) == 2 and module != "transformer.wpe" else vectors
        if rows[0][-1] % gguf.GGML_QUANT_SIZES[raw][0]:
            block = gguf.GGML_QUANT_SIZES[raw][0]
            raise UserError(f"{type} needs rows of a multiple of {block} values, and {stock} has {rows[0][-1]}: use f16")
        name = f"{names.get_name(module)}.{kind}"
        tensors.append(Tensor(name, parts, rows, raw, heads.get(module.rpartition(".")[2])))
    return tensors


def _architecture(target: str) -> Any:
    import gguf

    return gguf.MODEL_ARCH[target.upper()]


def write_gguf(path: Path, checkpoint: Checkpoint, target: str, type: str, tokenizer: dict[str, Any], name: str) -> None:
    """Write the file, with one tensor in memory at a time.

    Raises:
        UserError: as [`tensors_of`].
    """
    import gguf

    tensors = tensors_of(checkpoint, target, type)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[_architecture(target)])
    for tensor in tensors:
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
        nbytes = math.prod(tensor.shape) // block * block_bytes
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), nbytes, tensor.type)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "f32" else f"MOSTLY_{TYPES[type]}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _write_sizes(writer, checkpoint.config, target)
    _write_tokenizer(writer, tokenizer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.read(checkpoint))
    writer.close()


def _write_sizes(writer: Any, config: GPTScratchConfig, target: str) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if target == "gpt2":
        writer.add_layer_norm_eps(config.norm_eps)
        return
    assert config.rope_parameters is not None
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _write_tokenizer(writer: Any, fields: dict[str, Any]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(fields["tokens"])
    writer.add_token_types(fields["types"])
    writer.add_token_merges(fields["merges"])
    writer.add_add_bos_token(fields["adds_bos"])
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for name, id in fields["ids"].items():
        if id is not None:
            add[name](id)
    if isinstance(fields["chat_template"], str):
        # Without the tags that mark replies for training: they add no text, and only transformers knows them.
        writer.add_chat_template(re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", fields["chat_template"]))


def in_neighbouring_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows (D per head) for llama.cpp: rows i and i + D/2, which are rotated together, become adjacent.

    >>> in_neighbouring_pairs(np.arange(8)[:, None], heads=2).ravel().tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]
    """
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def read_back(path: Path, reference: Callable[[], PreTrainedModel]) -> Comparison:
    """Compare the file, as transformers reads it, with the model; only one of the two is in memory at a time.

    Raises:
        UserError: transformers cannot read the file.
    """
    model = reference().float().eval()
    asked = prompts(model.config)
    ours = logits_of(model, asked)
    del model
    gc.collect()
    try:
        model = read_gguf(path)
    except BaseException as error:  # gguf and transformers may raise anything
        raise refusal("verification failed: transformers cannot read the file", error) from error
    return compare_logits(ours, logits_of(model, asked), type(model).__name__, path.stat().st_size)


def compare_tokenizers(path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Compare the tokenizer in the file with the original; return one line about the result.

    Raises:
        UserError: the tokenizer in the file gives different ids.
    """
    theirs = read_gguf_tokenizer(path, "verification failed: transformers cannot read the tokenizer in the file")
    ours, read = tokenizer(SAMPLE)["input_ids"], theirs(SAMPLE)["input_ids"]
    if ours != read:
        raise UserError(f"verification failed: the tokenizer in the file gives {read[:12]}..., this one {ours[:12]}...")
    return f"the same {len(ours)} ids for a text of {len(SAMPLE)} characters"
