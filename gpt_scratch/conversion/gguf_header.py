"""Validates the header of a GGUF file before any library reads it: all sizes must fit in the file.

The gguf package trusts the lengths of arrays (an array beyond the end of the file is filled with empty elements indefinitely), and
transformers builds as many layers as the header declares. Source: ggml docs/gguf.md.
"""

import math
import mmap
import struct
from pathlib import Path

from ..errors import UserError, one_line
from ..inference.loading import LARGEST

SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UNSIGNED = {0: "<B", 2: "<H", 4: "<I", 10: "<Q"}
STRING, ARRAY = 8, 9
MAX_ENTRIES = 100_000  # settings, and tensors
MAX_ELEMENTS = 4_000_000  # elements of all arrays; a vocabulary of 262,144 with its merges has 1.3 million
MAX_DIMENSIONS = 4  # GGML_MAX_DIMS
COUNTS = {"block_count": LARGEST["layer"], "expert_count": LARGEST["expert"]}


class _Reader:
    """A position in a mapped file."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place, self.elements = data, 0, 0

    def number(self, form: str) -> int:
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, self.place - struct.calcsize(form))[0]

    def skip(self, size: int) -> None:
        if size > len(self.data) - self.place:
            raise ValueError(f"{size:,} bytes at byte {self.place:,} exceed the end of the file, byte {len(self.data):,}")
        self.place += size

    def text(self) -> str:
        size = self.number("<Q")
        self.skip(size)
        return self.data[self.place - size : self.place].decode("utf-8", errors="replace") if size <= 1_000 else ""

    def value(self, kind: int) -> int | None:
        """Skip a value; an unsigned integer is returned."""
        if kind == STRING:
            self.skip(self.number("<Q"))
        elif kind == ARRAY:
            self.array(self.number("<I"), self.number("<Q"))
        elif kind in UNSIGNED:
            return self.number(UNSIGNED[kind])
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")
        return None

    def array(self, kind: int, count: int) -> None:
        self.elements += count
        if self.elements > MAX_ELEMENTS:
            raise ValueError(f"arrays of {self.elements:,} elements, more than {MAX_ELEMENTS:,}")
        if kind == STRING:
            for _ in range(count):
                self.skip(self.number("<Q"))
        elif kind in SCALAR_BYTES:
            self.skip(SCALAR_BYTES[kind] * count)
        else:
            raise ValueError(f"an array of the type {kind}")


def check_gguf(path: Path) -> None:
    """Refuse a header with sizes that exceed the file, or the limits of any model.

    Raises:
        UserError: names the size.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Reader(data))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as GGUF: {one_line(error)}") from error


def _check(reader: _Reader) -> None:
    if reader.data[:4] != b"GGUF":
        raise ValueError("the file does not start with GGUF")
    reader.skip(4)
    if (version := reader.number("<I")) not in (2, 3):
        raise ValueError(f"version {version} is not supported: only 2 and 3, little-endian")
    tensors, settings = reader.number("<Q"), reader.number("<Q")
    if max(tensors, settings) > MAX_ENTRIES:
        raise ValueError(f"the header declares {tensors:,} tensors and {settings:,} settings, more than {MAX_ENTRIES:,}")
    alignment = 32
    names = set[str]()
    for _ in range(settings):
        name = _new(reader.text(), names)
        value = reader.value(reader.number("<I"))
        if name == "general.alignment":
            alignment = value or 32
        largest = COUNTS.get(name.rpartition(".")[-1])
        if largest is not None and value is not None and value > largest:
            raise ValueError(f"{name} is {value:,}: more than {largest:,} is surely a mistake")
        if name.endswith(".block_count") and value is not None and value > tensors:  # transformers builds each, which takes time
            raise ValueError(f"{name} is {value:,}, but the file has only {tensors:,} tensors")
    names.clear()
    ends = [_tensor_end(reader) for _ in range(tensors)]
    for name, _ in ends:
        _new(name, names)
    start = -(-reader.place // alignment) * alignment
    for name, end in ends:
        if start + end > len(reader.data):
            raise ValueError(f"{name} ends at byte {start + end:,}, but the file ends at byte {len(reader.data):,}")


def _new(name: str, names: set[str]) -> str:
    if name in names:
        raise ValueError(f"{one_line(name, 100)} is in the file twice")
    names.add(name)
    return name


def _tensor_end(reader: _Reader) -> tuple[str, int]:
    """The name of a tensor, and the end of its data as an offset from the start of the data section."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name, dimensions = one_line(reader.text(), 100), reader.number("<I")
    if dimensions > MAX_DIMENSIONS:
        raise ValueError(f"{name} has {dimensions:,} dimensions")
    elements = math.prod(reader.number("<Q") for _ in range(dimensions))
    items, size = GGML_QUANT_SIZES[GGMLQuantizationType(reader.number("<I"))]  # ValueError of an unknown type
    return name, reader.number("<Q") + -(-elements // items) * size
