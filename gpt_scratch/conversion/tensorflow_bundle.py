"""TensorFlow's V2 checkpoints ("tensor bundles"), read without TensorFlow.

A bundle `PREFIX` is `PREFIX.index`, a LevelDB table from variable name to a protocol buffer with dtype, shape, shard, offset, size
and checksum, and `PREFIX.data-0000i-of-0000n`, the raw little-endian values. Everything that carries a checksum is verified: each
block of the table, and each tensor when it is read. A checksum does not make a file trustworthy: every size that a file claims is
compared with the file, or with a bound, before memory is allocated.

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
TRAILER_BYTES = 5  # type of compression, then the masked checksum of contents and type
INDEX_BYTES = 1 << 25  # of an index, packed or not; GPT-2's of 1.5 billion parameters has 17 kB
LARGEST_BLOCK = 1 << 24  # TensorFlow begins a new block after 262,144 bytes
LONGEST_NAME = 1 << 12
MAX_VARIABLES = 100_000
MAX_DIMENSIONS = 64
LARGEST_RATIO = 32  # of unpacked to packed: snappy's densest element says 64 bytes in 3
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

    dtype: torch.dtype | None  # None for what is no numeric tensor
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class TensorFlowCheckpoint:
    """The variables of a checkpoint: names and shapes now, values when they are asked for, from mapped files.

    Args:
        path: a directory with one checkpoint, a prefix such as `124M/model.ckpt`, or its `.index` file.

    Attributes:
        tensors: name to [`TensorInfo`], in the order of the index (alphabetical).

    Raises:
        UserError: a file that is missing, cut short or damaged; names it.
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
            raise UserError(f"{self.index}: written on a big-endian machine, which is not supported")
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
        if held >= 1 << 59:  # torch counts bytes in 64 bits
            raise UserError(f"{self.index}: {name} has a shape of {len(shape)} dimensions that no tensor has")
        dtype = DTYPES.get(_number(fields, 1, self.index))
        shard, offset, size, crc = (_number(fields, field, self.index) for field in (3, 4, 5, 6))
        if dtype is not None and math.prod(shape) * dtype.itemsize != size:
            raise UserError(f"{self.index}: {name} of shape {shape} cannot have {size:,} bytes")
        return TensorInfo(dtype, tuple(shape), shard, offset, size, crc)

    def read(self, name: str) -> torch.Tensor:
        """One variable, its checksum verified; the values are mapped, not copied.

        Raises:
            UserError: an unknown name, a shard that is missing or too short, a wrong checksum, a dtype that holds no numbers.
        """
        if name not in self.tensors:
            raise UserError(f"{self.index} has no variable {name}")
        info = self.tensors[name]
        shard = self.prefix.with_name(f"{self.prefix.name}.data-{info.shard:05d}-of-{self.num_shards:05d}")
        if info.dtype is None:
            raise UserError(f"{self.index}: {name} holds no numbers, so it is no weight")
        if not shard.is_file():
            raise UserError(f"{shard} is missing: it holds {name}")
        end = info.offset + info.size
        if shard.stat().st_size < end:
            raise UserError(f"{shard} is cut short: it has {shard.stat().st_size:,} bytes, and {name} reaches byte {end:,}")
        if info.size == 0:
            return torch.empty(info.shape, dtype=info.dtype)
        # mode "c": pages are copied if the tensor is written to, and the file never changes
        data = np.memmap(shard, dtype=np.uint8, mode="c", offset=info.offset, shape=(info.size,))
        if unmask(info.crc) != crc32c(data):
            raise UserError(f"{shard}: the checksum of {name} is wrong: the file is damaged, fetch it again")
        return torch.from_numpy(data).view(info.dtype).reshape(info.shape)


def is_v1_checkpoint(path: Path) -> bool:
    """Whether a file is a table of values itself, as TensorFlow wrote checkpoints until 2016; an index has the suffix `.index`."""
    with path.open("rb") as file:
        size = path.stat().st_size
        file.seek(max(0, size - 8))
        return size >= FOOTER_BYTES and file.read() == struct.pack("<Q", TABLE_MAGIC)


def find_prefix(path: Path) -> Path:
    """The prefix that a directory, a prefix or an `.index` path means. Of several in a directory it is the newest, which TensorFlow
    names in the text file `checkpoint`.

    Raises:
        UserError: no index there, or several and nothing that names one.
    """
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        state = path / "checkpoint"
        if len(found) > 1 and state.is_file():
            newest = re.search(
                r'^model_checkpoint_path: "(.*)"', state.read_text(encoding="utf-8", errors="replace"), re.MULTILINE
            )
            # the path of the machine it was trained on: only its last part says something here
            found = [file for file in found if newest and file.stem == re.split(r"[/\\]", newest[1])[-1]] or found
        if len(found) != 1:
            listed = ", ".join(file.name for file in found) or "no .index file"
            raise UserError(f"{path} holds {listed}: name the one checkpoint to read")
        path = found[0]
    if path.suffix == ".index":
        path = path.with_suffix("")
    if not path.with_name(path.name + ".index").is_file():
        raise UserError(f"{path}.index is missing: a TensorFlow checkpoint has an index beside its data")
    return path


