"""Shared steps of training scripts around `trainer.train()`: resuming, saving, recording metrics."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import transformers
from transformers import Trainer

from ..errors import UserError, innermost, one_line
from ..files import swapped_directory, write_json
from ..progress import named
from ..provenance import describe_environment, without_folders
from ..reference_outputs import FILE, write_reference_outputs
from ..training_conflicts import check_resumable, no_checkpoint
from .checkpoints import damage, newest_complete_checkpoint
from .lock import lock_output_directory


def checkpoint_to_resume(output_dir: str, resume_from_checkpoint: str | None) -> str | None:
    """The checkpoint directory for `--resume_from_checkpoint`: a path, or "latest" for the newest complete one in `output_dir`.

    Raises:
        UserError: there is none, it is incomplete, or another run is using the directory.
    """
    check_resumable(output_dir, resume_from_checkpoint)
    if resume_from_checkpoint in (None, "", "false", "False"):
        return None
    if resume_from_checkpoint in ("latest", "true", "True"):
        if Path(output_dir).is_dir():
            lock_output_directory(output_dir)  # before renaming anything that another run may be writing
        checkpoint = newest_complete_checkpoint(output_dir)
        if checkpoint is None:
            raise no_checkpoint(output_dir, resume_from_checkpoint)
        return checkpoint
    if (found := damage(resume_from_checkpoint)) is not None:
        raise UserError(f"--resume_from_checkpoint {resume_from_checkpoint} is incomplete: {found}")
    return resume_from_checkpoint


def save_trained(trainer: Trainer) -> None:
    """Write model, tokenizer and trainer state to the output directory, before anything that may fail."""
    trainer.save_model()
    best = trainer.state.best_model_checkpoint
    trainer.state.best_model_checkpoint = best and os.path.basename(best)  # trainer_state.json is published
    trainer.save_state()
    if trainer.is_world_process_zero():
        print(f"the trained model is saved in {trainer.args.output_dir}", flush=True)


def write_record(trainer: Trainer, script_args: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Write `metrics.json` and the reference outputs of the model that [`save_trained`] wrote.

    Returns:
        The content of `metrics.json`.
    """
    record = {
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "parameters": trainer.model.num_parameters(),
        "script_arguments": {name: without_folders(value) for name, value in asdict(script_args).items() if value is not None},
        "training_arguments": {name: without_folders(value) for name, value in _changed_arguments(trainer.args).items()},
        "environment": describe_environment(),
    }
    record = json.loads(json.dumps(record))  # as it is read from the file, with lists instead of tuples
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir) / "metrics.json", record)
        _write_reference_outputs(Path(trainer.args.output_dir))
    return record


def save_adapter(trainer: Trainer) -> None:
    """Write the trained adapter to OUTPUT/adapter, atomically, replacing an existing one."""
    is_main = trainer.is_world_process_zero()
    with swapped_directory(Path(trainer.args.output_dir) / "adapter") if is_main else TemporaryDirectory() as folder:
        trainer.model.save_pretrained(str(folder), is_main_process=is_main)


def run_figures(trainer: Trainer, train_seconds: float | None) -> dict[str, Any]:
    """Length of the run in steps, epochs and seconds."""
    return {"steps": trainer.state.global_step, "epochs": trainer.state.epoch, "train_seconds": train_seconds}


def evaluation_curve(history: Sequence[Mapping[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """The evaluations of a run with step, epoch and those of `columns` that they have; without `columns`, with all metrics.

    >>> evaluation_curve([{"step": 1, "loss": 3.0}, {"step": 1, "epoch": 0.5, "eval_loss": 2.0, "eval_runtime": 7.0}], "eval_loss")
    [{'step': 1, 'epoch': 0.5, 'eval_loss': 2.0}]
    """
    evaluations = [entry for entry in history if any(name.startswith("eval_") for name in entry)]
    return [
        {
            name: entry[name]
            for name in ("step", "epoch", *(columns or [n for n in entry if n.startswith("eval_")]))
            if name in entry
        }
        for entry in evaluations
    ]


def _write_reference_outputs(folder: Path) -> None:
    """Computed from the saved files, which works for sharded and merged models, too. A failure does not fail the run."""
    try:
        with named("computing the reference outputs"):
            write_reference_outputs(folder)
    except Exception as error:  # the model is already saved
        (folder / FILE).unlink(missing_ok=True)  # of an earlier run
        print(f"warning: the model is saved, but without {FILE}, so it cannot be verified later: {one_line(innermost(error))}")


def _changed_arguments(args: transformers.TrainingArguments) -> dict[str, Any]:
    """The training arguments that differ from their defaults, without tokens and folders."""
    # use_cpu, since TRL refuses its own default of bf16 without a GPU. bf16 is recorded, since its default depends on the hardware.
    defaults = type(args)(output_dir=args.output_dir, use_cpu=True).to_dict() | {"use_cpu": False, "bf16": False}
    hidden = {"output_dir", "logging_dir", "hub_token", "push_to_hub_token", "run_name"}
    return {k: v for k, v in args.to_dict().items() if k not in hidden and v != defaults.get(k)}
