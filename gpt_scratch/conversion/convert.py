"""The engine: every foreign tensor used exactly once, every parameter covered exactly once, written as safetensors one tensor at a time.

`safetensors.torch.save_file` wants all tensors in memory; here a shard's header is written first, from the shapes alone, and then each tensor
as it is read, so that the peak is one tensor above what the source keeps mapped. Format: 8 bytes little-endian header length, JSON
header, data (https://github.com/huggingface/safetensors#format).
"""

import hashlib
import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..errors import UserError
from ..modeling_gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, GPTScratchModel
from .export import foreign_config, inverted
from .formats import Checkpoint
from .sources import Source
from .weight_maps import Layout, WeightMap

MODELS: dict[str, type[PreTrainedModel]] = {
    "lm": GPTScratchForCausalLM,
    "classifier": GPTScratchForSequenceClassification,
    "base": GPTScratchModel,
}
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


@dataclass(frozen=True)
class Part:
    """Where one parameter comes from: part `index` of a foreign tensor, or zeros where `key` is `None`."""

    key: str | None
    layout: Layout
    index: int
    shape: tuple[int, ...]


def plan(
    source: Source, weight_map: WeightMap, expected: Mapping[str, tuple[int, ...]], zeros: Iterable[str] = ()
) -> dict[str, Part]:
    """For every parameter of `expected` (name to shape) the part of `source` that holds it.

    Args:
        source: foreign names.
        weight_map: foreign names to ours.
        expected: our names and shapes, without tied copies.
        zeros: our names that may be missing and are then zero (biases that a format leaves out).

    Raises:
        UserError: lists tensors that no entry of the map knows, parameters that nothing covers or two cover, and wrong shapes.
    """
    found: dict[str, Part] = {}
    unknown, twice, wrong = [], [], []
    for key, shape in source.shapes().items():
        pattern, number = generic(key)
        if pattern not in weight_map:
            unknown.append(key)
            continue
        rule = weight_map[pattern]
        if rule is None:
            continue
        layout, names = rule
        for index, name in enumerate(names):
            name = name.replace("{}", number)
            if name in found:
                twice.append(name)
            if name not in expected:
                unknown.append(key)
                break
            # On the meta device: the shapes of the parts, without reading anything.
            try:
                part_shape = tuple(layout.split(torch.empty(shape, device="meta"))[index].shape)
            except (RuntimeError, IndexError):
                part_shape = None
            if part_shape != tuple(expected[name]):
                wrong.append(f"{key} {list(shape)} where {name} needs {list(expected[name])}")
            found[name] = Part(key, layout, index, tuple(expected[name]))
    missing = [name for name in expected if name not in found and name not in set(zeros)]
    problems = [
        (unknown, "tensors that this format does not have"),
        (missing, "parameters that the checkpoint does not hold"),
        (twice, "parameters that two tensors would fill"),
        (wrong, "wrong shapes"),
    ]
    told = [
        f"{what}: {', '.join(listed[:8])}{f' and {len(listed) - 8} more' if len(listed) > 8 else ''}"
        for listed, what in problems
        if listed
    ]
    if told:
        raise UserError("; ".join(told))
    for name in expected:
        found.setdefault(name, Part(None, Layout(), 0, tuple(expected[name])))
    return {name: found[name] for name in expected}


def generic(key: str) -> tuple[str, str]:
    """A key with its layer number as `{}`, and the number: "h.11.ln_1.weight" -> ("h.{}.ln_1.weight", "11").

    >>> generic("trf_blocks.3.ff.layers.0.weight"), generic("model/h7/ln_1/g"), generic("wte.weight")
    (('trf_blocks.{}.ff.layers.0.weight', '3'), ('model/h{}/ln_1/g', '7'), ('wte.weight', ''))
    """
    match = re.search(r"(?<=[.h])\d+(?=[./])", key)
    return (key[: match.start()] + "{}" + key[match.end() :], match.group()) if match else (key, "")


