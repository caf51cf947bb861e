"""Tiny models for the tests, at the two ends of the architecture: like GPT-2 and like Llama.

Their weights are large (standard deviation 0.25) and no bias is zero, so that attention is far from uniform and an error
anywhere shows in the logits.
"""

from pathlib import Path

import torch

import gpt_scratch
from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.files import CODE_PATTERN

# The code that saving a model copies beside the weights: all of it stands at the root of the package, under such names.
CODE_FILES = sorted(path.name for path in Path(gpt_scratch.__file__).parent.glob(CODE_PATTERN))

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "eos_token_id": None,
    "bos_token_id": None,
}
STYLES = {
    "gpt2": {"qkv_bias": True},
    "llama": {
        "position_embedding_type": "rope",
        "norm_type": "rmsnorm",
        "mlp_type": "gated",
        "hidden_act": "silu",
        "num_key_value_heads": 2,
        "o_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
    },
}


def tiny_config(style: str = "gpt2", **overrides) -> GPTScratchConfig:
    return GPTScratchConfig(**{**SIZES, **STYLES[style], **overrides})


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter anew: norms around one, the rest around zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = "norm" in name or ".ln_" in name
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + float(norm and name.endswith("weight")))
    return model


def tiny_model(style: str = "gpt2", cls: type = GPTScratchForCausalLM, attention: str = "sdpa", **overrides):
    """A model in evaluation mode; the same arguments give the same weights."""
    model = cls._from_config(tiny_config(style, **overrides), attn_implementation=attention)
    return randomize(model).eval()


def token_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random token ids from 1 up: 0 is the padding token of these models."""
    return torch.randint(1, SIZES["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


def grads(model) -> dict[str, torch.Tensor]:
    """Of every parameter that has one, copied."""
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_equal(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Equal to 1e-5 of the largest expected value, or to 1e-5 where all values are below one."""
    scale = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0.0)
