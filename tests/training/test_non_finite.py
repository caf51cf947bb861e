"""A loss or gradient that is not finite ends the run; so does one that would train nothing."""

import pytest
import torch
from transformers import TrainingArguments

from gpt_scratch.errors import UserError
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.checkpoints import ResumableTrainer, damage
from gpt_scratch.training.language_model_trainer import LanguageModelTrainer
from gpt_scratch.training.pretraining import PretrainingArguments

TINY = ["--config_overrides", "n_embd=16,n_layer=1,n_head=2", "--block_size", "16", "--vocab_size", "270", "--use_cpu", "--eval_strategy",
        "no", "--sample_tokens", "0", "--per_device_train_batch_size", "4", "--disable_tqdm", "true", "--save_strategy", "steps"]  # fmt: skip


def pretrain(script, folder, *flags: str) -> dict:
    (folder / "text.txt").write_text("Anna lost her key by the river, and Tom had a cat. " * 100, encoding="utf-8")
    argv = [*TINY, "--train_file", str(folder / "text.txt"), "--output_dir", str(folder / "run"), *flags]
    return script("pretrain").main(*parse_arguments((PretrainingArguments, ScratchTrainingArguments), argv))


def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_stays(script, tmp_path, monkeypatch):
    compute = LanguageModelTrainer.compute_loss

    def poisoned(self, *args, **kwargs):
        return compute(self, *args, **kwargs) * (torch.nan if self.state.global_step == 3 else 1)

    monkeypatch.setattr(LanguageModelTrainer, "compute_loss", poisoned)
    run, flags = tmp_path / "run", ["--max_steps", "6", "--save_steps", "2"]
    with pytest.raises(UserError, match="^step 4: the loss is nan; .*checkpoint-2 is kept.*--allow_non_finite"):
        pretrain(script, tmp_path, *flags)
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-2"] and damage(run / "checkpoint-2") is None
    assert not (run / "README.md").exists() and not (run / "metrics.json").exists() and not list(run.glob("*.safetensors"))
    pretrain(script, tmp_path, *flags, "--resume_from_checkpoint", "latest", "--allow_non_finite")
    assert (run / "checkpoint-6").is_dir() and (run / "metrics.json").is_file()


class Line(torch.nn.Module):
    """Fits y = a x, with a gradient made infinite at one step."""

    def __init__(self, poisoned: int):
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(1))
        self.steps, self.poisoned = 0, poisoned
        self.a.register_hook(self.poison)

    def poison(self, gradient):
        self.steps += 1
        return gradient * torch.inf if self.steps == self.poisoned else gradient

    def forward(self, x, labels):
        return {"loss": ((self.a * x - labels) ** 2).mean()}


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
@pytest.mark.thorough
def test_a_gradient_that_is_not_finite_ends_the_run_before_the_step(tmp_path, max_grad_norm):
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 8
    args = TrainingArguments(
        str(tmp_path), max_steps=4, max_grad_norm=max_grad_norm, per_device_train_batch_size=2, use_cpu=True, report_to="none",
        save_strategy="no", learning_rate=0.1,
    )  # fmt: skip
    model = Line(poisoned=3)
    with pytest.raises(UserError, match="^step 3: the gradient's norm is inf; .*no checkpoint"):
        ResumableTrainer(model, args, train_dataset=rows).train()
    assert torch.isfinite(model.a).all() and model.steps == 3
    trainer = ResumableTrainer(Line(poisoned=3), args, train_dataset=rows)
    trainer.allow_non_finite = True
    trainer.train()
    assert trainer.state.global_step == 4


@pytest.mark.parametrize(
    "flags", [["--num_train_epochs", "-1"], ["--num_train_epochs", "0"], ["--num_train_epochs", "nan"], ["--num_train_epochs", "inf"],
              ["--max_steps", "0"], ["--max_steps", "-2", "--num_train_epochs", "-1"]],
)  # fmt: skip
def test_a_run_of_no_steps_is_refused_with_its_flags(script, tmp_path, flags):
    with pytest.raises(UserError, match=f"{flags[-2]} is .*: (nothing would be trained|training would have no steps)"):
        pretrain(script, tmp_path, *flags)
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_trained_nothing_is_an_error(tmp_path):
    args = TrainingArguments(
        str(tmp_path), max_steps=4, dataloader_drop_last=True, use_cpu=True, report_to="none", save_strategy="no"
    )
    with pytest.raises(UserError, match="nothing was trained"):
        ResumableTrainer(Line(0), args, train_dataset=[{"x": torch.ones(1), "labels": torch.ones(1)}] * 3).train()
