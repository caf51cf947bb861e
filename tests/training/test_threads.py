"""The number of threads is measured, kept when a run resumes, and otherwise only set by the user."""

import time
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_model, token_ids

from gpt_scratch.training import threads
from gpt_scratch.training.threads import ThreadsCallback, fastest_threads, first_rows


@pytest.fixture(autouse=True)
def put_back():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def step_that_takes(seconds: dict[int, float]):
    return lambda: time.sleep(seconds[torch.get_num_threads()])


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({1: 0.002, 2: 0.02, 4: 0.04, 8: 0.06}, 1),  # a busy machine
        ({1: 0.04, 2: 0.02, 4: 0.01, 8: 0.005}, 8),  # a quiet one
        ({1: 0.01, 2: 0.009, 4: 0.01, 8: 0.011}, 8),  # no matter: all stay, so that equal runs stay equal
        ({1: 0.04, 2: 0.01, 4: 0.02, 8: 0.04}, 2),
    ],
)
def test_the_fastest_number_is_taken_if_it_matters(seconds, chosen):
    found, measured = fastest_threads(step_that_takes(seconds), 8)
    assert found == chosen == torch.get_num_threads() and {1, 8} <= measured.keys()


class Rows:
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"input_ids": token_ids(8, seed=i), "labels": token_ids(8, seed=i)}


def dataloader():
    return torch.utils.data.DataLoader(Rows(), batch_size=2)


def begin(callback: ThreadsCallback, model, **changes) -> None:
    args = {
        "world_size": 1,
        "torch_compile": False,
        "device": torch.device("cpu"),
        "per_device_train_batch_size": 2,
        "bf16": False,
    }
    callback.on_train_begin(SimpleNamespace(**args | changes), None, None, model=model, train_dataloader=dataloader())


def test_measuring_does_not_change_the_run(monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    model = tiny_model(embedding_dropout=0.5).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    callback = ThreadsCallback()
    begin(callback, model)
    assert torch.equal(torch.rand(2), expected) and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().out.startswith(f"threads: {callback.threads} of 2, ")
    assert callback.state()["attributes"] == {"threads": callback.threads}


def test_a_resumed_run_keeps_its_number_and_the_user_s_is_kept_in_any_case(monkeypatch):
    def measured(*_):
        raise AssertionError("measured")

    monkeypatch.setattr(threads, "fastest_threads", measured)
    torch.set_num_threads(2)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    begin(ThreadsCallback(threads=1), tiny_model())
    assert torch.get_num_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    begin(ThreadsCallback(), tiny_model(), world_size=2)
    with pytest.raises(AssertionError, match="measured"):
        begin(ThreadsCallback(), tiny_model())
    begin(ThreadsCallback(threads=1), tiny_model())
    assert torch.get_num_threads() == 1


def test_large_models_are_measured_on_fewer_rows_or_not_at_all(monkeypatch):
    model = tiny_model()
    work = 6 * model.num_parameters() * 8
    monkeypatch.setattr(threads, "FLOP", work * 1.5)
    assert first_rows(dataloader(), model, 2)["input_ids"].shape == (1, 8)
    monkeypatch.setattr(threads, "LARGEST", work / 2)
    assert first_rows(dataloader(), model, 2) is None
