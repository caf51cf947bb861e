"""Safetensors files written tensor by tensor are read by the library, in shards too."""

import json

import pytest
import torch
from safetensors.torch import load_file

from gpt_scratch.conversion.safetensors_writer import checksum, write_safetensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_library_reads_what_is_written(tmp_path, dtype):
    state = {"b": torch.randn(3, 5), "a": torch.randn(5, 3).T, "scalar": torch.tensor(2.0), "empty": torch.zeros(0, 4)}
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    write_safetensors(tmp_path, {name: tensor.shape for name, tensor in state.items()}, state.get, dtype, 10**9)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == state.keys() and all(torch.equal(read[name], state[name]) for name in state)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_are_filled_in_order_and_a_larger_tensor_has_its_own(tmp_path):
    state = {name: torch.randn(size) for name, size in {"a": 2, "b": 2, "large": 9, "c": 3}.items()}
    write_safetensors(tmp_path, {name: tensor.shape for name, tensor in state.items()}, state.get, torch.float32, 16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shards = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert index == {"metadata": {"total_size": 64}, "weight_map": dict(zip(state, [shards[0], shards[0], shards[1], shards[2]]))}
    assert all(torch.equal(load_file(tmp_path / file)[name], state[name]) for name, file in index["weight_map"].items())


def test_the_checksum_is_of_all_shards_in_order(tmp_path):
    (tmp_path / "model-00001.safetensors").write_bytes(b"abc")
    (tmp_path / "model-00002.safetensors").write_bytes(b"def")
    whole = checksum(tmp_path)
    (tmp_path / "model-00002.safetensors").write_bytes(b"deg")
    assert len(whole) == 64 and checksum(tmp_path) != whole
    (tmp_path / "model-00001.safetensors").write_bytes(b"abcdef")
    (tmp_path / "model-00002.safetensors").write_bytes(b"")
    assert checksum(tmp_path) == whole
