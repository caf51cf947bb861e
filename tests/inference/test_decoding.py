"""Compiled decoding: the same numbers as nn.Linear, the same tokens from `generate`, int8 within its rounding."""

import copy
import shutil

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn

from gpt_scratch.errors import UserError
from gpt_scratch.inference.decoding import WEIGHTS, StreamedLinear, compiled_generation, prepare_for_decoding


@pytest.fixture(params=["highest", "medium"])
def precision(request):
    """Of fp32 products: MKL's, oneDNN's."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (2, 6)])
def test_every_code_path_gives_the_same(weights, bias, shape, precision, monkeypatch):
    monkeypatch.setattr("gpt_scratch.inference.decoding.PIECE_BYTES", 24 * 4 * 5)  # several pieces, the last one smaller
    linear, x = nn.Linear(24, 17, bias=bias), torch.randn(*shape, 24)
    streamed = StreamedLinear(linear, weights)
    kept = linear.weight.detach()
    if weights == "bfloat16":
        kept = kept.bfloat16().float()
    elif weights == "int8":
        scale = kept.abs().amax(1, keepdim=True) / 127
        kept = (kept / scale).round() * scale
        assert (kept - linear.weight).abs().max() <= scale.max() / 2 + 1e-7
    expected = nn.functional.linear(x, kept, linear.bias)
    assert_equal(streamed(x), expected)
    torch._dynamo.reset()
    assert_equal(torch.compile(streamed, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_a_prepared_model_computes_the_same(style):
    model = tiny_model(style)
    ids = token_ids(2, 9)
    with torch.no_grad():
        expected = model(ids).logits
        assert_equal(prepare_for_decoding(copy.deepcopy(model))(ids).logits, expected)
        for weights, tolerance in (("bfloat16", 0.05), ("int8", 0.05)):
            small = prepare_for_decoding(copy.deepcopy(model), weights)(ids).logits
            assert 1e-6 < (small - expected).abs().max() / expected.abs().max() < tolerance
    with pytest.raises(UserError, match="weights is 'int4': choose one of float32, bfloat16, int8"):
        prepare_for_decoding(model, "int4")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("batch", [1, 6])
def test_compiled_generation_gives_the_same_tokens(style, batch, precision):
    model, ids = tiny_model(style), token_ids(batch, 5)
    settings = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    expected = model.generate(ids, **settings)
    torch._dynamo.reset()
    assert torch.equal(prepare_for_decoding(model).generate(ids, **settings, **compiled_generation()), expected)


class NormThenLinear(nn.Module):
    """A row of a batch of sequences, normed in the graph or cut out of the input as it is, then the linear layer."""

    def __init__(self, weights: str, normed: bool):
        super().__init__()
        self.norm = nn.LayerNorm(48) if normed else None
        self.linear = StreamedLinear(nn.Linear(48, 40), weights)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm is not None:
            x = self.norm(x)
        return self.linear(x[:, -1:])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("batch", [1, 3, 8, 9])
def test_compiled_rows_are_read_from_where_they_are(weights, normed, batch, precision):
    torch._dynamo.reset()
    module, x = NormThenLinear(weights, normed), torch.randn(batch, 4, 48)
    with torch.inference_mode():
        assert_equal(torch.compile(module, fullgraph=True, dynamic=False)(x), module(x))
