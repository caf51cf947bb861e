"""The layers in C compute what the model does, and generate the same tokens."""

import copy
import functools
import itertools

import pytest
import torch
from test_streamed_linear import assert_close, assert_product, needs_compiler
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn
from transformers import DynamicCache

from gpt_scratch.errors import UserError
from gpt_scratch.inference import decoding_library
from gpt_scratch.inference.decoding import (
    DecodingStep,
    PreallocatedLayer,
    default_weights,
    generation_settings,
    prepare_as_asked,
    prepare_for_decoding,
)
from gpt_scratch.inference.streamed_linear import WEIGHTS, StreamedLinear, dequantize
from gpt_scratch.releases_gpt_scratch import CACHE

pytestmark = needs_compiler
# Besides GPT-2 and Llama: every branch of decoding.c.
OTHERS = {
    "qk_norm": ("llama", {"qk_norm": True}),
    "one_key_head": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "narrow_heads": ("llama", {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 6}),
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


def logits_of(model, ids, mask=None, split=5) -> torch.Tensor:
    """Of a call for the first tokens and one for the others, with a cache."""
    cache = DynamicCache(config=model.config)
    parts = ids[:, :split], ids[:, split:]
    masks = (None, None) if mask is None else (mask[:, :split], mask)
    with torch.no_grad():
        logits = torch.cat([model(part, attention_mask=each, **{CACHE: cache}).logits for part, each in zip(parts, masks)], dim=1)
    runs_in_c = isinstance(model.forward, functools.partial)
    assert (type(cache.layers[0]) is PreallocatedLayer) == runs_in_c  # the others would compare PyTorch with itself
    return logits


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_in_c_compute_what_the_model_does(name):
    model, ids = of(name), token_ids(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    fast = prepare_for_decoding(copy.deepcopy(model))
    for given in (None, torch.ones_like(ids), mask):
        real = slice(None) if given is None else given.bool()
        assert_equal(logits_of(fast, ids, given)[real], logits_of(model, ids, given)[real])


@pytest.mark.parametrize("name", ["gpt2", "llama", "narrow_heads", "window"])
def test_prompts_of_several_passes_and_threads(name):
    """Longer than ROWS_PER_PASS and than the first allocation of the cache; ragged, so that passes end within sequences."""
    style, overrides = MODELS[name]
    model = tiny_model(style, **{"max_position_embeddings": 400} | overrides)
    ids = token_ids(3, 300)
    mask = torch.ones_like(ids)
    mask[0, :77] = mask[1, 80:90] = mask[2, :5] = 0
    fast, threads = prepare_for_decoding(copy.deepcopy(model)), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_equal(logits_of(fast, ids, mask, 60)[mask.bool()], logits_of(model, ids, mask, 60)[mask.bool()])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["gpt2", "window"])
def test_calls_that_need_pytorch_share_the_cache(name):
    model, ids = of(name), token_ids(2, 8)
    fast = prepare_for_decoding(copy.deepcopy(model))
    caches = [DynamicCache(config=model.config) for _ in range(2)]
    for step, more in enumerate(({}, {"output_hidden_states": True}, {}, {"labels": ids[:, 6:]})):
        part = ids[:, 2 * step : 2 * step + 2]
        with torch.no_grad():
            expected, outputs = (each(part, **{CACHE: cache}, **more) for each, cache in zip((model, fast), caches))
        assert_equal(outputs.logits, expected.logits)
        assert ("hidden_states" in outputs, "loss" in outputs) == ("hidden_states" in expected, "loss" in expected)


def test_settings_of_a_call_are_those_of_the_model():
    model, ids = of("llama"), token_ids(2, 8)
    fast = prepare_for_decoding(copy.deepcopy(model))

    def call(each, **more):
        with torch.no_grad():
            return each(ids, **{CACHE: DynamicCache()}, **more)

    for kept in (1, 3, torch.tensor([0, 5])):
        assert_equal(call(fast, logits_to_keep=kept).logits, call(model, logits_to_keep=kept).logits)
    assert call(fast, use_cache=False).to_tuple()[1:] == call(model, use_cache=False).to_tuple()[1:] == ()
    assert type(call(fast, return_dict=False)) is tuple
    with pytest.raises(TypeError, match="unexpected argument unknown"):
        call(fast, unknown=1)
    positions = torch.tensor([[-3, 0, 7, 7, 400, 2, 3, 4], list(range(8))])
    assert_equal(call(fast, position_ids=positions).logits, call(model, position_ids=positions).logits)
    for given in ({"input_ids": ids[:, :1] + 1000}, {"input_ids": ids[:1]}):
        cache = DynamicCache()
        fast(ids, **{CACHE: cache})
        with pytest.raises((IndexError, RuntimeError)):  # another number of sequences than the cache: not read beyond its end
            fast(**given, **{CACHE: cache})


@pytest.mark.thorough
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_width_of_vectors(lanes, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(decoding_library, "FLAGS", (("-O1", f"-DLANES={lanes}", "-pthread"),))
    decoding_library.library.cache_clear()
    try:
        for name, weights in itertools.product(MODELS, WEIGHTS):
            fast, ids = prepare_for_decoding(of(name), weights), token_ids(2, 21)  # for all widths, more rows than a panel has
            rounded = of(name)
            for module, other in zip(rounded.modules(), fast.modules()):
                if isinstance(module, nn.Linear):
                    module.weight = nn.Parameter(dequantize(other.weight, other.scale), requires_grad=False)
            assert_close(logits_of(fast, ids), logits_of(rounded, ids), weights)
            torch.manual_seed(0)
            for rows in (5, 33):
                assert_product(StreamedLinear(nn.Linear(96, 40), weights), torch.randn(rows, 96))
    finally:
        decoding_library.library.cache_clear()


class Adapted(nn.Module):
    """A layer as peft wraps it: what it adds is not in decoding.c."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer, self.lora_A = base_layer, nn.Linear(base_layer.in_features, base_layer.out_features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_A(x)


def test_adapters_run_in_pytorch():
    model, ids = of("llama"), token_ids(1, 6)
    model.model.layers[1].self_attn.q_proj = Adapted(model.model.layers[1].self_attn.q_proj)
    with torch.no_grad():
        expected = model(ids).logits
        assert_equal(prepare_for_decoding(model)(ids, **{CACHE: DynamicCache()}).logits, expected)
    assert not DecodingStep.supports(model)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_c_and_torch_agree_about_narrow_weights(name, weights):
    """A call without a cache runs in the model's own layers, with the same weights."""
    fast, ids = prepare_for_decoding(of(name), weights), token_ids(2, 9)
    with torch.no_grad():
        plain = fast(ids).logits
        assert_close(fast(ids, **{CACHE: DynamicCache(config=fast.config)}).logits, plain, weights)
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


def test_a_preallocated_layer_is_a_dynamic_layer():
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


def test_other_sizes_run_in_pytorch():
    model = tiny_model("gpt2", hidden_size=40)
    ids = token_ids(1, 4)
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert not DecodingStep.supports(model)
    assert torch.equal(prepare_for_decoding(model).generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), expected)


def test_the_default_keeps_the_weights(monkeypatch, capfd):
    assert default_weights(of("gpt2")) == "float32" and default_weights(of("llama").bfloat16()) == "bfloat16"
    assert default_weights(of("llama").half()) == "float32"  # without loss
    adapted = of("llama")
    adapted.model.layers[0].self_attn.q_proj = Adapted(adapted.model.layers[0].self_attn.q_proj)
    other = tiny_model("gpt2", hidden_size=40)
    assert default_weights(adapted) is None and default_weights(other) is None
    model = of("gpt2")
    assert prepare_as_asked(model, "auto") and type(model.lm_head) is StreamedLinear
    assert capfd.readouterr().err == "generating in C with float32 weights; --weights none uses PyTorch\n"
    model = of("gpt2")
    assert not prepare_as_asked(model, "none") and not prepare_as_asked(model, None)
    monkeypatch.setattr(decoding_library, "_compiler", raise_unusable)
    assert not prepare_as_asked(model, "auto") and type(model.lm_head) is nn.Linear and capfd.readouterr().err == ""


def raise_unusable():
    raise decoding_library.Unusable("no C compiler is installed")


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="weights is 'int3': choose one of float32, bfloat16, int8, int4"):
        prepare_for_decoding(tiny_model(), "int3")
