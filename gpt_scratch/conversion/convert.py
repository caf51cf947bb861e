"""Conversion of weights: every source tensor is used exactly once, every parameter is set exactly once, one tensor at a time."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..errors import UserError, one_line
from ..modeling_gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from ..tokenization.portable import save_tokenizer
from .checkpoint import Checkpoint
from .safetensors_writer import write_safetensors
from .sources import DTYPES, SafetensorsSource, Source, equal_bits
from .stock_layouts import foreign_config, inverted, save_config
from .weight_maps import SAME, Layout, WeightMap

MODELS: dict[str, type[PreTrainedModel]] = {"lm": GPTScratchForCausalLM, "classifier": GPTScratchForSequenceClassification}
MAX_BROKEN = 10  # unreadable tensors listed in an error message
LISTED = 6  # names listed in an error message


@dataclass(frozen=True)
class Part:
    """The source of one parameter: part `index` of the source tensor `key`, or zeros if `key` is `None`."""

    key: str | None
    layout: Layout
    index: int


def plan(source: Source, weight_map: WeightMap, expected: Mapping[str, torch.Tensor]) -> dict[str, Part]:
    """Map every parameter of `expected` to a part of a tensor of `source`, in the order of `expected`.

    The biases of norms are zero if the source has none of them (nanoGPT's bias=False).

    Args:
        source: tensors with the names of their format.
        weight_map: names of the format to ours.
        expected: our names and tensors on the meta device, without tied copies.

    Raises:
        UserError: lists unexpected tensors, missing and duplicate parameters, and wrong shapes or types.
    """
    found: dict[str, Part] = {}
    unknown, twice, wrong = [], [], []
    for key, tensor in source.describe().items():
        pattern, number = generic(key)
        rule = weight_map.get(pattern)
        if rule is None:
            unknown += [] if pattern in weight_map else [key]
            continue
        layout, names = rule
        names = tuple(name.replace("{}", number) for name in names)
        if not expected.keys() >= set(names):
            unknown.append(key)
            continue
        needed = tuple(layout.join([expected[name] for name in names]).shape)
        if tensor.dtype not in DTYPES.values():
            wrong.append(f"{key} is of type {tensor.dtype}, not float32, float16, bfloat16 or float64")
        if (tuple(tensor.shape[1:]) if layout.transposed and tensor.shape[:1] == (1,) else tuple(tensor.shape)) != needed:
            wrong.append(f"{key} is {tuple(tensor.shape)} instead of {needed}{f' {layout}' if len(needed) == 2 else ''}")
        twice += [f"{name} (by {found[name].key} and {key})" for name in names if name in found]
        found |= {name: Part(key, layout, index) for index, name in enumerate(names)}
    all_biases = any(name.endswith("norm.bias") for name in found)
    missing = [name for name in expected if name not in found and (all_biases or not name.endswith("norm.bias"))]
    problems = {
        "wrong shapes or types": wrong,
        "unexpected tensors": unknown,
        "missing parameters": missing,
        "parameters set by two tensors": twice,
    }
    found_problems = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if found_problems:
        raise UserError("; ".join(found_problems))
    return {name: found.get(name, Part(None, SAME, 0)) for name in expected}


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def generic(key: str) -> tuple[str, str]:
    """A key with its layer number replaced by `{}`, and the number.

    >>> generic("trf_blocks.3.ff.layers.0.weight"), generic("model/h7/ln_1/g"), generic("wte.weight")
    (('trf_blocks.{}.ff.layers.0.weight', '3'), ('model/h{}/ln_1/g', '7'), ('wte.weight', ''))
    """
    match = re.search(r"(?<=[.h])\d+(?=[./])", key)
    return (key[: match.start()] + "{}" + key[match.end() :], match.group()) if match else (key, "")


def parameters_of(config: Any, head: str) -> dict[str, torch.Tensor]:
    """Our parameters on the meta device, by name, without a tied head."""
    with torch.device("meta"):
        model = MODELS[head](config)
    tied = {"lm_head.weight"} if head == "lm" and config.tie_word_embeddings else set()
    return {name: parameter.detach() for name, parameter in model.named_parameters() if name not in tied}


def common_dtype(source: Source, keys: Iterable[str]) -> torch.dtype:
    """The smallest dtype that represents these tensors of `source` without rounding."""
    described = source.describe()
    return reduce(torch.promote_types, {described[key].dtype for key in keys})


def import_weights(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> int:
    """Write weights, configuration, code, generation settings and tokenizer of a checkpoint in our format.

    Args:
        checkpoint: as returned by [`recognize`].
        folder: empty directory.
        dtype: of the written weights; `None` keeps the checkpoint's.
        max_shard_bytes: maximum size of one file.

    Returns:
        The number of source tensors that were read back and are equal, bit for bit.

    Raises:
        UserError: tensors that do not fit, or a tensor that cannot be read.
    """
    config, source, model = checkpoint.config, checkpoint.source, MODELS[checkpoint.head]
    expected = parameters_of(config, checkpoint.head)
    try:
        parts = plan(source, checkpoint.weight_map, expected)
    except UserError as error:
        raise UserError(f"the tensors do not fit {checkpoint.sizes_from}: {error}") from error
    dtype = dtype or common_dtype(source, {part.key for part in parts.values() if part.key is not None})
    last: dict[str, torch.Tensor] = {}  # query, key and value are in one source tensor, which is read only once
    broken: dict[str, str] = {}  # key to its problem: all are listed, not only the first

    def read(name: str) -> torch.Tensor:
        part = parts[name]
        zeros = torch.zeros(expected[name].shape, dtype=dtype)
        if part.key is None or part.key in broken:
            return zeros
        if part.key not in last:
            last.clear()
            try:
                last[part.key] = source.get(part.key)
            except UserError as error:
                broken[part.key] = str(error)
                return zeros
        tensor = part.layout.split(last[part.key])[part.index].to(dtype)
        if not _is_finite(tensor):
            broken[part.key] = _non_finite(part.key, last[part.key], dtype)
        return tensor

    write_safetensors(folder, {name: expected[name].shape for name in parts}, read, dtype, max_shard_bytes)
    last.clear()
    if broken:
        listed, more = list(broken.values())[:MAX_BROKEN], len(broken) - MAX_BROKEN
        raise UserError("; ".join(listed) + (f"; and {more} more of {len(broken)} such tensors" if more > 0 else ""))
    config.dtype, config.architectures = dtype, [model.__name__]
    config.save_pretrained(folder)
    custom_object_save(model, str(folder))  # copies the model's code
    if checkpoint.tokenizer is not None:
        save_tokenizer(checkpoint.tokenizer, folder)
    if checkpoint.head == "lm":
        _save_generation_config(checkpoint, folder)
    return compare_written(folder, source, checkpoint.weight_map, dtype)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are finite. `isfinite` would allocate copies of the largest tensor, and takes 30 times as long."""
    return all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))  # which are NaN if any value is


