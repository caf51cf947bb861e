"""TensorFlow's bundles against files that TensorFlow wrote; every kind of damage is refused by name."""

import shutil
import struct
from pathlib import Path

import cramjam
import numpy as np
import pytest
import torch
from tensorflow_bytes import masked, varint

from gpt_scratch.conversion.tensorflow_bundle import TABLE_MAGIC, TensorFlowCheckpoint, find_prefix, read_table
from gpt_scratch.errors import UserError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tensorflow"


@pytest.mark.parametrize(("kind", "shards"), [("one_shard", 1), ("several_shards", 3), ("float16", 1), ("finetuned", 1)])
def test_every_value_is_what_tensorflow_wrote(kind, shards):
    checkpoint = TensorFlowCheckpoint(FIXTURES / kind)
    expected = np.load(FIXTURES / kind / "expected.npz")
    assert checkpoint.num_shards == shards
    for name in expected.files:
        assert torch.equal(checkpoint.read(name.replace(".", "/")), torch.from_numpy(expected[name])), name
    extra = set(checkpoint.tensors) - {name.replace(".", "/") for name in expected.files}
    assert len(extra) == (2 * len(expected.files) + 3 if kind == "finetuned" else 0)
    if kind == "finetuned":
        assert checkpoint.read("global_step").item() == 0 and checkpoint.read("global_step").dtype == torch.int64


def test_directory_prefix_and_index_mean_the_same(tmp_path):
    folder = FIXTURES / "one_shard"
    for path in (folder, folder / "model.ckpt", folder / "model.ckpt.index"):
        assert TensorFlowCheckpoint(path).prefix == folder / "model.ckpt"
    with pytest.raises(UserError, match="no .index file"):
        find_prefix(tmp_path)
    with pytest.raises(UserError, match="model.ckpt.index is missing"):
        find_prefix(tmp_path / "model.ckpt")
    for name in ("a.index", "b.index"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match="a.index, b.index: give the checkpoint"):
        find_prefix(tmp_path)
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/home/me/run1/b"\nall_model_checkpoint_paths: "/home/me/run1/a"\n'
    )
    assert find_prefix(tmp_path) == tmp_path / "b"  # the one that TensorFlow names as the newest
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "c"\n')
    with pytest.raises(UserError, match="a.index, b.index: give the checkpoint"):
        find_prefix(tmp_path)


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FIXTURES / "several_shards", tmp_path / "copy"))