def read_table(file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a LevelDB table, in order.

    Raises:
        UserError: not such a table, or a block with a wrong checksum.
    """
    if file.stat().st_size > INDEX_BYTES:
        raise UserError(
            f"{file} has {file.stat().st_size:,} bytes, more than the {INDEX_BYTES:,} of the longest index: it is none"
        )
    data = file.read_bytes()
    if len(data) < FOOTER_BYTES or struct.unpack("<Q", data[-8:])[0] != TABLE_MAGIC:
        raise UserError(f"{file} is cut short or is no TensorFlow checkpoint index: its footer is missing")
    footer = data[-FOOTER_BYTES:-8]
    _, place = _handle(footer, 0, file)  # the metaindex, which TensorFlow leaves empty
    (offset, size), _ = _handle(footer, place, file)
    end, unpacked = 0, 0
    for _, handle in block_entries(read_block(data, offset, size, file), file):
        (offset, size), _ = _handle(handle, 0, file)
        if offset < end:
            raise UserError(f"{file} names the block at byte {offset:,} after one that ends at byte {end:,}: the file is damaged")
        end = offset + size + TRAILER_BYTES
        block = read_block(data, offset, size, file)
        unpacked += len(block)
        if unpacked > INDEX_BYTES:
            raise UserError(f"{file} unpacks to more than {INDEX_BYTES:,} bytes: it is no index")
        yield from block_entries(block, file)


def read_block(data: bytes, offset: int, size: int, file: Path) -> bytes:
    """The contents of one block, its checksum verified, decompressed."""
    if offset + size + TRAILER_BYTES > len(data):
        raise UserError(f"{file} is cut short: a block at byte {offset:,} reaches beyond its end")
    contents, kind = data[offset : offset + size], data[offset + size]
    (crc,) = struct.unpack_from("<I", data, offset + size + 1)
    if unmask(crc) != google_crc32c.value(data[offset : offset + size + 1]):
        raise UserError(f"{file}: the checksum of the block at byte {offset:,} is wrong: the file is damaged, fetch it again")
    if kind == 0:
        return contents
    if kind == 1:
        claimed, _ = varint(contents, 0, file)
        if claimed > min(LARGEST_BLOCK, LARGEST_RATIO * size):
            raise UserError(f"{file}: the block at byte {offset:,} has {size:,} bytes and claims to unpack to {claimed:,}")
        try:
            return bytes(cramjam.snappy.decompress_raw(contents))
        except cramjam.DecompressionError as error:
            raise UserError(f"{file}: the block at byte {offset:,} cannot be decompressed ({error})") from error
    raise UserError(f"{file}: a block is compressed in an unknown way ({kind})")


def block_entries(block: bytes, file: Path) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block: each key is stored as the length of the prefix that it shares with the one before, and the rest."""
    if len(block) < 4:
        raise UserError(f"{file}: a block is too short")
    (restarts,) = struct.unpack_from("<I", block, len(block) - 4)
    end = len(block) - 4 - 4 * restarts
    if end < 0:
        raise UserError(f"{file}: a block of {len(block):,} bytes claims {restarts:,} restarts")
    place, key = 0, b""
    while place < end:
        shared, place = varint(block, place, file)
        fresh, place = varint(block, place, file)
        length, place = varint(block, place, file)
        if shared > len(key) or place + fresh + length > end:
            raise UserError(f"{file}: an entry of a block reaches beyond it")
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
    """A number in base 128, lowest digits first, the top bit set on all bytes but the last; and the place after it.

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
    raise UserError(f"{file}: a number is cut short")


def proto_fields(message: bytes, file: Path) -> Fields:
    """The fields of a protocol buffer message by number: varints and fixed numbers as int, the rest as bytes."""
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
                raise UserError(f"{file}: an entry is no valid protocol buffer")
            value = message[place : place + length]
            if len(value) < length:
                raise UserError(f"{file}: an entry is cut short")
            place += length
            if kind != 2:
                value = int.from_bytes(value, "little")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def _number(fields: Fields, field: int, file: Path) -> int:
    """A number, 0 where it is left out, as protocol buffers have it."""
    value = fields.get(field, [0])[-1]
    if not isinstance(value, int):
        raise UserError(f"{file}: field {field} of an entry is no number: it is not the index of a TensorFlow V2 checkpoint")
    return value


def _messages(fields: Fields, field: int, file: Path) -> Iterator[Fields]:
    """The messages in a repeated field."""
    for value in fields.get(field, []):
        if not isinstance(value, bytes):
            raise UserError(f"{file}: field {field} of an entry is no message: it is not the index of a TensorFlow V2 checkpoint")
        yield proto_fields(value, file)


def crc32c(data: np.ndarray) -> int:
    """CRC-32C of bytes, a megabyte at a time."""
    crc = 0
    for start in range(0, len(data), 1 << 20):
        crc = google_crc32c.extend(crc, data[start : start + (1 << 20)].tobytes())
    return crc


def unmask(crc: int) -> int:
    """The CRC-32C that was stored masked: rotated right by 15 bits and a constant added."""
    rotated = (crc - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
