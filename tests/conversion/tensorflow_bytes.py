"""The parts of TensorFlow's checkpoint indexes (LevelDB tables), byte by byte, for tests that write broken ones."""

import struct

import google_crc32c

from gpt_scratch.conversion.tensorflow_bundle import TABLE_MAGIC


def masked(data: bytes) -> bytes:
    """The checksum of `data` as LevelDB stores it."""
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def varint(number: int) -> bytes:
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def block(entries: list[tuple[bytes, bytes]], restarts: int = 1) -> bytes:
    body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
    return body + struct.pack("<II", 0, restarts)


def stored(contents: bytes, kind: int) -> bytes:
    return contents + bytes([kind]) + masked(contents + bytes([kind]))


def index_of(contents: bytes, kind: int = 0, times: int = 1) -> bytes:
    """A table with one block, which its index names `times` times."""
    data = stored(contents, kind)
    handles = [(b"k%09d" % number, varint(0) + varint(len(data) - 5)) for number in range(times)]
    index = stored(block(handles), 0)
    footer = varint(len(data)) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    return data + index + footer.ljust(40, b"\0") + struct.pack("<Q", TABLE_MAGIC)


def entry(*dimensions: int, size: int = 0) -> bytes:
    """A BundleEntryProto of a float32 tensor."""
    shape = b"".join(b"\x12" + varint(len(dim)) + dim for dim in (b"\x08" + varint(number) for number in dimensions))
    return b"\x08\x01\x12" + varint(len(shape)) + shape + b"\x28" + varint(size)


HEADER = (b"", b"\x08\x01")
