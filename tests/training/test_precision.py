"""Faster fp32 matrix products stay fp32: as near to the products in float64 as before."""

import pytest
import torch

from gpt_scratch.training.precision import use_fast_fp32_matmul


@pytest.fixture
def precision():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("bf16_in_hardware", [False, True])
def test_products_keep_the_precision_of_fp32(precision, monkeypatch, bf16_in_hardware):
    if bf16_in_hardware:  # where "medium" would round to bf16, nothing is changed
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    torch.set_float32_matmul_precision("highest")
    changed = use_fast_fp32_matmul()
    assert (torch.get_float32_matmul_precision() == "medium") == changed and not (changed and bf16_in_hardware)
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(64, 512, generator=generator), torch.randn(512, 64, generator=generator)
    exact = a.double() @ b.double()
    assert ((a @ b - exact).abs().max() / exact.abs().max()).item() < 2e-6