def read_part(source: Source, part: Part, dtype: torch.dtype | None, cache: dict[str, torch.Tensor]) -> torch.Tensor:
    """One parameter, contiguous. `cache` keeps the last tensor, since query, key and value lie in one."""
    if part.key is None:
        return torch.zeros(part.shape, dtype=dtype or torch.float32)
    if part.key not in cache:
        cache.clear()
        cache[part.key] = source.get(part.key)
    tensor = part.layout.split(cache[part.key])[part.index]
    return tensor.to(dtype or tensor.dtype).contiguous()


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> int:
    """Write `model.safetensors`, or shards with their index, one tensor in memory at a time; returns the bytes of data.

    Args:
        folder: where to write.
        shapes: names and shapes, in the order of the file.
        read: gives the tensor of a name, contiguous and of `dtype`.
        dtype: of all tensors.
        max_shard_bytes: data of one file; a larger tensor gets a file of its own.
    """
    size = torch.empty((), dtype=dtype).element_size()
    sizes = {name: size * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    count = len(shards)
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)] if count > 1 else ["model.safetensors"]
    for file, names in zip(files, shards):
        with (folder / file).open("wb") as output:
            output.write(_header(names, shapes, sizes, DTYPES[dtype]))
            for name in names:
                tensor = read(name)
                assert tensor.dtype == dtype and tuple(tensor.shape) == tuple(shapes[name]), name
                # memoryview: bytes() would copy the tensor once more
                output.write(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
    if count > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {n: f for f, ns in zip(files, shards) for n in ns},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return sum(sizes.values())


def _header(names: Sequence[str], shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, int], dtype: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        entries[name] = {"dtype": dtype, "shape": list(shapes[name]), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def expected_shapes(config: Any, head: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of our parameters, tied copies left out, without allocating any."""
    with torch.device("meta"):
        model = MODELS[head](config)
    # On the meta device tied parameters may be two objects; the name tells.
    tied = {"lm_head.weight"} if head == "lm" and config.tie_word_embeddings else set()
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters() if name not in tied}


def import_weights(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Write a foreign checkpoint's weights, configuration, code, generation settings and tokenizer as ours.

    Args:
        checkpoint: as [`recognize`] found it.
        folder: empty.
        dtype: of what is written; `None` keeps the checkpoint's.
        max_shard_bytes: data of one file.

    Raises:
        UserError: tensors that do not fit, or a tensor that cannot be read.
    """
    config, source = checkpoint.config, checkpoint.source
    expected = expected_shapes(config, checkpoint.head)
    # Formats without biases (nanoGPT's bias=False) still have our layer norms' shifts, which are then zero.
    zeros = [name for name in expected if name.endswith(("layernorm.bias", "norm.bias"))]
    parts = plan(source, checkpoint.weight_map, expected, zeros)
    if dtype is None:
        dtype = source.get(next(part.key for part in parts.values() if part.key is not None)).dtype
    if dtype not in DTYPES:
        raise UserError(f"weights of dtype {dtype} cannot be written: pass --dtype")
    cache: dict[str, torch.Tensor] = {}
    write_safetensors(
        folder,
        {name: part.shape for name, part in parts.items()},
        lambda name: read_part(source, parts[name], dtype, cache),
        dtype,
        max_shard_bytes,
    )
    if checkpoint.tokenizer is not None:
        tokenizer = checkpoint.tokenizer
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is not None:
                setattr(config, name, getattr(tokenizer, name))
        tokenizer.save_pretrained(folder)
    config.dtype = dtype
    config.architectures = [MODELS[checkpoint.head].__name__]
    config.save_pretrained(folder)
    custom_object_save(MODELS[checkpoint.head].__new__(MODELS[checkpoint.head]), str(folder))
    if checkpoint.head == "lm":
        GenerationConfig.from_model_config(config).save_pretrained(folder)


def export_weights(
    source_folder: Path, checkpoint: Checkpoint, folder: Path, target: str, dtype: torch.dtype | None, max_shard_bytes: int
) -> None:
    """Write one of our checkpoints in the stock layout of `target`, "gpt2" or "llama".

    Raises:
        UserError: a setting that the target cannot express; names it.
    """
    config, source = checkpoint.config, checkpoint.source
    theirs = foreign_config(config, target, checkpoint.head)
    ours = source.shapes()
    if dtype is None:
        dtype = source.get(next(iter(ours))).dtype
    rules = {
        name: (layout, names)
        for name, (layout, names) in inverted(target, config.num_hidden_layers).items()
        # A bias that neither has is left out; one that only the target has becomes zeros.
        if any(part in ours for part in names) or (target == "gpt2" and name.endswith(".bias"))
    }
    weights = {part.replace(".bias", ".weight") for _, names in rules.values() for part in names}
    unused = sorted(set(ours) - {part for _, names in rules.values() for part in names})
    if unused or not weights <= set(ours) | {"model.norm.weight"}:
        raise UserError(f"{target} has no place for {', '.join(unused[:5]) or 'some tensors'}")

    def part_shape(name: str) -> tuple[int, ...]:
        return tuple(ours[name]) if name in ours else tuple(ours[name.replace(".bias", ".weight")][:1])

    def read(name: str) -> torch.Tensor:
        layout, names = rules[name]
        tensors = [source.get(part) if part in ours else torch.zeros(part_shape(part), dtype=dtype) for part in names]
        return layout.join(tensors).to(dtype).contiguous()

    shapes = {
        name: tuple(layout.join([torch.empty(part_shape(part), device="meta") for part in names]).shape)
        for name, (layout, names) in rules.items()
    }
    write_safetensors(folder, shapes, read, dtype, max_shard_bytes)
    theirs.dtype = dtype
    theirs.save_pretrained(folder)
    if checkpoint.tokenizer is not None:
        checkpoint.tokenizer.save_pretrained(folder)
    if (source_folder / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(source_folder).save_pretrained(folder)


def checksum(folder: Path) -> str:
    """SHA-256 over the weight files of a directory, in the order of their names; first 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
