"""Decoding in C computes what nn.Linear and the model do, and generates the same tokens; quantized weights are within their rounding."""

import copy
import functools
import itertools
import mmap
import shutil

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn
from transformers import DynamicCache

from gpt_scratch.errors import UserError
from gpt_scratch.inference import decoding_library
from gpt_scratch.inference.decoding import (
    GROUP,
    WEIGHTS,
    DecodingStep,
    PreallocatedLayer,
    StreamedLinear,
    WeightMemory,
    dequantize,
    generation_settings,
    prepare_for_decoding,
    quantize,
)
from gpt_scratch.releases_gpt_scratch import CACHE

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="decoding.c needs a C compiler")
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


@pytest.mark.parametrize("weights", WEIGHTS)
def test_quantized_weights_are_within_their_rounding(weights):
    weight = torch.randn(7, 64)
    kept = dequantize(*quantize(weight, weights))
    error = (kept - weight).abs()
    if weights == "float32":
        assert torch.equal(kept, weight)
    elif weights == "bfloat16":
        assert torch.equal(kept, weight.bfloat16().float())
    elif weights == "int8":
        assert (error <= weight.abs().amax(1, keepdim=True) / 254 + 1e-6).all()
    else:  # half a step, and the rounding of scale and minimum to bf16
        groups = weight.view(7, 2, 32)
        step = (groups.amax(-1) - groups.amin(-1)) / 15
        assert (error.view(7, 2, 32).amax(-1) <= 0.5 * step + (2**-8) * 15 * step + 2**-8 * groups.abs().amax(-1)).all()


def assert_product(streamed: StreamedLinear, x: torch.Tensor) -> None:
    """`streamed(x)` is the product with its weight; of int4, the inputs of q are rounded to 8 bits, those of the minimum are not."""
    x = nn.functional.pad(x, (0, streamed.padding))
    expected = nn.functional.linear(x, dequantize(streamed.weight, streamed.scale), streamed.bias)
    if streamed.weight.dtype == torch.uint8:
        groups = x.unflatten(-1, (-1, GROUP))
        highest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        inverse = torch.full_like(highest, 127) / highest  # 127 / highest would be a product with the reciprocal
        rounded = (groups.double() * inverse).round().float()  # in one step, as a fused multiply-add
        error = (rounded * (highest / 127) - groups).flatten(-2)
        minima = streamed.scale[..., 1].float().repeat_interleave(GROUP, dim=1)
        expected = expected + nn.functional.linear(error, dequantize(streamed.weight, streamed.scale) - minima)
    assert_equal(streamed(x[..., : streamed.in_features]), expected)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, weights: str) -> None:
    """Equal; or for int4, where another order of a sum changes how the next input is rounded, within 15 % of the largest."""
    if weights != "int4":
        return assert_equal(actual, expected)
    assert (actual - expected).abs().max() <= 0.15 * expected.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("sizes", [(64, 17), (24, 40)])  # a multiple of GROUP; not one
def test_a_streamed_product_is_that_of_its_weight(weights, bias, sizes):
    torch.manual_seed(0)  # how a tie is rounded depends on the processor
    streamed = StreamedLinear(nn.Linear(*sizes, bias=bias), weights)
    for rows in (1, 2, 3, 4, 5, 11):
        assert_product(streamed, torch.randn(1, rows, sizes[0]))
    assert_product(streamed, torch.zeros(1, sizes[0]))
    for bad in (float("inf"), float("nan")):  # must not become a number
        assert not torch.isfinite(streamed(torch.full((1, sizes[0]), bad))).any()


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


@pytest.mark.parametrize("name", ["gpt2", "narrow_heads", "window"])
def test_prompts_of_several_passes_and_threads(name):
    """Longer than ROWS_PER_PASS and than the first allocation of the cache; ragged, so that passes end within sequences."""
    style, overrides = MODELS[name]
    model = tiny_model(style, **{"max_position_embeddings": 400} | overrides)
    ids = token_ids(3, 300)
    mask = torch.ones_like(ids)
    mask[0, :77] = mask[2, :5] = 0
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
            fast, ids = prepare_for_decoding(of(name), weights), token_ids(2, 9)
            rounded = of(name)
            for module, other in zip(rounded.modules(), fast.modules()):
                if isinstance(module, nn.Linear):
                    module.weight = nn.Parameter(dequantize(other.weight, other.scale), requires_grad=False)
            assert_close(logits_of(fast, ids), logits_of(rounded, ids), weights)
            torch.manual_seed(0)
            assert_product(StreamedLinear(nn.Linear(96, 40), weights), torch.randn(5, 96))
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
def test_the_product_that_a_gpu_compiles(weights):
    streamed, x = StreamedLinear(nn.Linear(40, 17), weights), torch.randn(2, 3, 40)
    torch._dynamo.reset()
    assert_close(torch.compile(streamed, backend="eager", fullgraph=True)(x), streamed(x), weights)


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


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="weights is 'int3': choose one of float32, bfloat16, int8, int4"):
        prepare_for_decoding(tiny_model(), "int3")


@pytest.mark.parametrize("name", ["llama", "one_key_head"])
@pytest.mark.parametrize("huge_pages", [True, False])
def test_weights_move_to_one_memory(name, huge_pages, monkeypatch):
    if not huge_pages:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    elif not len(WeightMemory(4096).bytes):
        pytest.skip("this system has no huge pages on request")
    model = of(name)
    tied = model.config.tie_word_embeddings
    fast = prepare_for_decoding(copy.deepcopy(model))
    assert_equal(logits_of(fast, token_ids(2, 7)), logits_of(model, token_ids(2, 7)))
    assert (fast.lm_head.weight.data_ptr() == fast.model.embed_tokens.weight.data_ptr()) == tied  # no second copy
    addresses = sorted(module.weight.data_ptr() for module in fast.modules() if type(module) is StreamedLinear)
    if huge_pages:
        assert addresses[-1] - addresses[0] < sum(parameter.nbytes for parameter in model.parameters())