def test_one_wrong_byte_in_any_tensor_is_reported_with_its_name(copy):
    whole = TensorFlowCheckpoint(copy)
    for name, info in whole.tensors.items():
        shard = copy / f"model.ckpt.data-{info.shard:05d}-of-00003"
        data = bytearray(shard.read_bytes())
        data[info.offset + info.size // 2] ^= 1
        shard.write_bytes(data)
        with pytest.raises(UserError, match=f"{shard.name}: the checksum of {name} is wrong"):
            whole.read(name)
        data[info.offset + info.size // 2] ^= 1
        shard.write_bytes(data)
    assert all(whole.read(name).shape == torch.Size(info.shape) for name, info in whole.tensors.items())


@pytest.mark.thorough
def test_one_wrong_byte_anywhere_in_the_index_is_reported(copy):
    index = copy / "model.ckpt.index"
    original = index.read_bytes()
    reference = TensorFlowCheckpoint(copy).tensors
    silent = 0
    for place in range(len(original)):
        damaged = bytearray(original)
        damaged[place] ^= 0x10
        index.write_bytes(damaged)
        try:
            silent += TensorFlowCheckpoint(copy).tensors == reference  # the footer's padding, the empty metaindex: not read
        except UserError as error:
            assert "model.ckpt.index" in str(error)
        else:
            assert TensorFlowCheckpoint(copy).tensors == reference, place
    assert silent < 60


def test_truncated_and_missing_files_are_named(copy):
    checkpoint = TensorFlowCheckpoint(copy)
    last = max((info.offset, name) for name, info in checkpoint.tensors.items() if info.shard == 1)[1]
    shard = copy / "model.ckpt.data-00001-of-00003"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"data-00001-of-00003 is truncated: .* {last} ends at"):
        checkpoint.read(last)
    shard.unlink()
    with pytest.raises(UserError, match=f"data-00001-of-00003 is missing: it contains {last}"):
        checkpoint.read(last)
    index = copy / "model.ckpt.index"
    index.write_bytes(index.read_bytes()[:-10])
    with pytest.raises(UserError, match="footer is missing"):
        TensorFlowCheckpoint(copy)
    with pytest.raises(UserError, match="has no variable model/nothing"):
        checkpoint.read("model/nothing")


def table(compressed: bool, footer_magic: int = TABLE_MAGIC) -> bytes:
    """A LevelDB table with two keys that share a prefix, written by hand."""

    def block(entries: list[tuple[int, bytes, bytes]]) -> bytes:
        body = b"".join(bytes([shared, len(rest), len(value)]) + rest + value for shared, rest, value in entries)
        return body + struct.pack("<II", 0, 1)

    def stored(contents: bytes) -> bytes:
        kind = b"\x01" if compressed else b"\x00"
        contents = bytes(cramjam.snappy.compress_raw(contents)) if compressed else contents
        return contents + kind + masked(contents + kind)

    data = stored(block([(0, b"layer/a", b"first"), (6, b"b", b"second")]))
    index = stored(block([(0, b"layer/c", bytes([0, len(data) - 5]))]))
    meta = stored(block([]))
    place = len(data) + len(meta)
    handles = bytes([len(data), len(meta) - 5]) + bytes([place, len(index) - 5])
    return data + meta + index + handles.ljust(40, b"\0") + struct.pack("<Q", footer_magic)


@pytest.mark.parametrize("compressed", [False, True])
def test_prefixes_and_compressed_blocks(tmp_path, compressed):
    (tmp_path / "t.index").write_bytes(table(compressed))
    assert list(read_table(tmp_path / "t.index")) == [(b"layer/a", b"first"), (b"layer/b", b"second")]
    (tmp_path / "t.index").write_bytes(table(compressed, footer_magic=1))
    with pytest.raises(UserError, match="footer is missing"):
        list(read_table(tmp_path / "t.index"))


def test_every_other_dtype():
    checkpoint = TensorFlowCheckpoint(FIXTURES / "other_dtypes")
    expected = np.load(FIXTURES / "other_dtypes" / "expected.npz")
    dtypes = {
        "bfloat16": torch.bfloat16, "float64": torch.float64, "int32": torch.int32, "int64": torch.int64,
        "nothing": torch.float32, "scalar": torch.float32,
    }  # fmt: skip
    assert set(checkpoint.tensors) == {*dtypes, "string"}
    for name, dtype in dtypes.items():
        value = checkpoint.read(name)
        assert value.dtype == checkpoint.tensors[name].dtype == dtype
        assert value.shape == checkpoint.tensors[name].shape == expected[name].shape
        assert torch.equal(value, torch.from_numpy(expected[name]).to(dtype)), name
    with pytest.raises(UserError, match=r"model\.ckpt\.index: string is not numeric"):
        checkpoint.read("string")


def many_blocks(entries: list[tuple[bytes, bytes]], size: int) -> bytes:
    """A compressed table with `size` entries a block, as TensorFlow writes them where an index is larger than one block."""
    data = b""

    def stored(entries: list[tuple[bytes, bytes]]) -> bytes:
        """Append a block of entries that share nothing; returns its handle."""
        nonlocal data
        body = b"".join(varint(0) + varint(len(key)) + varint(len(value)) + key + value for key, value in entries)
        contents = bytes(cramjam.snappy.compress_raw(body + struct.pack("<II", 0, 1))) + b"\x01"
        handle = varint(len(data)) + varint(len(contents) - 1)
        data += contents + masked(contents)
        return handle

    blocks = [entries[i : i + size] for i in range(0, len(entries), size)]
    index = [(block[-1][0], stored(block)) for block in blocks]
    handles = stored([]) + stored(index)
    return data + handles.ljust(40, b"\0") + struct.pack("<Q", TABLE_MAGIC)


def test_an_index_of_many_compressed_blocks(copy):
    checkpoint = TensorFlowCheckpoint(copy)
    index = copy / "model.ckpt.index"
    index.write_bytes(many_blocks(list(read_table(index)), size=5))
    again = TensorFlowCheckpoint(copy)
    assert list(again.tensors.items()) == list(checkpoint.tensors.items()) and again.num_shards == 3
    assert torch.equal(again.read("model/wte"), checkpoint.read("model/wte"))


def test_a_big_endian_bundle_is_refused(copy):
    index = copy / "model.ckpt.index"
    (_, header), *entries = read_table(index)
    assert header[:2] == b"\x08\x03"  # num_shards = 3, and endianness not written, as it is 0: little
    index.write_bytes(many_blocks([(b"", header + b"\x10\x01"), *entries], size=100))
    with pytest.raises(UserError, match=r"model\.ckpt\.index: big-endian files are not supported"):
        TensorFlowCheckpoint(copy)
    index.write_bytes(many_blocks(entries, size=100))
    with pytest.raises(UserError, match="has no bundle header"):
        TensorFlowCheckpoint(copy)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        (b"\x0a\x01x", "field 1 of an entry is not a number"),  # dtype as text
        (b"\x08\x01\x10\x01", "field 2 of an entry is not a message"),  # the shape as a number
        (b"\x08\x01\x12\x02\x10\x01", "field 2 of an entry is not a message"),  # a dimension as a number
        (b"\x08\x01\x12\x04\x12\x02\x08\x05\x28\x08", r"model/x of shape \[5\] cannot have 8 bytes"),
        (b"\x08", "a number is truncated"),
        (b"\x0f", "not a valid protocol buffer"),
    ],
)
def test_a_wrong_entry_with_a_valid_checksum_is_refused(copy, entry, told):
    index = copy / "model.ckpt.index"
    header = next(iter(read_table(index)))
    index.write_bytes(many_blocks([header, (b"model/x", entry)], size=100))
    with pytest.raises(UserError, match=told):
        TensorFlowCheckpoint(copy)


def test_the_official_index_of_the_117m_release(shared_data):
    checkpoint = TensorFlowCheckpoint(shared_data / "gpt2")
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    assert len(shapes) == 148 and {info.dtype for info in checkpoint.tensors.values()} == {torch.float32}
    assert shapes["model/wte"] == (50257, 768) and shapes["model/wpe"] == (1024, 768)
    assert all(shapes[f"model/h{i}/attn/c_attn/w"] == (1, 768, 2304) for i in range(12))
    assert sum(info.size for info in checkpoint.tensors.values()) == 497_759_232
    with pytest.raises(UserError, match="data-00000-of-00001 is missing"):
        checkpoint.read("model/wte")
