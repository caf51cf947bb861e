"""What a run says of itself."""

from tiny_models import tiny_model
from transformers import Trainer, TrainingArguments

from gpt_scratch.training import run
from gpt_scratch.training.pretraining import PretrainingArguments


def test_reference_outputs_that_cannot_be_written_do_not_cost_the_run(tmp_path, monkeypatch, capsys):
    trainer = Trainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))
    (tmp_path / "reference_outputs.json").write_text("of a run before this one", encoding="utf-8")

    def no_room(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_reference_outputs", no_room)
    run.save_trained(trainer)
    run.write_record(trainer, PretrainingArguments(), {"steps": 3})
    assert {path.name for path in tmp_path.iterdir()} >= {"model.safetensors", "metrics.json"}
    assert not (tmp_path / "reference_outputs.json").exists()
    assert "warning: the model is saved, but not what it computes (reference_outputs.json)" in capsys.readouterr().out


def test_reference_outputs_are_written_by_the_first_process_alone(tmp_path, monkeypatch):
    trainer = Trainer(tiny_model(), TrainingArguments(str(tmp_path), use_cpu=True))
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    run.save_trained(trainer)
    run.write_record(trainer, PretrainingArguments(), {})
    assert not (tmp_path / "reference_outputs.json").exists()
