"""Checkpoints whose claims exceed their bytes: each is refused in one line, in bounds of time and memory, all in one process."""

import json
import os
import shutil
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import cramjam
import google_crc32c
import pytest
import torch
from bounds import run_bounded
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_scratch.conversion.tensorflow_bundle import TABLE_MAGIC

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tensorflow"
DRIVER = """
import json, sys, time
from gpt_scratch.conversion.formats import recognize
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.errors import UserError

for line in sys.stdin:
    start = time.perf_counter()
    try:
        recognize(json.loads(line), Options())
        said = None
    except UserError as error:
        said = str(error)
    print(json.dumps([said, time.perf_counter() - start]), flush=True)
"""


def masked(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


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
    return contents + bytes([kind]) + struct.pack("<I", masked(contents + bytes([kind])))


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
TENSORFLOW = {
    "5 bytes that claim 4 GB": (lambda: index_of(varint(0xFFFFFFFF), 1), "declares 4,294,967,295"),
    "one block named 300,000 times": (lambda: index_of(block([HEADER]), times=300_000), "after one that ends at"),
    "900 MB of zeros packed by snappy": (
        lambda: index_of(bytes(cramjam.snappy.compress_raw(b"\0" * 900_000_000)), 1),
        "it is not an index",
    ),
    "20 MB of zeros packed by snappy": (
        lambda: index_of(bytes(cramjam.snappy.compress_raw(b"\0" * 20_000_000)), 1),
        "declares",
    ),
    "4,294,967,295 restarts": (lambda: index_of(block([HEADER], restarts=0xFFFFFFFF)), "declares 4,294,967,295 restarts"),
    "a name of a megabyte": (lambda: index_of(block([HEADER, (b"x" * 1_000_000, b"")])), "a name of 1,000,000 bytes"),
    "a million variables": (lambda: index_of(block([(b"%d" % i, b"") for i in range(1_000_000)])), "more than 100,000 variables"),
    "a variable twice": (lambda: index_of(block([HEADER, (b"w", entry(0)), (b"w", entry(0))])), "has w twice"),
    "100,000 dimensions": (lambda: index_of(block([HEADER, (b"w", entry(*[2**62] * 100_000))])), "100000 dimensions"),
    "a dimension of 2^69": (lambda: index_of(block([HEADER, (b"w", entry(0, 2**69))])), "an invalid shape"),
}
JSONS = {
    "a list": ("[]", "must hold a JSON object"),
    "null": ("null", "must hold a JSON object"),
    "nested 200,000 deep": ("[" * 200_000, "nested too deeply"),
    "objects nested 200,000 deep": ('{"a":' * 200_000, "nested too deeply"),
    "a number of 5,000 digits": ('{"model_type": ' + "9" * 5_000 + "}", "digits"),
    "no UTF-8": ("\udcff", "is not JSON"),
}


def tensorflow_folder(folder: Path, index: bytes) -> Path:
    folder.mkdir()
    (folder / "model.ckpt.index").write_bytes(index)
    return folder


def run_cases(cases: list[tuple[str, Path, str]], seconds: float, mebibytes: float) -> None:
    outcome = run_bounded(
        [sys.executable, "-c", DRIVER], seconds, mebibytes, stdin="".join(json.dumps(str(p)) + "\n" for _, p, _ in cases)
    )
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    reached = cases[min(len(answers), len(cases) - 1)][0]
    assert outcome.exceeded is None and outcome.status == 0, (reached, outcome.exceeded, outcome.stderr[-2000:])
    for (name, _, words), (said, took) in zip(cases, answers, strict=True):
        assert said is not None and words in said and "\n" not in said and len(said) < 1_000, (name, said)
        assert took < 10, (name, took)


@pytest.mark.fault("TensorFlow indexes that claim gigabytes, or name one block 300,000 times", seconds=60, mebibytes=1200)
@pytest.mark.thorough
def test_an_index_is_not_believed_beyond_its_bytes(tmp_path):
    cases = [
        (name, tensorflow_folder(tmp_path / str(i), make()), words) for i, (name, (make, words)) in enumerate(TENSORFLOW.items())
    ]
    run_cases(cases, 60, 900)


@pytest.mark.fault("a config.json, hparams.json or index that is a list, null or nested 200,000 deep", seconds=60, mebibytes=900)
def test_json_of_another_form_is_one_line(tmp_path):
    cases = []
    for number, (name, (text, words)) in enumerate(JSONS.items()):
        data = text.encode("utf-8", "surrogateescape")
        folder = tmp_path / f"config-{number}"
        folder.mkdir()
        (folder / "config.json").write_bytes(data)
        cases.append((f"config.json: {name}", folder, words))
        folder = Path(shutil.copytree(FIXTURES / "one_shard", tmp_path / f"hparams-{number}"))
        (folder / "hparams.json").write_bytes(data)
        cases.append((f"hparams.json: {name}", folder, words))
        for kind in ("model.safetensors", "pytorch_model.bin"):
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
            (folder / f"{kind}.index.json").write_bytes(data)
            cases.append((f"{kind}.index.json: {name}", folder, words))
    run_cases(cases, 60, 900)


@pytest.mark.fault(
    "a stock checkpoint with a hostile generation_config.json, or 10^9 labels or layers", seconds=60, mebibytes=900
)
def test_a_stock_directory_is_opened_by_the_one_loader(tmp_path):
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 1, "vocab_size": 8, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / "whole")
    cases = []
    for number, (name, (text, _)) in enumerate(JSONS.items()):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"generation-{number}"))
        (folder / "generation_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        if name != "a number of 5,000 digits":
            cases.append((f"generation_config.json: {name}", folder, "generation_config.json cannot be used"))
    for name, value, words in (
        ("num_labels", 10**9, "num_labels is 1,000,000,000"),
        ("n_layer", 10**9, "n_layer is 1,000,000,000"),
    ):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / name))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | {name: value}), encoding="utf-8")
        cases.append((name, folder, words))
    run_cases(cases, 60, 900)


