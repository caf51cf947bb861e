"""Predicted costs against counted and measured ones."""

import pytest
import torch
from tiny_models import tiny_config, tiny_model, token_ids
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.analysis.summary import activation_bytes, parameters_by_part, summarize_model, summary_table

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])


def test_the_parts_of_gpt2_small():
    with torch.device("meta"):
        model = GPTScratchForCausalLM(GPTScratchConfig())
    parts = parameters_by_part(model)
    assert parts["token embedding"] == 50257 * 768 and parts["position embedding"] == 1024 * 768
    assert parts["attention"] == 12 * (4 * 768 * 768 + 768) and "output head" not in parts
    assert sum(parts.values()) == 124_412_160


@STYLES
def test_memory_is_what_a_training_step_takes(style):
    model = tiny_model(style).train()
    summary = summarize_model(model, batch=2, length=16)
    optimizer = torch.optim.AdamW(model.parameters())
    ids = token_ids(2, 16)
    model(ids, labels=ids).loss.backward()
    optimizer.step()

    def size(tensors) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in tensors)

    measured = {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters()),
        "optimizer (AdamW)": size(value for state in optimizer.state.values() for value in state.values()),
    }
    for name, count in measured.items():
        assert summary["training_memory_bytes"][name] == pytest.approx(count, rel=0.1), name
    cache = DynamicCache(config=model.config)
    model.eval()(ids, past_key_values=cache)
    assert summary["key_value_cache_bytes"] == size(t for layer in cache.layers for t in (layer.keys, layer.values))


@STYLES
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_are_the_memory_that_a_forward_leaves_behind(style, dropout):
    config = tiny_config(style, embedding_dropout=dropout, residual_dropout=dropout, attention_dropout=dropout)
    model = GPTScratchForCausalLM._from_config(config, attn_implementation="sdpa").train()
    ids = token_ids(3, 20)
    with torch.profiler.profile(profile_memory=True) as profile:
        output = model.model(input_ids=ids, use_cache=False).last_hidden_state
    measured = sum(event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]")
    assert output.grad_fn is not None
    assert activation_bytes(config, GPTScratchForCausalLM, 3, 20) == pytest.approx(measured, rel=0.1)


@STYLES
def test_flops_are_what_torch_counts(style):
    model = tiny_model(style, attention="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(token_ids(1, 32))
    attention = 4 * 32 * 32 * 2 * 4 * 8  # whole, where the summary leaves out the half that the mask hides
    summary = summarize_model(model, batch=1, length=32)
    assert summary["forward_flops_per_token"] * 32 + attention / 2 == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert summary["training_flops_per_token"] == 3 * summary["forward_flops_per_token"]


def test_frozen_parts_classifiers_and_time():
    model = tiny_model("gpt2", cls=GPTScratchForSequenceClassification)
    model.model.requires_grad_(False)
    summary = summarize_model(model, batch=1, length=8, tokens=1e6, flops=1e9)
    assert summary["trainable_parameters"] == 64 and summary["training_memory_bytes"]["gradients"] == 256
    assert summary["training_seconds"] == summary["training_flops_per_token"] * 1e6 / 1e9
    assert "logits, full loss" not in summary["training_memory_bytes"]
    table = summary_table(summary)
    assert "classification head" in table and "1e+06 tokens at 1e+09 FLOP/s" in table
