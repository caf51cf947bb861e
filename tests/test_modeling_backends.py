"""Attention backends and compilation: each gives what eager attention gives."""

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, GPTScratchModel


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_eager_equals_sdpa(style):
    eager, sdpa = tiny_model(style, attention="eager"), tiny_model(style, attention="sdpa")
    ids, mask = token_ids(3, 20), torch.ones(3, 20, dtype=torch.long)
    mask[0, :7] = 0  # padding left
    mask[1, -4:] = 0  # and right
    with torch.no_grad():
        assert_equal(sdpa(ids).logits, eager(ids).logits)
        real = mask.bool()
        assert_equal(sdpa(ids, attention_mask=mask).logits[real], eager(ids, attention_mask=mask).logits[real])
        weights = eager(ids, output_attentions=True).attentions[0]
        assert weights[..., 10:, :].max(-1).values.mean() > 3 / 11  # far from uniform: an error would show
    labels = ids.masked_fill(mask == 0, -100)
    labels[0, 7] = -100  # it would be predicted from padding, whose output is anything
    eager_grad, sdpa_grad = (grads(model, ids, attention_mask=mask, labels=labels) for model in (eager, sdpa))
    for name in eager_grad:
        assert_equal(sdpa_grad[name], eager_grad[name])


def grads(model, *args, **kwargs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*args, **kwargs).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.thorough
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_flex_attention_equals_eager(style):
    eager, flex = tiny_model(style, attention="eager"), tiny_model(style, attention="flex_attention")
    ids, mask = token_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    with torch.no_grad():  # its backward needs a GPU
        assert_equal(flex(ids).logits, eager(ids).logits)
        assert_equal(flex(ids, attention_mask=mask).logits[mask.bool()], eager(ids, attention_mask=mask).logits[mask.bool()])
        positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
        assert_equal(flex(ids, position_ids=positions).logits, eager(ids, position_ids=positions).logits)


@pytest.mark.parametrize("cls", [GPTScratchModel, GPTScratchForCausalLM, GPTScratchForSequenceClassification])
def test_every_attention_backend_is_declared(cls):
    assert cls._supports_sdpa and cls._supports_flash_attn and cls._supports_flex_attn and cls._supports_attention_backend


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_flash_attention_equals_sdpa(style):
    pytest.importorskip("flash_attn", reason="needs the package flash-attn")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    half = {"device": "cuda", "dtype": torch.bfloat16}
    sdpa, flash = (tiny_model(style, attention=name).to(**half) for name in ("sdpa", "flash_attention_2"))
    ids, mask = token_ids(2, 20).cuda(), torch.ones(2, 20, dtype=torch.long).cuda()
    mask[0, :7] = 0
    with torch.no_grad():
        ours, theirs = flash(ids, attention_mask=mask).logits, sdpa(ids, attention_mask=mask).logits
    assert_equal(ours[mask.bool()].float(), theirs[mask.bool()].float(), 3e-2)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.thorough
def test_compiled_forward_is_one_graph(style, backend):
    torch._dynamo.reset()
    model, ids = tiny_model(style), token_ids(2, 12)
    compiled = torch.compile(model, fullgraph=True, backend=backend)  # fullgraph: a graph break is an error
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    documents = torch.cat((torch.arange(7), torch.arange(5)))[None].expand(2, -1)
    for inputs in (
        {},
        {"attention_mask": mask},
        {"position_ids": documents},
        {"position_ids": documents, "attention_mask": torch.ones(2, 12, dtype=torch.long)},
    ):
        expected, actual = model(ids, labels=ids.clone(), **inputs), compiled(ids, labels=ids.clone(), **inputs)
        real = inputs.get("attention_mask", torch.ones(2, 12)).bool()
        assert_equal(actual.logits[real], expected.logits[real])
        assert_equal(actual.loss, expected.loss)
    with torch._dynamo.config.patch(error_on_recompile=True):  # other values of the same shapes: nothing is compiled again
        others = token_ids(2, 12, seed=1)
        compiled(others, labels=others.clone())
        compiled(others, labels=others.clone(), attention_mask=mask.flip(0))


@pytest.mark.parametrize(
    ("style", "loss_implementation"),
    [
        ("llama", "chunked"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("llama", "full"), ("gpt2", "full"), ("gpt2", "chunked"))),
    ],
)
@pytest.mark.thorough
def test_a_training_step_is_compiled_once_for_one_length_and_once_for_all_others(style, loss_implementation):
    torch._dynamo.reset()
    model = tiny_model(style).train()
    model.config.loss_implementation = loss_implementation
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for index, length in enumerate((9, 14, 20, 11, 17)):
        ids = token_ids(2, length)
        with torch._dynamo.config.patch(error_on_recompile=index > 1):
            compiled(ids, labels=ids).loss.backward()


@pytest.mark.slow
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_compiled_training_step_has_the_same_gradients(style):
    torch._dynamo.reset()
    model, ids = tiny_model(style).train(), token_ids(2, 12)
    expected = grads(model, ids, labels=ids)
    actual = grads(torch.compile(model, fullgraph=True), ids, labels=ids)
    for name in expected:
        assert_equal(actual[f"_orig_mod.{name}"], expected[name])
