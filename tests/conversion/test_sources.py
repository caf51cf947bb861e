"""Sources of tensors: pickles, archives and indexes of shards that are damaged, hostile or claim more than they hold."""

import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from converted import HEADS_FLAG, book, save
from hostile_cases import run_cases

from gpt_scratch.conversion.sources import load_pickle_safely


@pytest.mark.fault("an index of shards that names a device, another folder, numbers or lists", seconds=60, mebibytes=900)
def test_an_index_may_only_name_files_beside_it(tmp_path):
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
def test_a_pth_that_claims_more_than_its_bytes_is_refused(tmp_path):
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


@pytest.mark.fault("a .pth with a key of tuples nested sixty deep, which would be hashed for ages", seconds=5, mebibytes=100)
def test_a_pth_that_would_be_read_forever_is_refused(refused, tmp_path):
    nested = b"\x80\x02})" + b"q\0h\0\x86" * 60 + b"K\x01s."  # {tuple: 1}: each tuple holds the one before twice
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("model/data.pkl", nested)
        archive.writestr("model/version", "3\n")
    torch.save({"a": 1}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    header = (tmp_path / "old.pth").read_bytes()
    pickles = header.split(b"}q\0")[0].rpartition(b"\x80\x02")[
        0
    ]  # magic number, version and the machine come before the contents
    (tmp_path / "old.pth").write_bytes(pickles + nested)
    for name in ("new.pth", "old.pth"):
        assert "was not written by torch.save: it holds tuples nested more than 20 deep" in refused(tmp_path / name)


def test_an_index_of_shards_that_is_no_text_is_refused(refused, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "\\ud800.safetensors"}}', encoding="utf-8")
    assert "index.json: '\\ud800.safetensors' in weight_map is not a string" in refused(tmp_path / "model")
    index.write_text('{"weight_map": {"a": 3}}', encoding="utf-8")
    assert "is not an index of shards" in refused(tmp_path / "model")


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_with_code_is_refused_and_not_run(refused, tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / "made-by-the-pickle"
    state = book().state_dict() | {"extra": Harmful(target)}
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        message = refused(path, *HEADS_FLAG)
        assert "model.pth contains posix.mkdir" in message or "model.pth holds nt.mkdir" in message
        assert "not run" in message and "torch.save(model.state_dict()" in message and not target.exists()
    torch.save(book(), path)  # a whole model needs its class to load
    assert "contains published_layouts.BookGPT" in refused(path)
    path.write_bytes(pickle.dumps(Harmful(target), protocol=2))
    assert "mkdir" in refused(path) and not target.exists()
    torch.load(save({"extra": Harmful(target)}, path), weights_only=False)
    assert target.exists()  # it would have been harmful


def test_damaged_files_are_refused(refused, tmp_path):
    path = save(book().state_dict(), tmp_path / "model.pth")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    middle = info.header_offset + info.file_size // 2
    for damaged in (
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole[: len(whole) // 2],
        b"",
        b"this is no checkpoint",
    ):
        path.write_bytes(damaged)
        message = refused(path, *HEADS_FLAG)
        assert "model.pth is damaged" in message or "model.pth is broken" in message


def test_checksums_are_verified_once_and_again_for_another_file_at_the_same_path(refused, tmp_path, monkeypatch):
    verified, testzip = [], zipfile.ZipFile.testzip
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: (verified.append(1), testzip(archive))[1])
    path = save(book().state_dict(), tmp_path / "model.pth")
    for _ in range(2):
        load_pickle_safely(path)
    assert len(verified) == 1
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    whole[info.header_offset + info.file_size // 2] ^= 1  # of the same size
    path.write_bytes(whole)
    assert "is damaged" in refused(path, *HEADS_FLAG)