@pytest.mark.fault("an index of shards that names a device, another folder, numbers or lists", seconds=60, mebibytes=900)
def test_an_index_names_files_beside_it(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    cases = []
    for number, (shards, words) in enumerate(
        [
            ({"a": "../../outside"}, "not a file in the same directory"),
            ({"a": "/dev/zero"}, "not a file in the same directory"),
            ({"a": ".."}, "not a file in the same directory"),
            ({"a": "zero"}, "is missing"),  # a link to a device
            ({"a": "fifo"}, "is missing"),
            ({"a": 5}, "no weight_map of tensors to files"),
            (["a"], "no weight_map of tensors to files"),
            ({}, "no weight_map of tensors to files"),
            ("a", "no weight_map of tensors to files"),
            ({"a": "x" * 5_000}, "not a file in the same directory"),
        ]
    ):
        for kind in ("model.safetensors", "pytorch_model.bin"):
            folder = tmp_path / f"{kind}-{number}"
            folder.mkdir()
            (folder / "zero").symlink_to("/dev/zero")
            (folder / "fifo").symlink_to(tmp_path / "fifo")
            (folder / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
            (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
            cases.append((f"{kind}: {shards}", folder, words))
    run_cases(cases, 60, 900)


def repacked(path: Path, whole: Path, compression: int, extra: bytes = b"") -> Path:
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", compression) as target:
        for part in source.infolist():
            target.writestr(part.filename, source.read(part) + (extra if part.filename.endswith("/data/0") else b""))
    return path


def edited(path: Path, whole: Path, edit) -> Path:
    data = bytearray(whole.read_bytes())
    edit(data)
    path.write_bytes(data)
    return path


def flag_as_encrypted(data: bytearray) -> None:
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        found = data.find(signature)
        while found >= 0:
            data[found + place] |= 1
            found = data.find(signature, found + 1)


def claim_more(data: bytearray) -> None:
    found = data.find(b"PK\x01\x02")
    while found >= 0:
        data[found + 20 : found + 28] = struct.pack("<II", 2**31, 2**31)
        found = data.find(b"PK\x01\x02", found + 1)


@pytest.mark.fault(
    "a .pth that unpacks to 2 GB, is encrypted or damaged, or whose tensors claim terabytes", seconds=60, mebibytes=900
)
@pytest.mark.thorough
def test_a_pth_is_not_believed_beyond_its_bytes(tmp_path):
    whole, repeated, shared, loop = (tmp_path / f"{name}.pth" for name in ("whole", "repeated", "shared", "loop"))
    torch.save({"tok_emb.weight": torch.ones(8, 4)}, whole)
    torch.save({"tok_emb.weight": torch.zeros(1).expand(10**6, 10**6)}, repeated)
    weight = torch.zeros(100_000)
    torch.save(OrderedDict((f"layer.{i}", weight) for i in range(1_000)), shared)
    circle: dict = {"a": torch.zeros(1)}
    circle["model"] = circle
    torch.save(circle, loop)
    cases = [
        ("packed", repacked(tmp_path / "packed.pth", whole, zipfile.ZIP_DEFLATED, bytes(200_000_000)), "compressed or encrypted"),
        ("encrypted", edited(tmp_path / "encrypted.pth", whole, flag_as_encrypted), "compressed or encrypted"),
        ("parts that claim more", edited(tmp_path / "more.pth", whole, claim_more), "members declare"),
        ("truncated", edited(tmp_path / "short.pth", whole, lambda data: data.__delitem__(slice(-30, None))), "damaged"),
        (
            "damaged directory",
            edited(tmp_path / "damaged.pth", whole, lambda data: data.__setitem__(slice(-60, -40), b"\xff" * 20)),
            "",
        ),
        ("one number for 10^12", repeated, "times as many"),
        ("a thousand names of one tensor", shared, "times as many"),
        ("a dictionary that holds itself", loop, "an unknown format"),
    ]
    run_cases(cases, 60, 900)


@pytest.mark.fault("hparams.json of 10^9 layers, or sizes beyond all memory", seconds=60, mebibytes=900)
def test_sizes_beyond_reason_are_refused(tmp_path):
    cases = []
    for size in ("n_layer", "n_vocab"):
        folder = Path(shutil.copytree(FIXTURES / "one_shard", tmp_path / size))
        sizes = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
        (folder / "hparams.json").write_text(json.dumps(sizes | {size: 10**30 if size == "n_vocab" else 10**9}), encoding="utf-8")
        cases.append((size, folder, "configuration: "))
    run_cases(cases, 60, 900)


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
    "nothing": (lambda: b"", "cannot be read as GGUF"),
}


@pytest.mark.fault("a GGUF with 10^9 layers, or with counts and sizes beyond the file", seconds=60, mebibytes=900)
def test_a_gguf_is_not_believed_beyond_its_bytes(tmp_path):
    pytest.importorskip("gguf", reason="needs the package gguf")
    cases = []
    for number, (name, (make, words)) in enumerate(GGUF.items()):
        (tmp_path / f"{number}.gguf").write_bytes(make())
        cases.append((name, tmp_path / f"{number}.gguf", words))
    run_cases(cases, 60, 900)
