"""Products with weights in every format are those of nn.Linear with the weights as rounded; quantized weights are within their rounding."""

import copy
import mmap
import shutil

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn

from gpt_scratch.inference.decoding import prepare_for_decoding
from gpt_scratch.inference.streamed_linear import GROUP, WEIGHTS, StreamedLinear, WeightMemory, dequantize, quantize

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="decoding.c needs a C compiler")
pytestmark = needs_compiler


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
    """`streamed(x)` is the product with its weight; of int4 and few rows, the inputs of q are rounded to 8 bits, not those of the minimum."""
    x = nn.functional.pad(x, (0, streamed.padding))
    expected = nn.functional.linear(x, dequantize(streamed.weight, streamed.scale), streamed.bias)
    if streamed.weight.dtype == torch.uint8 and x.shape[-2] < 32:
        groups = x.unflatten(-1, (-1, GROUP))
        highest = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
        inverse = torch.full_like(highest, 127) / highest  # 127 / highest would be a product with the reciprocal
        rounded = (groups.double() * inverse).round().float()  # in one step, as a fused multiply-add
        error = (rounded * (highest / 127) - groups).flatten(-2)
        minima = streamed.scale[..., 1].float().repeat_interleave(GROUP, dim=1)
        expected = expected + nn.functional.linear(error, dequantize(streamed.weight, streamed.scale) - minima)
    assert_equal(streamed(x[..., : streamed.in_features]), expected)


def assert_close(actual: torch.Tensor, expected: torch.Tensor, weights: str) -> None:
    """Equal; or for int4, where another order of a sum changes how the next input is rounded, within 20 % of the largest."""
    if weights != "int4":
        return assert_equal(actual, expected)
    assert (actual - expected).abs().max() <= 0.2 * expected.abs().max()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("sizes", [(64, 17), (24, 40)])  # a multiple of GROUP; not one
def test_a_streamed_product_is_that_of_its_weight(weights, bias, sizes):
    torch.manual_seed(0)  # how a tie is rounded depends on the processor
    streamed = StreamedLinear(nn.Linear(*sizes, bias=bias), weights)
    for rows in (1, 2, 3, 4, 5, 11, 32, 45):
        assert_product(streamed, torch.randn(1, rows, sizes[0]))
    assert_product(streamed, torch.zeros(1, sizes[0]))
    for bad in (float("inf"), float("nan")):  # must not become a number
        assert not torch.isfinite(streamed(torch.full((1, sizes[0]), bad))).any()


@pytest.mark.parametrize("weights", WEIGHTS)
def test_the_product_that_a_gpu_compiles(weights):
    streamed, x = StreamedLinear(nn.Linear(40, 17), weights), torch.randn(2, 3, 40)
    torch._dynamo.reset()
    assert_close(torch.compile(streamed, backend="eager", fullgraph=True)(x), streamed(x), weights)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("huge_pages", [True, False])
def test_weights_move_to_one_memory(tied, huge_pages, monkeypatch):
    if not huge_pages:
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    elif not len(WeightMemory(4096).bytes):
        pytest.skip("this system has no huge pages on request")
    model, ids = tiny_model("llama", tie_word_embeddings=tied), token_ids(2, 7)
    fast = prepare_for_decoding(copy.deepcopy(model))
    with torch.no_grad():
        assert_equal(fast(ids).logits, model(ids).logits)
    assert (fast.lm_head.weight.data_ptr() == fast.model.embed_tokens.weight.data_ptr()) == tied  # no second copy
    addresses = sorted(module.weight.data_ptr() for module in fast.modules() if type(module) is StreamedLinear)
    if huge_pages:
        assert addresses[-1] - addresses[0] < sum(parameter.nbytes for parameter in model.parameters())
