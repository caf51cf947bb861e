"""What every training script does around `trainer.train()`: choose a checkpoint, collect facts, leave a whole directory behind."""

import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import accelerate
import datasets
import tokenizers
import torch
import transformers
from transformers import Trainer

from .. import __version__
from ..errors import UserError, innermost, one_line
from ..files import swapped_directory, write_json
from ..reference_outputs import FILE, write_reference_outputs
from .checkpoints import damage, newest_whole_checkpoint
from .lock import lock_output_directory


def checkpoint_to_resume(output_dir: str, resume_from_checkpoint: str | None) -> str | None:
    """The checkpoint directory that `--resume_from_checkpoint` means: a path, or "latest" for the newest whole one in `output_dir`.

    Raises:
        UserError: there is none, it is not whole, or another run is writing there.
    """
    if resume_from_checkpoint in (None, "", "false", "False"):
        return None
    if resume_from_checkpoint in ("latest", "true", "True"):
        if Path(output_dir).is_dir():
            lock_output_directory(output_dir)  # before anything is renamed there that another run may be writing
        checkpoint = newest_whole_checkpoint(output_dir)
        if checkpoint is None:
            raise UserError(
                f"--resume_from_checkpoint {resume_from_checkpoint}: {output_dir} holds no checkpoint-N directory that is whole"
            )
        return checkpoint
    if not (Path(resume_from_checkpoint) / "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {resume_from_checkpoint}: no trainer_state.json there, so it is no checkpoint")
    if (found := damage(resume_from_checkpoint)) is not None:
        raise UserError(f"--resume_from_checkpoint {resume_from_checkpoint}: it is not whole, {found}")
    return resume_from_checkpoint


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and the command of this run, so that a figure can be traced to it. Holds no path of this machine."""
    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join([os.path.basename(sys.argv[0]), *(_without_folder(word) for word in sys.argv[1:])]),
        "commit": _commit(),
        "versions": {"gpt_scratch": __version__}
        | {module.__name__: module.__version__ for module in (torch, transformers, datasets, tokenizers, accelerate)},
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }


def _without_folder(word: str) -> str:
    flag, separator, value = ("", "", word) if os.path.isabs(word) or "=" not in word else word.partition("=")
    return flag + separator + (os.path.basename(value.rstrip("/")) if os.path.isabs(value) else value)


def _public(value: Any) -> Any:
    """Without the folders of this machine."""
    if isinstance(value, list):
        return [_public(item) for item in value]
    return _without_folder(value) if isinstance(value, str) else value


def _commit() -> str | None:
    """The commit of the checkout that the package runs from; `None` where it is installed from a wheel."""
    folder = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 and tracked.returncode == 0 else None


def save_run(trainer: Trainer, script_args: Any, metrics: dict[str, Any]) -> dict[str, Any]:
    """Write model, tokenizer, trainer state, `metrics.json` and the model's reference outputs to the output directory.

    Returns:
        What `metrics.json` holds.
    """
    trainer.save_model()
    best = trainer.state.best_model_checkpoint
    trainer.state.best_model_checkpoint = best and os.path.basename(best)  # trainer_state.json is published
    trainer.save_state()
    record = {
        "metrics": {name: value for name, value in metrics.items() if value is not None},
        "parameters": trainer.model.num_parameters(),
        "script_arguments": {name: _public(value) for name, value in asdict(script_args).items() if value is not None},
        "training_arguments": {name: _public(value) for name, value in _changed_arguments(trainer.args).items()},
        "environment": describe_environment(),
    }
    if trainer.is_world_process_zero():
        write_json(Path(trainer.args.output_dir) / "metrics.json", record)
        _write_reference_outputs(Path(trainer.args.output_dir))
    return record


def save_adapter(trainer: Trainer) -> None:
    """Write the adapter that was trained to OUTPUT/adapter, whole or not at all; one that stood there is replaced."""
    is_main = trainer.is_world_process_zero()
    with swapped_directory(Path(trainer.args.output_dir) / "adapter") if is_main else TemporaryDirectory() as folder:
        trainer.model.save_pretrained(str(folder), is_main_process=is_main)


def _write_reference_outputs(folder: Path) -> None:
    """From the files just written, so that sharded and merged models need nothing of their own. A failure does not cost the run."""
    try:
        write_reference_outputs(folder)
    except Exception as error:  # the model is saved, whatever went wrong here
        (folder / FILE).unlink(missing_ok=True)  # of a run before this one
        print(
            f"warning: the model is saved, but not what it computes ({FILE}), so it cannot be verified later: {one_line(innermost(error))}"
        )


def _changed_arguments(args: transformers.TrainingArguments) -> dict[str, Any]:
    """The training arguments that differ from their defaults, without tokens and folders."""
    # use_cpu, since TRL's defaults ask for bf16, which they refuse to be built with where there is no GPU
    defaults = type(args)(output_dir=args.output_dir, use_cpu=True).to_dict() | {"use_cpu": False}
    hidden = {"output_dir", "logging_dir", "hub_token", "push_to_hub_token", "run_name"}
    return {k: v for k, v in args.to_dict().items() if k not in hidden and v != defaults.get(k)}
