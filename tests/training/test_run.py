"""Reference outputs and adapters that a run writes."""

import errno
import inspect
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import Trainer, TrainingArguments

from gpt_scratch.training import run
from gpt_scratch.training.finetuning import add_lora
from gpt_scratch.training.pretraining import PretrainingArguments


def test_reference_outputs_that_cannot_be_written_do_not_end_the_run(tmp_path, monkeypatch, capsys):
    trainer = Trainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))
    (tmp_path / "reference_outputs.json").write_text("of a run before this one", encoding="utf-8")

    def no_room(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_reference_outputs", no_room)
    run.save_trained(trainer)
    run.write_record(trainer, PretrainingArguments(), {"steps": 3})
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "metrics.json"}
    assert not (tmp_path / "reference_outputs.json").exists()
    assert "warning: the model is saved, but without reference_outputs.json" in capsys.readouterr().out


def test_reference_outputs_are_written_by_the_first_process_alone(tmp_path, monkeypatch):
    trainer = Trainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    run.save_trained(trainer)
    run.write_record(trainer, PretrainingArguments(), {})
    assert not (tmp_path / "reference_outputs.json").exists()


def test_an_adapter_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="needs peft")
    model = add_lora(tiny_model(), "CAUSAL_LM", rank=2, alpha=2)
    trainer = Trainer(model, TrainingArguments(str(tmp_path), use_cpu=True))
    run.save_adapter(trainer)
    first = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= first.keys()
    save = type(model).save_pretrained

    def save_half(self, folder, **settings):
        save(self, folder, **settings)
        (Path(folder) / "adapter_config.json").unlink()
        raise OSError(errno.ENOSPC, "No space left on device")

    with torch.no_grad():
        next(parameter for parameter in model.parameters() if parameter.requires_grad).add_(1)
    monkeypatch.setattr(type(model), "save_pretrained", save_half)
    with pytest.raises(OSError, match="No space left"):
        run.save_adapter(trainer)
    assert {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()} == first
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    monkeypatch.undo()
    run.save_adapter(trainer)
    again = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
    assert again.keys() == first.keys() and again["adapter_model.safetensors"] != first["adapter_model.safetensors"]


@pytest.mark.parametrize("name", ["finetune_classifier", "finetune_instructions"])
def test_scripts_write_the_adapter_that_way(script, name):
    source = inspect.getsource(script(name))
    assert "save_adapter(trainer)" in source and ".save_pretrained(" not in source
