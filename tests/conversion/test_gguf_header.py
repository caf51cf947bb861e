"""The header of a GGUF file is checked against the bytes of the file before it is read."""

import struct
from collections.abc import Sequence

import pytest
from hostile_cases import run_cases


def gguf(settings: Sequence[bytes] = (), tensors: Sequence[bytes] = (), counts: tuple[int, int] | None = None) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, *(counts or (len(tensors), len(settings)))) + b"".join([*settings, *tensors])


def setting(name: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(*shape: int, kind: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<Q1sI", 1, b"w", len(shape)) + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


LLAMA = setting(b"general.architecture", 8, struct.pack("<Q", 5) + b"llama")


def llama(layers: int, width: int, vocabulary: int) -> bytes:
    numbers = {b"block_count": layers, b"embedding_length": width, b"attention.head_count": 1, b"vocab_size": vocabulary, b"context_length": 64, b"feed_forward_length": width}  # fmt: skip
    tokens = struct.pack("<IQ", 8, 1) + struct.pack("<Q1s", 1, b"a")
    pieces = [setting(b"llama." + name, 4, struct.pack("<I", number)) for name, number in numbers.items()]
    names = [setting(b"tokenizer.ggml.model", 8, struct.pack("<Q", 4) + b"gpt2"), setting(b"tokenizer.ggml.tokens", 9, tokens)]
    return gguf([LLAMA, *pieces, *names], [tensor(1)]) + bytes(100)


GGUF = {
    "10^9 layers": (lambda: llama(10**9, 8, 8), "llama.block_count is 1,000,000,000"),
    "5,000 layers in one tensor": (lambda: llama(5_000, 8, 8), "llama.block_count is 5,000, but the file has only 1 tensors"),
    "a width of 10^9": (lambda: llama(1, 10**9, 10**9), ""),
    "a vocabulary of 10^9": (lambda: llama(1, 64, 10**9), "has no "),
    "10^18 settings": (lambda: gguf(counts=(0, 10**18)), "settings"),
    "10^18 tensors": (lambda: gguf(counts=(10**18, 0)), "tensors"),
    "an array of 10^9 bytes": (lambda: gguf([setting(b"a", 9, struct.pack("<IQ", 0, 10**9))]), "elements"),
    "an array beyond the end": (lambda: gguf([setting(b"a", 9, struct.pack("<IQ", 0, 10**6))]), "the end of the file"),
    "a string of 2^63 bytes": (lambda: gguf([setting(b"a", 8, struct.pack("<Q", 2**63))]), "the end of the file"),
    "arrays in arrays": (lambda: gguf([setting(b"a", 9, struct.pack("<IQ", 9, 1) * 200_000)]), "an array of the type 9"),
    "a tensor beyond the end": (lambda: gguf([LLAMA], [tensor(1_000, 1_000)]), "w ends at byte"),
    "an offset beyond the end": (lambda: gguf([LLAMA], [tensor(1, offset=2**63)]), "w ends at byte"),
    "10^9 dimensions": (lambda: gguf([LLAMA], [struct.pack("<Q1sI", 1, b"w", 10**9)]), "1,000,000,000 dimensions"),
    "an unknown type": (lambda: gguf([LLAMA], [tensor(1, kind=999)]), "999"),
    "a key twice": (lambda: gguf([LLAMA, LLAMA]), "general.architecture is in the file twice"),
    "a tensor twice": (lambda: gguf([LLAMA], [tensor(1), tensor(1)]) + bytes(100), "w is in the file twice"),
    "nothing": (lambda: b"", "cannot be read as GGUF"),
}


@pytest.mark.fault("a GGUF with 10^9 layers, or with counts and sizes beyond the file", seconds=60, mebibytes=900)
def test_a_gguf_that_claims_more_than_its_bytes_is_refused(tmp_path):
    pytest.importorskip("gguf", reason="needs the package gguf")
    cases = []
    for number, (name, (make, words)) in enumerate(GGUF.items()):
        (tmp_path / f"{number}.gguf").write_bytes(make())
        cases.append((name, tmp_path / f"{number}.gguf", words))
    run_cases(cases, 60, 900)
