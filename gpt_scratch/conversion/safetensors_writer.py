"""Writes safetensors files one tensor at a time.

`safetensors.torch.save_file` needs all tensors of a file in memory. Here the header is written first, from the shapes, then each tensor as
it is read, so that only one tensor is in memory. Format: 8 bytes little-endian length of the header, header as JSON, data
(https://github.com/huggingface/safetensors#format). Shards and their index have the same names as in transformers.
"""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .sources import DTYPES


def write_safetensors(
    folder: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    """Write `model.safetensors`, or shards and their index if the data exceeds `max_shard_bytes`.

    Args:
        folder: target directory.
        shapes: names and shapes, in the order of the file.
        read: returns the tensor of a name, in `dtype`.
        dtype: of all tensors.
        max_shard_bytes: maximum data of one file; a larger tensor gets its own file.
    """
    sizes = {name: dtype.itemsize * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name in shapes:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > max_shard_bytes:
            shards.append([])
        shards[-1].append(name)
    count = len(shards)
    files = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)] if count > 1 else ["model.safetensors"]
    for file, names in zip(files, shards):
        with (folder / file).open("wb") as output:
            output.write(_header(names, shapes, sizes, dtype))
            for name in names:
                tensor = read(name).contiguous()
                assert tensor.dtype == dtype and tuple(tensor.shape) == tuple(shapes[name]), name
                output.write(tensor.reshape(-1).view(torch.uint8).numpy().data)  # bytes() would make a copy
    if count > 1:
        weight_map = {name: file for file, names in zip(files, shards) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(names: Sequence[str], shapes: Mapping[str, Sequence[int]], sizes: Mapping[str, int], dtype: torch.dtype) -> bytes:
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        entries[name] = {"dtype": kind, "shape": list(shapes[name]), "data_offsets": [offset, offset + sizes[name]]}
        offset += sizes[name]
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data starts at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def checksum(folder: Path) -> str:
    """SHA-256 of the weight files of a directory, in the order of their names; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
