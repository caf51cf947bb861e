"""Recomputed activations: the gradients of plain training, in less memory."""

import gc
import weakref

import pytest
import torch
from tiny_models import assert_equal, grads, randomize, tiny_model, token_ids
from torch.utils.flop_counter import FlopCounterMode

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.recomputation_gpt_scratch import Recomputed

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])


@STYLES
@pytest.mark.parametrize("cls", [GPTScratchForCausalLM, GPTScratchForSequenceClassification])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_has_the_same_gradients(style, cls, use_reentrant):
    model, ids = tiny_model(style, cls=cls).train(), token_ids(2, 9)
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100) if cls is GPTScratchForCausalLM else torch.tensor([0, 1])
    calls: list[int] = []
    kept: list[weakref.ref] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    plain = model(ids, attention_mask=mask, labels=labels).loss
    plain.backward()
    expected = grads(model)
    model.zero_grad()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    loss = model(ids, attention_mask=mask, labels=labels).loss
    assert kept[-1]() is None
    loss.backward()
    assert len(calls) == 1 + 2  # computed again in the backward pass
    assert loss.item() == plain.item()
    for name, gradient in grads(model).items():
        assert_equal(gradient, expected[name])
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing


@STYLES
def test_activations_are_computed_again_rather_than_kept(style, monkeypatch):
    """Neither the activation nor its product with the gate survives the forward, and no matrix product is computed twice."""
    model, ids = tiny_model(style).train(), token_ids(2, 9)
    widest: list[weakref.ref] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_pre_hook(lambda module, args: widest.append(weakref.ref(args[0])))

    def step() -> tuple[bool, int, dict[str, torch.Tensor]]:
        """Whether activations were kept for the backward, the arithmetic in matrix products, the gradients."""
        with FlopCounterMode(display=False) as counter:
            loss = model(ids, labels=ids).loss
            kept = [tensor() is not None for tensor in widest[-2:]]
            loss.backward()
        gradients = grads(model)
        model.zero_grad()
        assert kept[0] == kept[1]
        return kept[0], counter.get_total_flops(), gradients

    def hooks() -> int:
        return sum(type(thing) is Recomputed for thing in gc.get_objects())

    gc.disable()
    try:
        before = hooks()  # graphs of other tests may still be alive
        kept, flops, gradients = step()
        assert hooks() == before  # freed with the graph
    finally:
        gc.enable()
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # the compiler chooses for itself
    plainly_kept, plain_flops, plain_gradients = step()
    assert (kept, plainly_kept) == (False, True)
    assert flops == plain_flops
    for name, gradient in plain_gradients.items():
        assert_equal(gradients[name], gradient)


@STYLES
def test_recomputation_uses_the_weights_of_its_own_forward(style):
    """With other weights put in for one call, and with weights that were changed in place before the backward."""
    model, other, ids = tiny_model(style).train(), randomize(tiny_model(style), seed=5).train(), token_ids(2, 9)
    weights = dict(other.named_parameters())
    loss = torch.func.functional_call(model, weights, (ids,), {"labels": ids}).loss
    found = torch.autograd.grad(loss, list(weights.values()))
    expected = torch.autograd.grad(other(ids, labels=ids).loss, list(weights.values()))
    for gradient, wanted in zip(found, expected):
        assert_equal(gradient, wanted)
    loss = model(ids, labels=ids).loss
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


@STYLES
def test_second_derivatives_go_through_what_is_recomputed(style, monkeypatch):
    model, ids = tiny_model(style, attention="eager").train(), token_ids(1, 5)
    weights = [layer.mlp.up_proj.weight for layer in model.model.layers]

    def second() -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(
            model(ids, labels=ids).loss, [layer.mlp.down_proj.weight for layer in model.model.layers], create_graph=True
        )
        return torch.autograd.grad(sum((gradient**2).sum() for gradient in first), weights)

    found = second()
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)  # nothing is recomputed
    for gradient, wanted in zip(found, second()):
        assert wanted.abs().max() > 1e-3
        assert_equal(gradient, wanted)
