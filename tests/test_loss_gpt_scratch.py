"""The loss without logits equals the one with them, and so does every gradient."""

import math

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from torch import nn

from gpt_scratch import loss_gpt_scratch
from gpt_scratch.loss_gpt_scratch import LinearCrossEntropy, language_modeling_loss

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])  # tied and untied


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several chunks of rows, pieces of chunks and slices of the vocabulary, none of which divides the whole."""
    monkeypatch.setattr(loss_gpt_scratch, "CHUNK_BYTES_PER_ENTRY", 28)  # 7 rows in fp32, 14 in bf16
    monkeypatch.setattr(loss_gpt_scratch, "SOFTMAX_ROWS", 3)
    monkeypatch.setattr(loss_gpt_scratch, "VOCABULARY_CHUNK", 16)


def ragged_labels(ids: torch.Tensor) -> torch.Tensor:
    labels = ids.clone()
    for i in range(len(ids)):
        labels[i, ids.shape[1] - i :] = -100
    labels[1, 2:5] = -100
    return labels


def step(
    style: str, implementation: str, ids: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0, prepare=None, **kwargs
):
    """Loss and gradients of one training step."""
    model = tiny_model(style).train()
    model.loss_implementation, model.label_smoothing = implementation, smoothing
    if prepare is not None:
        prepare(model)
    out = model(ids, labels=labels, **kwargs)
    assert (out.logits is None) == (implementation == "chunked")
    out.loss.backward()
    return out.loss, {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_step(*args, **kwargs):
    loss, gradients = step(args[0], "chunked", *args[1:], **kwargs)
    expected, expected_gradients = step(args[0], "full", *args[1:], **kwargs)
    assert_equal(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        assert_equal(gradients[name], gradient)
        assert gradients[name].dtype == gradient.dtype
    return gradients


@STYLES
@pytest.mark.parametrize("items", [None, 50, torch.tensor(50)])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_loss_and_every_gradient_equal_the_full_ones(style, items, smoothing):
    ids = token_ids(4, 13)
    kwargs = {} if items is None else {"num_items_in_batch": items}
    gradients = assert_same_step(style, ids, ragged_labels(ids), smoothing, **kwargs)
    assert min(gradient.abs().max() for name, gradient in gradients.items() if "k_proj.bias" not in name) > 1e-4


def test_label_smoothing_against_a_value_worked_out_by_hand():
    logits = [[1.0, 0.0, -1.0], [0.5, 0.2, 2.0], [0.0, 3.0, 0.0]]
    labels = torch.tensor([[7, 2, -100]])  # the first label is never predicted, whatever it is

    def nll(row, target):
        return math.log(sum(math.exp(x) for x in row)) - row[target]

    smoothed = 0.9 * nll(logits[0], 2) + 0.1 / 3 * sum(nll(logits[0], k) for k in range(3))
    assert language_modeling_loss(torch.tensor([logits]), labels, 0.1).item() == pytest.approx(smoothed, abs=1e-6)
    loss = loss_gpt_scratch.chunked_language_modeling_loss(
        torch.tensor([logits]), torch.eye(3), labels, 0.1, num_items_in_batch=4
    )
    assert loss.item() == pytest.approx(smoothed / 4, abs=1e-6)


@STYLES
def test_shift_labels_stand_in_for_labels(style):
    ids = token_ids(2, 9)
    assert_same_step(style, ids, ids, shift_labels=token_ids(2, 9, seed=5))


@STYLES
@pytest.mark.parametrize("frozen", ["head", "body", "all but the last norm"])
def test_frozen_parts_cost_no_gradient(style, frozen):
    def prepare(model):
        for name, parameter in model.named_parameters():
            head = name == "lm_head.weight" or (style == "gpt2" and name == "model.embed_tokens.weight")
            parameter.requires_grad_({"head": not head, "body": head, "all but the last norm": "model.norm" in name}[frozen])

    ids = token_ids(3, 11)
    gradients = assert_same_step(style, ids, ragged_labels(ids), prepare=prepare)
    assert gradients


@STYLES
@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(style, reentrant):
    ids = token_ids(2, 11)
    assert_same_step(style, ids, ids, prepare=lambda model: model.gradient_checkpointing_enable({"use_reentrant": reentrant}))


@STYLES
def test_accumulated_batches_equal_one(style):
    ids = token_ids(8, 11)
    labels = ragged_labels(ids)
    items = (labels[:, 1:] != -100).sum()
    loss, whole = step(style, "chunked", ids, labels, num_items_in_batch=items)
    parts = [step(style, "chunked", ids[i : i + 2], labels[i : i + 2], num_items_in_batch=items) for i in range(0, 8, 2)]
    assert_equal(sum(part[0] for part in parts), loss)
    for name, gradient in whole.items():
        assert_equal(sum(part[1][name] for part in parts), gradient)


@STYLES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_sums_in_fp32(style, dtype):
    """As near to fp32 as the full loss under the same autocast is, and parameters keep fp32 gradients."""
    ids = token_ids(4, 13)

    def relative(gradients, exact):
        return {name: ((gradients[name] - g).norm() / g.norm().clamp(min=1e-6)).item() for name, g in exact.items()}

    _, exact = step(style, "full", ids, ids)
    with torch.autocast("cpu", dtype):
        full_loss, full = step(style, "full", ids, ids)
        loss, ours = step(style, "chunked", ids, ids)
    assert_equal(loss, full_loss, 1e-2)
    assert {gradient.dtype for gradient in ours.values()} == {torch.float32}
    name = "model.embed_tokens.weight" if style == "gpt2" else "lm_head.weight"
    assert relative(ours, exact)[name] <= max(1.2 * relative(full, exact)[name], 1e-3)


def test_bf16_weights():
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16).bfloat16().requires_grad_(), torch.randn(61, 16).bfloat16().requires_grad_()
    targets = torch.randint(61, (40,))
    loss = LinearCrossEntropy.apply(hidden, weight, targets)
    loss.backward()
    hidden32, weight32 = hidden.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    expected = nn.functional.cross_entropy(hidden32 @ weight32.T, targets, reduction="sum")
    expected.backward()
    assert loss.dtype == torch.float32 and hidden.grad.dtype == weight.grad.dtype == torch.bfloat16
    assert_equal(loss, expected, 5e-3)
    assert_equal(weight.grad.float(), weight32.grad, 1e-2)
    assert_equal(hidden.grad.float(), hidden32.grad, 1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_a_vocabulary_padded_for_tensor_cores_changes_nothing(smoothing):
    hidden, weight, targets = torch.randn(30, 16), torch.randn(61, 16), torch.randint(61, (30,))
    results = []
    for multiple in (1, 128):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = LinearCrossEntropy.apply(h, w, targets, smoothing, multiple)
        loss.backward()
        results.append((loss, h.grad, w.grad))
    for one, other in zip(*results):
        assert one.shape == other.shape
        assert_equal(one, other)


def test_extreme_logits_neither_overflow_nor_vanish():
    hidden, weight = torch.tensor([[1.0], [1.0]], requires_grad=True), torch.tensor([[3e4], [-3e4], [0.0]], requires_grad=True)
    loss = LinearCrossEntropy.apply(hidden, weight, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 6e4 and hidden.grad.isfinite().all() and weight.grad.isfinite().all()


@STYLES
def test_evaluation_gives_logits(style):
    model, ids = tiny_model(style, loss_implementation="chunked"), token_ids(2, 9)
    out = model(ids, labels=ids)
    assert out.logits.shape == (2, 9, 61)
    model.train()
    assert model(ids).logits.shape == (2, 9, 61)  # no labels, no loss: what else should it give
    assert_equal(model(ids, labels=ids).loss, out.loss)


def test_nothing_to_predict():
    model, ids = tiny_model("gpt2", loss_implementation="chunked").train(), token_ids(2, 5)
    nothing = torch.full_like(ids, -100)
    assert model(ids, labels=nothing).loss.isnan()  # as cross_entropy has it
    loss = model(ids, labels=nothing, num_items_in_batch=7).loss
    loss.backward()
    assert loss.item() == 0 and all(not p.grad.any() for p in model.parameters() if p.grad is not None)


def test_the_gradient_of_the_weight_is_no_view():
    """So that autograd adds that of a tied embedding to it in place, instead of making a third of their size."""
    hidden, weight = torch.randn(5, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    loss = LinearCrossEntropy.apply(hidden, weight, torch.tensor([1, 2, 3, 4, 12]))
    (gradient,) = torch.autograd.grad(loss, weight)  # as it leaves the function: in .grad is a copy
    assert not gradient._is_view()


def test_a_second_backward_is_refused():
    model, ids = tiny_model("gpt2", loss_implementation="chunked").train(), token_ids(2, 5)
    loss = model(ids, labels=ids).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='loss_implementation="full"'):
        loss.backward()


def test_an_adapted_head_is_used():
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model, ids = tiny_model("llama", loss_implementation="chunked").train(), token_ids(2, 5)
    head = Adapted(32, 61, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    out = model(ids, labels=ids)
    assert out.logits is not None
    assert_equal(out.loss, nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()))


@STYLES
@pytest.mark.thorough
def test_compiled_without_a_graph_break(style):
    torch._dynamo.reset()
    ids = token_ids(3, 11)
    model = tiny_model(style).train()
    model.loss_implementation = "chunked"
    expected, gradients = step(style, "full", ids, ragged_labels(ids))
    loss = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ragged_labels(ids)).loss
    loss.backward()
    assert_equal(loss, expected)
    for name, gradient in gradients.items():
        assert_equal(model.get_parameter(name).grad, gradient)
