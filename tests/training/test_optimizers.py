"""Muon against torch's; Muon with AdamW: which parameters each gets, one step against the formulas, and a state that resumes exactly."""

import copy

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids

from gpt_scratch.training import optimizers
from gpt_scratch.training.optimizers import Muon, MuonAndAdamW, orthogonalized


def train(model, optimizer, steps: range) -> None:
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for _ in range(steps.start):
        scheduler.step()
    for step in steps:
        ids = token_ids(4, 12, seed=step)
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_which_parameters_each_optimizer_gets(style):
    model = tiny_model(style)
    optimizer = MuonAndAdamW(model, lr=1e-3, muon_lr=1e-2, weight_decay=0.1)
    muon, decayed, rest = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    for name, parameter in model.named_parameters():
        expected = rest if parameter.ndim == 1 else muon if ".layers." in name else decayed
        assert id(parameter) in expected, name
    assert len(muon) + len(decayed) + len(rest) == len(list(model.parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-2, 1e-3, 1e-3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0.0]


def test_muon_steps_as_torchs_and_keeps_its_state_under_the_same_names():
    generator = torch.Generator().manual_seed(0)
    shapes = [(16, 16), (48, 16), (16, 16), (16, 48)]
    ours, theirs = ([torch.nn.Parameter(torch.zeros(shape)) for shape in shapes] for _ in range(2))
    optimizer = Muon(ours, lr=1e-2)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        optimizer.step()
        reference.step()
    for one, other in zip(ours, theirs):
        assert (one - other).norm() < 0.03 * other.norm()  # torch's is in bf16
    assert {name for state in reference.state.values() for name in state} == {"momentum_buffer"}
    reference.load_state_dict(optimizer.state_dict() | {"param_groups": reference.state_dict()["param_groups"]})


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 24), (3, 40, 24), (24, 40)])
def test_singular_values_become_one(shape, bf16, monkeypatch):
    monkeypatch.setattr(optimizers, "cpu_multiplies_bf16", lambda: bf16)
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e-3
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = torch.einsum("...ri,...rc,...ic->...i", u, orthogonalized(matrices), vh)
    clear = s > 0.05 * s.amax(-1, keepdim=True)
    assert values[clear].min() > 0.6 and values[clear].max() < 1.3


@pytest.mark.parametrize("shape", [(2, 6, 12), (2, 12, 6), (2, 8, 40), (2, 11, 6), (1, 8)])
@pytest.mark.parametrize("rank", ["full", "one"])
def test_products_of_polynomials_are_the_newton_schulz_iteration(shape, rank):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    if rank == "one":
        matrices = matrices[..., :1, :] * matrices[..., :, :1] + 1e-3 * matrices
    x = matrices.double() / matrices.double().norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):  # as Jordan et al. write it
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    assert_equal(orthogonalized(matrices), x.float(), 1e-3 if rank == "one" else 1e-5)


def test_a_first_step_orthogonalizes_matrices_and_takes_signs_elsewhere():
    model = tiny_model("llama")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = MuonAndAdamW(model, lr=1e-2, weight_decay=0.0)
    ids = token_ids(4, 12)
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        update = (parameter.detach() - before[name]) / -1e-2
        if ".layers." in name and parameter.ndim == 2:  # U V^T of the gradient's singular values, times 0.2 sqrt(longer side)
            u, s, v = torch.linalg.svd(parameter.grad, full_matrices=False)
            clear = s > 0.05 * s[0]  # Newton-Schulz leaves the smallest singular values below one
            along = torch.einsum("ik,ij,kj->k", u, update, v) / (0.2 * max(parameter.shape) ** 0.5)
            assert along[clear].min() > 0.6 and along.max() < 1.3, name
        else:
            seen = parameter.grad.abs() > 1e-6
            assert_equal(update[seen], parameter.grad[seen].sign(), 2e-2)


def test_its_state_resumes_where_it_was():
    whole, resumed = tiny_model("gpt2"), tiny_model("gpt2")
    optimizer = MuonAndAdamW(whole, lr=1e-2)
    train(whole, optimizer, range(0, 6))
    first = MuonAndAdamW(resumed, lr=1e-2)
    train(resumed, first, range(0, 3))
    state = copy.deepcopy(first.state_dict())
    second = MuonAndAdamW(resumed, lr=1e-2)
    second.load_state_dict(state)
    for group in second.param_groups:
        group["lr"] = 1e-2
    train(resumed, second, range(3, 6))
    for one, other in zip(whole.parameters(), resumed.parameters()):
        assert torch.equal(one, other)
