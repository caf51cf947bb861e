"""OpenAI's TensorFlow checkpoints, converted as a user does it: the files in `tests/fixtures/tensorflow` were written by TensorFlow."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published_layouts import greedy, openai_gpt2
from tensorflow_bytes import HEADER, block, entry, index_of, masked
from tiny_models import assert_equal
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_scratch.conversion.openai import is_model_variable
from gpt_scratch.conversion.tensorflow_bundle import TensorFlowCheckpoint

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tensorflow"


@pytest.fixture
def checkpoint(tmp_path):
    """A function that copies one of the fixtures, so that it can be damaged."""
    return lambda kind: Path(shutil.copytree(FIXTURES / kind, tmp_path / kind))


@pytest.mark.parametrize("kind", ["one_shard", "several_shards", "float16", "finetuned"])
@torch.no_grad()
@pytest.mark.quick_cases("several_shards")
def test_logits_and_greedy_tokens_equal_the_reference(convert, checkpoint, capsys, kind):
    source = checkpoint(kind)
    values = {name.replace(".", "/"): torch.from_numpy(value) for name, value in np.load(source / "expected.npz").items()}
    if kind == "finetuned":  # it was initialized, never trained: the slots are there, the values as drawn
        assert any(name.endswith("/Adam") for name in TensorFlowCheckpoint(source).tensors)
    dtype = values["model/wte"].dtype
    reference = openai_gpt2(
        {name: value.float() for name, value in values.items()}, json.loads((source / "hparams.json").read_text())
    )
    model = AutoModelForCausalLM.from_pretrained(convert(source))
    assert model.dtype == dtype and model.config.tie_word_embeddings and model.config.hidden_act == "gelu_new"
    assert torch.equal(model.model.layers[1].mlp.up_proj.weight, values["model/h1/mlp/c_fc/w"][0].T)
    ids = torch.randint(0, 64, (3, 32), generator=torch.Generator().manual_seed(0))
    expected = reference(ids)
    assert expected.abs().max() > 1
    model.float()
    assert_equal(model(ids).logits, expected)
    start = ids[:1, :7]
    ours = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=25, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, greedy(reference, start, 25))
    printed = capsys.readouterr().out
    assert "compared with:      GPT2LMHeadModel" in printed and "28 source tensors" in printed
    assert ("variables of the optimizer and counters were skipped" in printed) == (kind == "finetuned")


@pytest.mark.thorough
def test_by_directory_prefix_or_index(convert, checkpoint):
    source = checkpoint("one_shard")
    weights = [
        (convert(name) / "model.safetensors").read_bytes()
        for name in (source, source / "model.ckpt", source / "model.ckpt.index")
    ]
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.thorough
def test_back_to_the_layout_of_transformers(convert, checkpoint):
    """GPT2LMHeadModel's matrices lie as OpenAI's do: what comes out are the variables themselves."""
    source = checkpoint("one_shard")
    stock = AutoModelForCausalLM.from_pretrained(convert(convert(source), "--to", "gpt2"))
    values = np.load(source / "expected.npz")
    for layer in range(2):
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            weight = stock.get_submodule(f"transformer.h.{layer}.{name}").weight
            assert torch.equal(weight, torch.from_numpy(values[f"model.h{layer}.{name}.w"])[0])


def test_the_tokenizer_is_converted(convert, refused, checkpoint):
    source = checkpoint("one_shard")
    tokens = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,!?'0123", "Ġ", "ab", "<|endoftext|>"]
    (source / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (source / "vocab.bpe").write_text("#version: 0.2\na b\n", encoding="utf-8")
    folder = convert(source)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    eos = tokens.index("<|endoftext|>")
    assert tokenizer("abc a<|endoftext|>")["input_ids"] == [tokens.index("ab"), 2, tokens.index("Ġ"), 0, eos]
    assert tokenizer.model_max_length == 32
    for settings in (model.config, model.generation_config, tokenizer):
        assert settings.eos_token_id == settings.bos_token_id == settings.pad_token_id == eos
    (source / "encoder.json").write_text(json.dumps({token: i for i, token in enumerate([*tokens, "ba"])}), encoding="utf-8")
    assert "has 65 tokens, but the model's vocab_size is 64" in refused(source)


def test_names_of_the_optimizer():
    names = ["model/wte/Adam", "model/h0/attn/c_attn/w/Adam_1", "global_step", "beta1_power", "model/ln_f/g/Momentum"]
    assert not any(map(is_model_variable, names))
    assert all(map(is_model_variable, ["model/wte", "model/h0/ln_1/b", "something_else"]))


def test_one_wrong_byte_in_any_tensor_is_named(refused, checkpoint):
    source = checkpoint("one_shard")
    data = source / "model.ckpt.data-00000-of-00001"
    whole = data.read_bytes()
    tensors = TensorFlowCheckpoint(source).tensors
    assert len(tensors) == 28
    for name, info in tensors.items():
        place = info.offset + info.size // 2
        data.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        message = refused(source)
        assert f"the checksum of {name} is wrong" in message and data.name in message


def test_all_wrong_tensors_are_named_ten_at_most(refused, checkpoint):
    source = checkpoint("one_shard")
    tensors = TensorFlowCheckpoint(source).tensors
    data = source / "model.ckpt.data-00000-of-00001"
    whole = bytearray(data.read_bytes())
    chosen = list(tensors)[:3]
    for name in chosen:
        whole[tensors[name].offset] ^= 1
    data.write_bytes(whole)
    message = refused(source)
    assert all(f"the checksum of {name} is wrong" in message for name in chosen) and "more of" not in message
    for name in list(tensors)[3:]:
        whole[tensors[name].offset] ^= 1
    data.write_bytes(whole)
    message = refused(source)
    assert message.count("the checksum of") == 10 and message.endswith("and 18 more of 28 such tensors")


def test_checkpoints_of_tensorflow_1_and_of_keras_are_refused_by_what_they_are(refused, tmp_path):
    old = tmp_path / "model.ckpt-1000"
    old.write_bytes(index_of(block([(b"", b"\x0a\x00")])))  # SavedTensorSlices
    assert "is a TensorFlow checkpoint of the old V1 format, one file without an index" in refused(old)
    keras = tmp_path / "keras"
    keras.mkdir()
    graph, variable = b"_CHECKPOINTABLE_OBJECT_GRAPH", b"layer/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    (keras / "ckpt-1.index").write_bytes(index_of(block([HEADER, (graph, b"\x08\x07\x28\x04"), (variable, entry(1, size=4))])))
    assert "ckpt-1.index is an object-based checkpoint of TensorFlow 2 (tf.train.Checkpoint, Keras)" in refused(keras)


def test_damaged_files_are_named(refused, checkpoint):
    source = checkpoint("several_shards")
    second = source / "model.ckpt.data-00001-of-00003"
    whole = second.read_bytes()
    second.write_bytes(whole[:-1])
    message = refused(source)
    assert f"{second.name} is truncated" in message and "model/" in message
    second.unlink()
    message = refused(source)
    assert f"{second.name} is missing" in message and "model/" in message
    second.write_bytes(whole)
    index = source / "model.ckpt.index"
    entries = index.read_bytes()
    index.write_bytes(entries[:100] + bytes([entries[100] ^ 1]) + entries[101:])
    message = refused(source)
    assert "model.ckpt.index: the checksum of the block" in message
    index.write_bytes(entries[:-20])
    assert "model.ckpt.index is truncated" in refused(source)
    index.unlink()
    assert "contains neither config.json nor a TensorFlow index" in refused(source)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_layer": 3}, ["hparams.json", "model.layers.2."]),
        ({"n_layer": 1}, ["hparams.json", "model/h1/", "unexpected tensors"]),
        ({"n_embd": 32}, ["hparams.json", "instead of"]),
        ({"n_ctx": 1024}, ["hparams.json", "model/wpe is (32, 16) instead of (1024, 16)"]),
        ({"n_vocab": 65}, ["hparams.json", "model/wte is (64, 16) instead of (65, 16)"]),
        ({"n_head": 3}, ["num_attention_heads 3"]),
        ({"n_head": "2"}, ["hparams.json", "n_head is '2'"]),
        ({"n_ctx": None}, ["hparams.json", "n_ctx is None"]),
        ({"n_kv": 1, "rope": True}, ["settings that GPT-2 does not have: n_kv=1, rope=True; remove those"]),
        ({"n_embd": 768, "n_head": 16}, ["hparams.json", "GPT-2 with n_embd 768 has 12", "--config_overrides n_head=16"]),
    ],
)
def test_wrong_hparams_are_named(refused, checkpoint, changes, words):
    source = checkpoint("one_shard")
    path = source / "hparams.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    message = refused(source)
    assert all(word in message for word in words), message


def test_missing_hparams_are_named(refused, checkpoint):
    source = checkpoint("one_shard")
    (source / "hparams.json").write_text("[]", encoding="utf-8")
    assert "hparams.json must hold a JSON object" in refused(source)
    (source / "hparams.json").unlink()
    assert "hparams.json cannot be read as JSON: No such file" in refused(source)


def test_renamed_variables_are_named(refused, checkpoint):
    source = checkpoint("one_shard")
    index = source / "model.ckpt.index"
    data = bytearray(index.read_bytes())
    place = data.index(b"ln_f")
    data[place : place + 4] = b"ln_z"
    for size in range(place, len(data)):  # the first block begins at 0: seal it again with the checksum of what it holds now
        if data[size] == 0 and data[size + 1 : size + 5] == masked(index.read_bytes()[: size + 1]):
            data[size + 1 : size + 5] = masked(bytes(data[: size + 1]))
            break
    index.write_bytes(data)
    message = refused(source)
    assert "model/ln_z/b, model/ln_z/g" in message and "model.norm.weight" in message
