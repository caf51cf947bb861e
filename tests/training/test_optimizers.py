"""Muon with AdamW: which parameters each gets, one step against the formulas, and a state that resumes exactly."""

import copy

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids

from gpt_scratch.training.optimizers import MuonAndAdamW


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
