"""Reads TensorFlow's V2 checkpoints ("tensor bundles") without TensorFlow.

A bundle `PREFIX` consists of `PREFIX.index`, a LevelDB table from variable name to a protocol buffer with dtype, shape, shard, offset, size
and checksum, and `PREFIX.data-0000i-of-0000n`, the raw little-endian values. All checksums are verified: of each block of the table, and of
each tensor when it is read. A checksum does not make a file trustworthy: every size in a file is compared with the file, or with a limit,
before memory is allocated.

Sources: tensorflow/core/protobuf/tensor_bundle.proto, tensorflow/core/util/tensor_bundle/tensor_bundle.cc, leveldb
doc/table_format.md; checksums are CRC-32C, masked as in leveldb util/crc32c.h.
"""

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import cramjam
import google_crc32c
import numpy as np
import torch

from ..errors import UserError

TABLE_MAGIC = 0xDB4775248B80FB57
FOOTER_BYTES = 48
TRAILER_BYTES = 5  # compression type, then the masked checksum of contents and type
INDEX_BYTES = 1 << 25  # maximum size of an index, compressed or not; that of GPT-2 XL has 17 kB
LARGEST_BLOCK = 1 << 24  # TensorFlow starts a new block after 262,144 bytes
LONGEST_NAME = 1 << 12
MAX_VARIABLES = 100_000
MAX_DIMENSIONS = 64
LARGEST_RATIO = 32  # maximum compression ratio: snappy's densest element encodes 64 bytes in 3
DTYPES = {
    1: torch.float32,
    2: torch.float64,
    3: torch.int32,
    9: torch.int64,
    14: torch.bfloat16,
    19: torch.float16,
}  # types.proto
Fields: TypeAlias = dict[int, list[int | bytes]]


@dataclass(frozen=True)
class TensorInfo:
    """An entry of the index."""

    dtype: torch.dtype | None  # None if it is not numeric
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorFlowCheckpoint:
    """The variables of a checkpoint: names and shapes are read at once, values on access from mapped files.

    Args:
        path: a directory with one checkpoint, a prefix such as `124M/model.ckpt`, or its `.index` file.

    Attributes:
        tensors: name to [`TensorInfo`], in the order of the index (alphabetical).

    Raises:
        UserError: names a file that is missing, truncated or damaged.
    """

    def __init__(self, path: str | Path):
        self.prefix = find_prefix(Path(path))
        self.index = self.prefix.with_name(self.prefix.name + ".index")
        self.tensors: dict[str, TensorInfo] = {}
        self.num_shards = 0
        for key, value in read_table(self.index):
            if key == b"":
                self.num_shards = self._header(value)
                continue
            name = key.decode("utf-8", errors="replace")
            if name in self.tensors or len(self.tensors) == MAX_VARIABLES:
                raise UserError(f"{self.index} has {name} twice, or more than {MAX_VARIABLES:,} variables")
            self.tensors[name] = self._entry(name, value)
        if self.num_shards < 1:
            raise UserError(f"{self.index} has no bundle header: it is not the index of a TensorFlow V2 checkpoint")

    def _header(self, value: bytes) -> int:
        fields = proto_fields(value, self.index)
        if _number(fields, 2, self.index) != 0:
            raise UserError(f"{self.index}: big-endian files are not supported")
        return _number(fields, 1, self.index)

    def _entry(self, name: str, value: bytes) -> TensorInfo:
        fields = proto_fields(value, self.index)
        shape = []
        for message in _messages(fields, 2, self.index):  # TensorShapeProto: dim = 2, each with size = 1
            for dimension in _messages(message, 2, self.index):
                shape.append(_number(dimension, 1, self.index))
        if fields.get(7):
            raise UserError(f"{self.index}: {name} is stored in slices, which is not supported")
        held = math.prod(filter(None, shape[:MAX_DIMENSIONS])) if len(shape) <= MAX_DIMENSIONS else math.inf
        if held >= 1 << 59:  # torch stores sizes in 64 bits
            raise UserError(f"{self.index}: {name} has an invalid shape of {len(shape)} dimensions")
        dtype = DTYPES.get(_number(fields, 1, self.index))
        shard, offset, size, crc = (_number(fields, field, self.index) for field in (3, 4, 5, 6))
        if dtype is not None and math.prod(shape) * dtype.itemsize != size:
            raise UserError(f"{self.index}: {name} of shape {shape} cannot have {size:,} bytes")
        return TensorInfo(dtype, tuple(shape), shard, offset, size, crc)

    def read(self, name: str) -> torch.Tensor:
        """Read one variable and verify its checksum; the values are mapped, not copied.

        Raises:
            UserError: an unknown name, a missing or truncated shard, a wrong checksum, a dtype that is not numeric.
        """
        if name not in self.tensors:
            raise UserError(f"{self.index} has no variable {name}")
        info = self.tensors[name]
        shard = self.prefix.with_name(f"{self.prefix.name}.data-{info.shard:05d}-of-{self.num_shards:05d}")
        if info.dtype is None:
            raise UserError(f"{self.index}: {name} is not numeric, so it is not a weight")
        if not shard.is_file():
            raise UserError(f"{shard} is missing: it contains {name}")
        end = info.offset + info.size
        if shard.stat().st_size < end:
            raise UserError(f"{shard} is truncated: it has {shard.stat().st_size:,} bytes, but {name} ends at byte {end:,}")
        if info.size == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        # mode "c" is copy-on-write: writing to the tensor does not change the file
        data = np.memmap(shard, dtype=np.uint8, mode="c", offset=info.offset, shape=(info.size,))
        if unmask(info.crc) != crc32c(data):
            raise UserError(f"{shard}: the checksum of {name} is wrong: the file is damaged, download it again")
        return torch.from_numpy(data).view(info.dtype).reshape(info.shape)


