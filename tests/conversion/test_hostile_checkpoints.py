"""Checkpoints that claim more than they hold: each is refused in one line, within bounds of time and memory, all in one process."""

import json
import shutil
from pathlib import Path

import cramjam
import pytest
from hostile_cases import run_cases
from tensorflow_bytes import HEADER, block, entry, index_of, varint
from transformers import GPT2Config, GPT2LMHeadModel

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tensorflow"

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


@pytest.mark.fault("TensorFlow indexes that claim gigabytes, or name one block 300,000 times", seconds=60, mebibytes=1200)
@pytest.mark.thorough
def test_an_index_that_claims_more_than_its_bytes_is_refused(tmp_path):
    cases = [
        (name, tensorflow_folder(tmp_path / str(i), make()), words) for i, (name, (make, words)) in enumerate(TENSORFLOW.items())
    ]
    run_cases(cases, 60, 900)


@pytest.mark.fault("a config.json, hparams.json or index that is a list, null or nested 200,000 deep", seconds=60, mebibytes=900)
def test_json_of_another_form_is_refused_in_one_line(tmp_path):
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
def test_a_hostile_stock_directory_is_refused_by_the_loader(tmp_path):
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


@pytest.mark.fault("hparams.json of 10^9 layers, or sizes beyond all memory", seconds=60, mebibytes=900)
def test_excessive_sizes_are_refused(tmp_path):
    cases = []
    for size in ("n_layer", "n_vocab"):
        folder = Path(shutil.copytree(FIXTURES / "one_shard", tmp_path / size))
        sizes = json.loads((folder / "hparams.json").read_text(encoding="utf-8"))
        (folder / "hparams.json").write_text(json.dumps(sizes | {size: 10**30 if size == "n_vocab" else 10**9}), encoding="utf-8")
        cases.append((size, folder, "configuration: "))
    run_cases(cases, 60, 900)
