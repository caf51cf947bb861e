"""Decoding in C: the numbers of nn.Linear and of the model, the tokens of plain `generate`, weights within their rounding."""

import copy
import os
import shutil
import subprocess

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn
from transformers import DynamicCache

from gpt_scratch.errors import UserError
from gpt_scratch.inference import decoding_library
from gpt_scratch.inference.decoding import (
    WEIGHTS,
    DecodingStep,
    PreallocatedLayer,
    StreamedLinear,
    generation_settings,
    quantize,
    prepare_for_decoding,
    dequantize,
)
from gpt_scratch.releases_gpt_scratch import CACHE

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="decoding.c needs a C compiler")
pytestmark = needs_compiler
# Besides GPT-2 and Llama: every branch of decoding.c.
OTHERS = {
    "qk_norm": ("llama", {"qk_norm": True}),
    "window": ("llama", {"sliding_window": 3}),
    "gelu": ("gpt2", {"hidden_act": "gelu"}),
    "relu": ("gpt2", {"hidden_act": "relu", "lm_head_bias": True}),
    "biased": ("llama", {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_dim": 16}),
    "dynamic": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 8},
    ),
}
MODELS = {"gpt2": ("gpt2", {}), "llama": ("llama", {}), **OTHERS}


def of(name: str):
    style, overrides = MODELS[name]
    return tiny_model(style, **overrides)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_weights_are_kept_within_their_rounding(weights):
    weight = torch.randn(7, 64)
    kept = dequantize(*quantize(weight, weights))
    error = (kept - weight).abs()
    if weights == "float32":
        assert torch.equal(kept, weight)
    elif weights == "bfloat16":
        assert torch.equal(kept, weight.bfloat16().float())
    elif weights == "int8":
        assert (error <= weight.abs().amax(1, keepdim=True) / 254 + 1e-6).all()
    else:  # half a step, and what scale and minimum lose in bf16
        groups = weight.view(7, 2, 32)
        step = (groups.amax(-1) - groups.amin(-1)) / 15
        assert (error.view(7, 2, 32).amax(-1) <= 0.5 * step + (2**-8) * 15 * step + 2**-8 * groups.abs().amax(-1)).all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("sizes", [(64, 17), (24, 40)])  # a multiple of GROUP; not one
def test_a_streamed_product_is_that_of_its_weight(weights, bias, sizes):
    linear = nn.Linear(*sizes, bias=bias)
    streamed = StreamedLinear(linear, weights)
    kept = dequantize(streamed.weight, streamed.scale)[:, : sizes[0]]
    for rows in (1, 2, 3, 4, 5, 11):
        x = torch.randn(1, rows, sizes[0])
        assert_equal(streamed(x), nn.functional.linear(x, kept, linear.bias))


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_in_c_compute_what_the_model_does(name):
    model, ids = of(name), token_ids(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    fast = prepare_for_decoding(copy.deepcopy(model))
    with torch.no_grad():
        for given in (None, torch.ones_like(ids), mask):
            outputs = []
            for each in (model, fast):
                cache = DynamicCache(config=each.config)
                first = each(ids[:, :5], attention_mask=None if given is None else given[:, :5], **{CACHE: cache}).logits
                second = each(ids[:, 5:], attention_mask=given, **{CACHE: cache}).logits
                outputs.append(torch.cat((first, second), dim=1) if given is not mask else second)
            assert type(cache.layers[0]) is PreallocatedLayer
            assert_equal(outputs[1], outputs[0])


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_c_and_torch_agree_about_narrow_weights(name, weights):
    """The second is what a call without a cache takes: the model's own layers, with the same weights."""
    fast, ids = prepare_for_decoding(of(name), weights), token_ids(2, 9)
    with torch.no_grad():
        plain = fast(ids).logits
        assert_equal(fast(ids, **{CACHE: DynamicCache(config=fast.config)}).logits, plain)
        error = (plain - of(name)(ids).logits).abs().max() / plain.abs().max()
        assert (error == 0 if weights == "float32" else error < 0.6) or error < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
def test_generation_gives_the_same_tokens(name, batch, more):
    model, ids = of(name), token_ids(batch, 5)
    mask = torch.ones_like(ids)
    mask[0, : batch > 1] = 0
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": mask, "pad_token_id": 0, **more}
    expected = model.generate(ids, **settings)
    prepare_for_decoding(model)
    assert torch.equal(model.generate(ids, **settings, **generation_settings(model)), expected)


def test_room_grows_and_is_cropped():
    layer, plain = PreallocatedLayer(), DynamicCache().layer_class_to_replicate()
    for length in (3, 1, 300, 1):
        keys, values = torch.randn(2, 2, 3, length, 4)
        for each in (layer, plain):
            given = each.update(keys, values)
        assert torch.equal(layer.keys, plain.keys) and torch.equal(given[1], layer.values)
        for each in (layer, plain):
            each.crop(-1)
    order = torch.tensor([1, 1])
    for each in (layer, plain):
        each.reorder_cache(order)
        each.batch_repeat_interleave(2)
        each.batch_select_indices(torch.tensor([0, 3]))
    assert torch.equal(layer.keys, plain.keys) and layer.get_seq_length() == plain.get_seq_length() == 301


def test_sizes_that_c_does_not_have_run_in_torch():
    model = tiny_model("gpt2", hidden_size=40)
    ids = token_ids(1, 4)
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert not DecodingStep.supports(model)
    assert torch.equal(prepare_for_decoding(model).generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), expected)


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="weights is 'int3': choose one of float32, bfloat16, int8, int4"):
        prepare_for_decoding(tiny_model(), "int3")


def test_no_compiler_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="--weights needs a C compiler, and none of cc, gcc, clang is found: install one"):
        decoding_library._compiled()
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(UserError, match="--weights needs a C compiler, and no-such-compiler does not answer to --version"):
        decoding_library._compiled()


def test_the_library_is_kept_and_made_again_for_other_source(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "decoding.c"
    source.write_text("int decode(void) { return 1; }")
    monkeypatch.setattr(decoding_library, "SOURCE", source)
    first = decoding_library._compiled()
    written = first.stat().st_mtime_ns
    assert decoding_library._compiled() == first and first.stat().st_mtime_ns == written
    source.write_text("int decode(void) { return 2; }")
    assert decoding_library._compiled() != first
    source.write_text("not C")
    with pytest.raises(UserError, match="--weights compiles decoding.c, and .* fails"):
        decoding_library._compiled()
    assert not list((tmp_path / "cache").rglob("*.part"))


@pytest.mark.thorough
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="names x86 processors")
@pytest.mark.parametrize("processor", ["x86-64", "haswell", "skylake-avx512"])
def test_it_compiles_for_other_processors(processor, tmp_path):
    compiler = next(filter(shutil.which, ("cc", "gcc", "clang")))
    command = [compiler, "-O1", f"-march={processor}", "-fopenmp", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*command, str(decoding_library.SOURCE), "-o", str(tmp_path / "x.so"), "-lm"], check=True)
