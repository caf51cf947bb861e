"""Initial weights have the statistics of their sources: GPT-2's, PyTorch's, residual branches that start at zero."""

import copy
import math

import pytest
import torch
from tiny_models import tiny_config, token_ids
from transformers import PreTrainedModel

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, GPTScratchModel

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])


# Wide enough that a standard deviation is known to a percent.
WIDE = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 3, "vocab_size": 500, "initializer_range": 0.02}


EVERY_BIAS = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "tie_word_embeddings": False}


HEADS = pytest.mark.parametrize("cls", [GPTScratchModel, GPTScratchForCausalLM, GPTScratchForSequenceClassification])


def linears(model):
    return [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]


@STYLES
@HEADS
def test_gpt2_initialization(style, cls):
    torch.manual_seed(0)
    model = cls(tiny_config(style, **WIDE, **EVERY_BIAS, num_labels=60))
    for name, linear in linears(model):
        residual = name.endswith(("o_proj", "down_proj"))
        std = 0.02 / math.sqrt(2 * 3) if residual else 0.02
        assert linear.weight.std().item() == pytest.approx(std, rel=0.05), name
        assert abs(linear.weight.mean().item()) < 0.1 * std
        assert linear.bias is None or (linear.bias == 0).all()
    for name, embedding in model.named_modules():
        if isinstance(embedding, torch.nn.Embedding):
            assert embedding.weight.std().item() == pytest.approx(0.02, rel=0.05), name
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name


@STYLES
def test_gpt2_zero_initialization_starts_every_block_as_the_identity(style):
    model = GPTScratchForCausalLM(tiny_config(style, **WIDE, initialization="gpt2_zero")).eval()
    for name, linear in linears(model):
        assert (linear.weight == 0).all() if name.endswith(("o_proj", "down_proj")) else linear.weight.std() > 0.015, name
    states = model(token_ids(1, 9), output_hidden_states=True).hidden_states
    assert torch.equal(states[1], states[0])


@STYLES
@HEADS
def test_pytorch_initialization(style, cls):
    torch.manual_seed(0)
    model = cls(tiny_config(style, **WIDE, **EVERY_BIAS, num_labels=60, initialization="pytorch"))
    for name, linear in linears(model):
        bound = 1 / math.sqrt(linear.in_features)
        for values in (linear.weight, linear.bias):
            if values is not None:
                assert 0.9 * bound < values.abs().max().item() <= bound, name
                assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
        assert linear.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03), name
    for name, embedding in model.named_modules():
        if isinstance(embedding, torch.nn.Embedding):
            assert embedding.weight.std().item() == pytest.approx(1.0, rel=0.05), name
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == float(name.endswith("weight"))).all(), name


@pytest.mark.parametrize("initialization, std", [("gpt2", 0.02), ("pytorch", 1.0)])
def test_a_tied_head_is_initialized_as_the_embedding(initialization, std):
    torch.manual_seed(0)
    model = GPTScratchForCausalLM(tiny_config("gpt2", **WIDE, initialization=initialization))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("initialization", ["gpt2", "gpt2_zero", "pytorch"])
@STYLES
@HEADS
def test_weights_missing_from_a_checkpoint_are_initialized_as_in_a_new_model(cls, style, initialization, monkeypatch):
    """A checkpoint without a single weight, loaded over the meta device: the same draws as building the model."""
    initialize = PreTrainedModel._initialize_weights

    def seeded(self, module, *args, **kwargs):  # building the modules has drawn numbers too
        torch.manual_seed(0)
        return initialize(self, module, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "_initialize_weights", seeded)
    config = tiny_config(style, **EVERY_BIAS, initialization=initialization)
    expected = cls(copy.deepcopy(config)).state_dict()
    loaded = cls.from_pretrained(None, config=config, state_dict={}).state_dict()
    assert loaded.keys() == expected.keys()
    for name in expected:
        assert torch.equal(loaded[name], expected[name]), name