def _non_finite(key: str, tensor: torch.Tensor, dtype: torch.dtype) -> str:
    count = int((~tensor.to(dtype).isfinite()).sum())
    if _is_finite(tensor):
        return f"{key} has values beyond the range of {str(dtype).removeprefix('torch.')}: choose another --dtype"
    kind = "NaN" if bool(tensor.isnan().any()) else "infinite values"
    return f"{key} has {kind} ({count:,} of {tensor.numel():,} values): the training that wrote it had failed"


def _save_generation_config(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the source's generation settings, with the configuration's special tokens added."""
    settings = checkpoint.generation_config or GenerationConfig()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(settings, name) is None:
            setattr(settings, name, getattr(checkpoint.config, name))
    try:
        settings.save_pretrained(folder)
    except (
        ValueError
    ):  # transformers refuses to save contradictory settings, e.g. a temperature without sampling, that it used to save
        settings.do_sample = True
        try:
            settings.save_pretrained(folder)
        except (ValueError, TypeError) as error:
            raise UserError(f"generation_config.json of the source cannot be saved: {one_line(error)}") from error


def compare_written(folder: Path, source: Source, weight_map: WeightMap, dtype: torch.dtype) -> int:
    """Read back the written files, reassemble each source tensor and compare it bit for bit; returns the number of equal tensors.

    Raises:
        UserError: names a tensor that differs.
    """
    written, count = weights_of(folder), 0
    for key in source.describe():
        pattern, number = generic(key)
        rule = weight_map[pattern]
        if rule is None:
            continue
        layout, names = rule
        again = layout.join([written.get(name.replace("{}", number)) for name in names])
        original = source.get(key).to(dtype).reshape(again.shape)
        if not equal_bits(again, original):
            raise UserError(f"{key} was written incorrectly: the tensor read back from {folder.name} differs")
        count += 1
    return count


def weights_of(folder: Path) -> SafetensorsSource:
    """The safetensors weights of a directory, in one file or in shards."""
    index = folder / "model.safetensors.index.json"
    return SafetensorsSource(index if index.is_file() else folder / "model.safetensors")


def export_weights(checkpoint: Checkpoint, folder: Path, target: str, dtype: torch.dtype | None, max_shard_bytes: int) -> None:
    """Write one of our checkpoints in the stock layout `target`, one of `LAYOUTS`.

    Biases that only the target has are zero.

    Raises:
        UserError: settings that the target cannot express; names each.
    """
    config, source = checkpoint.config, checkpoint.source
    theirs = foreign_config(config, target, checkpoint.head)
    ours = source.describe()
    dtype = dtype or common_dtype(source, ours)
    rules = inverted(target, config, checkpoint.head)
    unused = ours.keys() - {name for _, names in rules.values() for name in names}
    if unused:
        raise UserError(f"{target} has no parameters for {_listed(sorted(unused))}")

    def described(name: str) -> torch.Tensor:
        # A missing bias has as many elements as its weight has rows.
        return ours[name] if name in ours else ours[name.removesuffix("bias") + "weight"][:, 0]

    def read(name: str) -> torch.Tensor:
        layout, names = rules[name]
        parts = [source.get(part) if part in ours else torch.zeros(described(part).shape) for part in names]
        return layout.join(parts).to(dtype)

    shapes = {name: layout.join([described(part) for part in names]).shape for name, (layout, names) in rules.items()}
    write_safetensors(folder, shapes, read, dtype, max_shard_bytes)
    theirs.dtype = dtype
    save_config(theirs, folder)
    if checkpoint.tokenizer is not None:
        save_tokenizer(checkpoint.tokenizer, folder)
    if checkpoint.head == "lm":
        _save_generation_config(checkpoint, folder)
