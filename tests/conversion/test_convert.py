"""The engine of conversions: dtypes, shards, and tied weights under any of their names."""

import json

import pytest
import torch
from converted import HEADS_FLAG, book, save
from safetensors.torch import load_file, save_file
from stock_models import gpt2, ids, llama, saved
from tiny_models import assert_equal, randomize
from transformers import (
    AutoModelForCausalLM,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
@pytest.mark.quick_cases("dtype0")
def test_narrow_dtypes_stay_and_shards_are_cut(convert, tmp_path, dtype):
    reference = randomize(llama()).to(dtype).eval()
    reference.save_pretrained(tmp_path / "original", max_shard_size="10KB")
    assert (tmp_path / "original" / "model.safetensors.index.json").is_file()
    folder = convert(tmp_path / "original", "--max_shard_size", "20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 22_000 for shard in shards)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == dtype and json.loads((folder / "config.json").read_text(encoding="utf-8"))["dtype"] == str(dtype)[6:]
    assert all(torch.equal(tensor, reference.state_dict()[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_weights_are_rounded_on_request(convert, tmp_path, capsys):
    reference = gpt2()
    folder = convert(saved(reference, tmp_path / "original"), "--dtype", "bfloat16")
    assert "dtype:              bfloat16" in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert_equal(model.float()(ids()).logits, reference.to(torch.bfloat16).float()(ids()).logits)


@pytest.mark.thorough
def test_weights_of_two_dtypes_become_the_wider_one(convert, tmp_path):
    original = saved(llama().to(torch.bfloat16), tmp_path / "original")
    tensors = load_file(original / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float() + 1e-4
    save_file(tensors, original / "model.safetensors", metadata={"format": "pt"})
    folder = convert(original)
    assert torch.equal(load_file(folder / "model.safetensors")["model.norm.weight"], tensors["model.norm.weight"])


@pytest.mark.thorough
def test_tied_weights_under_either_name_or_both(convert, tmp_path, capsys):
    reference = gpt2()
    original = saved(reference, tmp_path / "original")
    tensors = load_file(original / "model.safetensors")
    wte = tensors.pop("transformer.wte.weight")
    for stored, tied in (
        ({"lm_head.weight": wte}, True),
        ({"transformer.wte.weight": wte, "lm_head.weight": wte.clone()}, True),
        ({"transformer.wte.weight": wte, "lm_head.weight": wte + 1}, False),
    ):
        save_file(tensors | stored, original / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(convert(original))
        assert model.config.tie_word_embeddings == tied
        assert torch.equal(model.model.embed_tokens.weight, wte)
        assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
    assert "not tied, as in transformers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.nan, "has NaN (1 of 1,024 values)"),
        (torch.inf, "has infinite values (1 of 1,024"),
        (-torch.inf, "has infinite values (1 of 1,024"),
    ],
)
def test_weights_that_are_no_numbers_are_named(refused, tmp_path, value, words):
    state = book().state_dict()
    state["trf_blocks.1.att.out_proj.weight"][3, 5] = state["trf_blocks.0.norm1.scale"][0] = value
    message = refused(save(state, tmp_path / "model.pth"), *HEADS_FLAG)
    assert f"trf_blocks.1.att.out_proj.weight {words}" in message and "trf_blocks.0.norm1.scale has" in message


def test_weights_beyond_the_asked_dtype_are_named(refused, tmp_path):
    state = book().state_dict()
    state["tok_emb.weight"][3, 5] = 1e6
    message = refused(save(state, tmp_path / "model.pth"), *HEADS_FLAG, "--dtype", "float16")
    assert "tok_emb.weight has values beyond the range of float16: choose another --dtype" in message