def is_v1_checkpoint(path: Path) -> bool:
    """Whether a file is a V1 checkpoint, as TensorFlow wrote until 2016: a table with the values, without the suffix `.index`."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - 8))
        return size >= FOOTER_BYTES and file.read() == struct.pack("<Q", TABLE_MAGIC)


def find_prefix(path: Path) -> Path:
    """The prefix of a checkpoint, given a directory, a prefix or an `.index` path. If a directory contains several, the one named in
    TensorFlow's text file `checkpoint`.

    Raises:
        UserError: there is no index, or several and no file `checkpoint`.
    """
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        state = path / "checkpoint"
        if len(found) > 1 and state.is_file():
            newest = re.search(
                r'^model_checkpoint_path: "(.*)"', state.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
            )
            # a path of the training machine: only the last component is used
            found = [file for file in found if newest and file.stem == re.split(r"[/\\]", newest[1])[-1]] or found
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "no .index file"
            raise UserError(f"{path} contains {listed}: give the checkpoint to read")
        path = found[0]
    if path.suffix == ".index":
        path = path.with_suffix("")
    if not path.with_name(path.name + ".index").is_file():
        raise UserError(f"{path}.index is missing: a TensorFlow checkpoint has an index beside its data")
    return path


def read_table(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over keys and values of a LevelDB table, in order.

    Raises:
        UserError: not a LevelDB table, or a block with a wrong checksum.
    """
    if file.stat().st_size > INDEX_BYTES:
        raise UserError(f"{file} has {file.stat().st_size:,} bytes, more than {INDEX_BYTES:,}: it is not an index")
    data = file.read_bytes()
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != TABLE_MAGIC:
        raise UserError(f"{file} is truncated or not a TensorFlow checkpoint index: its footer is missing")
    footer = data[-FOOTER_BYTES:-8]
    _, place = _handle(footer, 0, file)  # the metaindex, which TensorFlow leaves empty
    (offset, size), _ = _handle(footer, place, file)
    end, unpacked = 0, 0
    for _, handle in block_entries(read_block(data, offset, size, file), file):
        (offset, size), _ = _handle(handle, 0, file)
        if offset < end:
            raise UserError(f"{file} lists a block at byte {offset:,} after one that ends at byte {end:,}: the file is damaged")
        end = offset + size + TRAILER_BYTES
        block = read_block(data, offset, size, file)
        unpacked += len(block)
        if unpacked > INDEX_BYTES:
            raise UserError(f"{file} decompresses to more than {INDEX_BYTES:,} bytes: it is not an index")
        yield from block_entries(block, file)


