"""A resumed run takes its own settings, an evaluation that fails costs no steps, and old checkpoints are removed in order. Kills and damage: test_survival.py, test_resume.py."""

import json
import os
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, token_ids
from transformers import EarlyStoppingCallback, default_data_collator

from gpt_scratch.training import precision
from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.checkpoints import MANIFEST, ResumableTrainer, rotate

ROWS = [{"input_ids": row, "labels": row} for row in token_ids(16, 8)]


def trainer_of(folder: Path, callbacks=(), **settings) -> ResumableTrainer:
    args = ScratchTrainingArguments(
        str(folder),
        **{
            "use_cpu": True,
            "disable_tqdm": True,
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "eval_strategy": "no",
        }
        | {"per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "save_total_limit": None}
        | settings,
    )
    return ResumableTrainer(
        tiny_model(), args, train_dataset=ROWS, eval_dataset=ROWS, data_collator=default_data_collator, callbacks=list(callbacks)
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """Four steps at a learning rate that falls from 1e-3 to 0; the checkpoint after two of them."""
    folder = tmp_path_factory.mktemp("begun")
    trainer_of(folder, weight_decay=0.1).train()
    return folder / "checkpoint-2"


def resumed(begun: Path, folder: Path, callbacks=(), **settings) -> tuple[ResumableTrainer, dict[int, float]]:
    """The trainer and its learning rate at each step."""
    trainer = trainer_of(folder, callbacks, **{"weight_decay": 0.1} | settings)
    trainer.train(resume_from_checkpoint=str(begun))
    rates = {entry["step"]: entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry}
    return trainer, rates


def test_settings_that_change_at_a_resumption_take_effect(begun, tmp_path, capsys):
    trainer, rates = resumed(begun, tmp_path, learning_rate=1e-2, weight_decay=0.5, adam_beta2=0.9, save_steps=1)
    assert rates == pytest.approx({1: 1e-3, 2: 7.5e-4, 3: 5e-3, 4: 2.5e-3})
    decayed, rest = trainer.optimizer.param_groups
    assert (decayed["weight_decay"], rest["weight_decay"], decayed["betas"]) == (0.5, 0.0, (0.9, 0.9))
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-4"}
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: since checkpoint-2: ")]
    assert [note.split(": ")[2] for note in notes] == ["adam_beta2", "learning_rate", "weight_decay"]
    assert notes[1].endswith("0.001 before, 0.01 now")


@pytest.mark.thorough
def test_a_run_that_is_made_longer_follows_the_longer_schedule(begun, tmp_path):
    _, rates = resumed(begun, tmp_path, max_steps=8)
    assert rates == pytest.approx({1: 1e-3, 2: 7.5e-4, **{step: 1e-3 * (9 - step) / 8 for step in range(3, 9)}})


@pytest.mark.thorough
def test_evaluations_that_the_first_run_did_not_have(begun, tmp_path):
    trainer, _ = resumed(begun, tmp_path, eval_strategy="steps", eval_steps=1)
    assert [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry] == [3, 4]


@pytest.mark.thorough
def test_the_patience_of_the_resumed_run_counts(tmp_path):
    settings = {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "max_steps": 9}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    first = trainer_of(tmp_path / "first", [EarlyStoppingCallback(2)], **settings)
    first.train()
    assert first.state.global_step == 3  # the first evaluation is the best, two are not better
    second = trainer_of(tmp_path / "second", [EarlyStoppingCallback(4)], **settings)
    second.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-2"))
    assert second.state.global_step == 5


@pytest.mark.thorough
def test_a_failed_evaluation_loses_no_steps(tmp_path, capsys):
    class Failing(ResumableTrainer):
        def evaluation_loop(self, *args, **kwargs):
            raise torch.OutOfMemoryError("no memory is left")

    trainer = trainer_of(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="no")
    trainer.__class__ = Failing
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()
    assert "the evaluation failed; checkpoint-3 was saved before it" in capsys.readouterr().out
    assert (tmp_path / "checkpoint-3" / MANIFEST).is_file()
    again = trainer_of(tmp_path, eval_strategy="steps", eval_steps=3, save_strategy="no")
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [entry["step"] for entry in again.state.log_history if "eval_loss" in entry] == [3, 4]
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["global_step"] == 3


def test_old_checkpoints_are_removed_by_step_not_by_time(tmp_path):
    """The newest has the oldest time, as after a clock that went back; what this package did not write stays."""
    for step, time in ((2, 4000), (4, 3000), (6, 2000), (8, 1000)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / MANIFEST).write_text("{}", encoding="utf-8")
        os.utime(tmp_path / f"checkpoint-{step}", (time, time))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-notes").mkdir()

    def left() -> set[str]:
        return {path.name.removeprefix("checkpoint-") for path in tmp_path.iterdir()} - {"1", "notes"}

    rotate(tmp_path, tmp_path / "checkpoint-8", 3, None)
    assert left() == {"4", "6", "8"}
    rotate(tmp_path, tmp_path / "checkpoint-6", 2, None)  # 8 is of an attempt that was given up
    assert left() == {"4", "6"}
    rotate(tmp_path, tmp_path / "checkpoint-6", 1, str(tmp_path / "checkpoint-4"))
    assert left() == {"4", "6"}
    assert (tmp_path / "checkpoint-1").is_dir() and (tmp_path / "checkpoint-notes").is_dir()


def test_a_precision_that_was_chosen_is_printed_and_used(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    trainer = trainer_of(tmp_path, max_steps=1, save_strategy="no")
    dtypes = set()
    trainer.model.model.layers[0].mlp.up_proj.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    trainer.train()
    assert "precision: bf16 autocast, which is faster on this cpu; --bf16 false trains in fp32" in capsys.readouterr().out
    assert dtypes == {torch.bfloat16}
