"""torchao's int8 and bitsandbytes' nf4 on the CPU: the quantized model computes what its rounded weights imply, and can be saved and loaded."""

import pytest
import torch
from tiny_models import assert_equal, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

import gpt_scratch  # noqa: F401  registers the model

pytestmark = pytest.mark.slow

IDS = torch.randint(1, 200, (2, 20), generator=torch.Generator().manual_seed(0))


def linear_layers(model) -> dict[str, nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "lm_head"}


@torch.no_grad()
def logits_with(checkpoint, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the float32 model with these weights in place of its own."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    for name, layer in linear_layers(model).items():
        assert layer.weight.shape == weights[name].shape
        layer.weight.copy_(weights[name])
    return model(IDS).logits


@torch.no_grad()
def test_torchao_int8(checkpoint, tmp_path):
    torchao = pytest.importorskip("torchao.quantization")
    from transformers import TorchAoConfig

    exact = AutoModelForCausalLM.from_pretrained(checkpoint)
    settings = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=settings)
    layers = linear_layers(model)
    assert all(type(layer.weight).__name__ == "Int8Tensor" for layer in layers.values()) and len(layers) >= 12
    logits = model(IDS).logits
    assert_equal(logits, logits_with(checkpoint, {name: layer.weight.dequantize() for name, layer in layers.items()}))
    for name, layer in linear_layers(exact).items():  # 255 levels from -max to max of each row: at most half a step away
        step = layer.weight.abs().amax(1, keepdim=True) / 127.5
        assert ((layers[name].weight.dequantize() - layer.weight).abs() <= 0.501 * step).all()
    assert 1e-4 < (logits - exact(IDS).logits).abs().max() < 0.5
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size < (checkpoint / "model.safetensors").stat().st_size
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(IDS).logits, logits)


@torch.no_grad()
def test_bitsandbytes_nf4(style, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    checkpoint = tmp_path / "wide"  # bitsandbytes' kernel for CPUs wants rows of whole blocks of 64
    tiny_model(style, vocab_size=300, hidden_size=64).save_pretrained(checkpoint)
    exact = AutoModelForCausalLM.from_pretrained(checkpoint)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, quantization_config=settings)
    layers = linear_layers(model)
    assert all(type(layer).__name__ == "Linear4bit" for layer in layers.values()) and len(layers) >= 12
    rounded = {
        name: bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        for name, layer in layers.items()
    }
    for name, layer in linear_layers(exact).items():  # nf4 has 16 levels, the widest apart at -1 and -0.696 of a block's largest
        assert (rounded[name] - layer.weight).abs().max() <= 0.16 * layer.weight.abs().max()
    model.save_pretrained(
        tmp_path / "saved"
    )  # before the first forward, which packs the weights for the CPU and rounds their scales
    logits, expected, plain = model(IDS).logits, logits_with(checkpoint, rounded), exact(IDS).logits
    # On a CPU with bf16 instructions the kernel rounds what comes in, whatever the compute dtype: a layer is off by up to 1 %.
    away = (logits - expected).abs().mean() / (plain - expected).abs().mean()
    assert (plain - expected).abs().max() > 0.1 and away < 0.1
    assert (tmp_path / "saved" / "model.safetensors").stat().st_size < 0.6 * (checkpoint / "model.safetensors").stat().st_size
    assert_equal(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")(IDS).logits, logits)