def read_block(data: bytes, offset: int, size: int, file: Path) -> bytes:
    """Read one block, verify its checksum and decompress it."""
    if offset + size + TRAILER_BYTES > len(data):
        raise UserError(f"{file} is truncated: the block at byte {offset:,} exceeds its end")
    contents, kind = data[offset : offset + size], data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if unmask(crc) != google_crc32c.value(data[offset : offset + size + 1]):
        raise UserError(f"{file}: the checksum of the block at byte {offset:,} is wrong: the file is damaged, download it again")
    if kind == 0:
        return contents
    if kind == 1:
        claimed, _ = varint(contents, 0, file)
        if claimed > min(LARGEST_BLOCK, LARGEST_RATIO * size):
            raise UserError(
                f"{file}: the block at byte {offset:,} has {size:,} bytes but declares {claimed:,} decompressed bytes"
            )
        try:
            return bytes(cramjam.snappy.decompress_raw(contents))
        except cramjam.DecompressionError as error:
            raise UserError(f"{file}: the block at byte {offset:,} cannot be decompressed ({error})") from error
    raise UserError(f"{file}: a block has an unknown compression type ({kind})")


def block_entries(block: bytes, file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: each key is stored as the length of the prefix shared with the previous key, and the rest."""
    if len(block) < 4:
        raise UserError(f"{file}: a block is too short")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise UserError(f"{file}: a block of {len(block):,} bytes declares {restarts:,} restarts")
    place, key = 0, b""
    while place < end:
        shared, place = varint(block, place, file)
        fresh, place = varint(block, place, file)
        length, place = varint(block, place, file)
        if shared > len(key) or place + fresh + length > end:
            raise UserError(f"{file}: an entry exceeds its block")
        if shared + fresh > LONGEST_NAME:
            raise UserError(f"{file}: a name of {shared + fresh:,} bytes")
        key = key[:shared] + block[place : place + fresh]
        place += fresh
        yield key, block[place : place + length]
        place += length


def _handle(data: bytes, place: int, file: Path) -> tuple[tuple[int, int], int]:
    offset, place = varint(data, place, file)
    size, place = varint(data, place, file)
    return (offset, size), place


def varint(data: bytes, place: int, file: Path) -> tuple[int, int]:
    """Decode a varint (base 128, little-endian, the top bit marks continuation); returns the number and the position after it.

    >>> varint(bytes([0xAC, 0x02, 0xFF]), 0, Path("x"))
    (300, 2)
    """
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise UserError(f"{file}: a number is truncated")


def proto_fields(message: bytes, file: Path) -> Fields:
    """The fields of a protocol buffer message by number: varints and fixed-size numbers as int, others as bytes."""
    fields: Fields = {}
    place = 0
    while place < len(message):
        tag, place = varint(message, place, file)
        kind = tag & 7
        value: int | bytes
        if kind == 0:
            value, place = varint(message, place, file)
        else:
            if kind == 2:
                length, place = varint(message, place, file)
            elif kind in (1, 5):
                length = 8 if kind == 1 else 4
            else:
                raise UserError(f"{file}: an entry is not a valid protocol buffer")
            value = message[place : place + length]
            if len(value) < length:
                raise UserError(f"{file}: an entry is truncated")
            place += length
            if kind != 2:
                value = int.from_bytes(value, "little")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Fields, field: int, file: Path) -> int:
    """A number; 0 if the field is missing, as in protocol buffers."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise UserError(f"{file}: field {field} of an entry is not a number: it is not the index of a TensorFlow V2 checkpoint")
    return value


def _messages(fields: Fields, field: int, file: Path) -> Iterator[Fields]:
    """The messages in a repeated field."""
    for value in fields.get(field, []):
        if not isinstance(value, bytes):
            raise UserError(
                f"{file}: field {field} of an entry is not a message: it is not the index of a TensorFlow V2 checkpoint"
            )
        yield proto_fields(value, file)


def crc32c(data: np.ndarray) -> int:
    """CRC-32C of an array of bytes, computed in chunks of a megabyte."""
    crc = 0
    for start in range(0, len(data), 1 << 20):
        crc = google_crc32c.extend(crc, data[start : start + (1 << 20)].tobytes())
    return crc


def unmask(crc: int) -> int:
    """Undo LevelDB's masking of a CRC-32C: rotated right by 15 bits, plus a constant."""
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
