"""Atomic checkpoints, and resuming after a crash, preemption or a full disk.

Trainer writes a checkpoint in place: if the process is killed, the next run would load the incomplete `checkpoint-N`, possibly with a new
optimizer state. [`ResumableTrainer`] writes into a hidden directory, flushes it to disk, lists the files with their sizes in
`.manifest.json`, and renames it at the end; older checkpoints are deleted only afterwards.

SIGTERM and Ctrl-C also save a checkpoint (`preemption.py`).

Each checkpoint records the settings and data it was made with (`made_with.py`), and its contents are checked before a run resumes from it
(`resume.py`).
"""

import json
import math
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import INTERRUPTED_STATUS, PREEMPTED_STATUS, Preempted, UserError, innermost, one_line
from ..inference.loading import refuse_non_finite
from ..tokenization.portable import save_tokenizer
from . import made_with
from .arguments import ScratchTrainingArguments
from .callbacks import use_log_lines
from .preemption import PreemptionCallback
from .resume import TRAINER_STATE, check_callbacks, check_optimizer, check_weights, read_trainer_state
from .threads import ThreadsCallback

MANIFEST = ".manifest.json"
UNFINISHED = ".unfinished-checkpoint"  # the checkpoint that is being written, in the output directory
REPLACED = ".replaced-"  # prefix of a replaced checkpoint, until the new one is in place


def damage(checkpoint: str | os.PathLike) -> str | None:
    """The damage of a checkpoint directory, or `None` if it is complete.

    Sizes are compared with the manifest. For a checkpoint of a plain Trainer, without a manifest, only the file that is written last is
    checked.
    """
    folder = Path(checkpoint)
    try:
        read_trainer_state(folder)
    except OSError:
        return f"{TRAINER_STATE} is missing"
    except ValueError as error:
        return str(error)
    if not (folder / MANIFEST).exists():
        return None
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, size in sizes.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if (folder / name).stat().st_size != size:
                return f"{name} has {(folder / name).stat().st_size:,} bytes of {size:,}"
    except (OSError, ValueError, AttributeError):
        return f"{MANIFEST} is broken"
    return None


def newest_complete_checkpoint(output_dir: str) -> str | None:
    """The complete `checkpoint-N` with the largest N; prints a warning for each incomplete one."""
    for path in Path(output_dir).glob(f"{REPLACED}*"):
        if not (path.parent / path.name.removeprefix(REPLACED)).exists():  # killed between the two renames
            with suppress(FileNotFoundError):  # another process has restored it
                path.rename(path.parent / path.name.removeprefix(REPLACED))
    folders = Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    numbered = {int(path.name.rpartition("-")[2]): path for path in folders if path.name.rpartition("-")[2].isdecimal()}
    for _, path in sorted(numbered.items(), reverse=True):
        if (found := damage(path)) is None:
            return str(path)
        print(f"warning: {path.name} is incomplete ({found}) and is skipped")
    return None


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _publish(unfinished: Path, final: Path) -> None:
    """Rename a finished directory; an existing one is removed when the new one is in place."""
    files = [path for path in sorted(unfinished.rglob("*")) if path.is_file()]
    sizes = {path.relative_to(unfinished).as_posix(): path.stat().st_size for path in files}
    (unfinished / MANIFEST).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")
    if os.name == "posix":  # flush first: contents that are not on disk would be lost in a system crash
        for path in (*files, unfinished / MANIFEST, unfinished):
            _flush(path)
    replaced = final.parent / f"{REPLACED}{final.name}"
    if final.exists():
        os.replace(final, replaced)
    os.replace(unfinished, final)
    if os.name == "posix":
        _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def rotate(run: Path, newest: Path, limit: int | None, best: str | None) -> None:
    """Remove checkpoints until `limit` are left: first those after the step of `newest`, from an abandoned attempt, then the oldest.
    `newest`, `best` and checkpoints of other trainers are kept. Modification times are not used, since clocks may change.
    """
    if limit is None or limit <= 0:
        return
    steps = {path: int(path.name.rpartition("-")[2]) for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if (path / MANIFEST).is_file()
             and path.name.rpartition("-")[2].isdecimal()}  # fmt: skip
    order = sorted(steps, key=lambda path: (steps[path] <= steps[newest], steps[path]))
    kept = {newest} | ({Path(best)} & steps.keys() if best else set())
    for path in order[: max(0, len(order) - max(limit, len(kept)))]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def _remove_leftovers(output_dir: Path) -> None:
    """Remove the leftovers of a run that was killed while saving."""
    for path in (output_dir / UNFINISHED, *output_dir.glob(f"{REPLACED}*")):
        shutil.rmtree(path, ignore_errors=True)


class ResumableTrainer(Trainer):
    """Trainer with atomic, resumable checkpoints (see the module docstring). With TRL's trainers it is the first base class.

    Raises:
        UserError: a checkpoint cannot be written; the previous one is unchanged.
            Also a loss or gradient that is not finite, before the weights are updated, unless `allow_non_finite`.
        Preempted: SIGTERM, with the checkpoint saved.
    """

    allow_non_finite = False
    script_args: Any = None  # dataclass with the script's own flags, to report changes when resuming
    made_with: dict[str, Any] | None = None
    _unfinished: Path | None = None
    _was_finished = _evaluation_due = False

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if isinstance(self.args, ScratchTrainingArguments):
            self.allow_non_finite = self.args.allow_non_finite
            if self.args.bf16 and "bf16" in self.args.left_open and self.is_world_process_zero():
                print(f"precision: bf16 autocast, which is faster on this {self.args.device.type}; --bf16 false trains in fp32")
        use_log_lines(self)
        self.add_callback(ThreadsCallback())
        self.preemption = PreemptionCallback(self)
        self.add_callback(self.preemption)  # last, after the callbacks that decide whether to evaluate and save

    def save_model(self, output_dir: str | None = None, **kwargs: Any) -> None:
        """Save checkpoints and the finished model, with a tokenizer that older releases of transformers can load.

        The files of the finished model are renamed when all are written, since a partial model would look like a finished run.
        """
        if self._unfinished is not None:
            self._write_model(output_dir, **kwargs)
            return
        final = Path(output_dir or self.args.output_dir)
        try:
            self._write_model(str(final / UNFINISHED), **kwargs)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                for path in sorted((final / UNFINISHED).iterdir()):
                    os.replace(path, final / path.name)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_about_writing(error):
                raise
            kept = newest_complete_checkpoint(str(final))
            raise UserError(
                f"the model could not be written to {final}: {one_line(error)}; "
                + (
                    f"{Path(kept).name} is complete: free some disk space and resume with --resume_from_checkpoint latest"
                    if kept
                    else "make room"
                )
            ) from error
        finally:
            if self.args.should_save:
                shutil.rmtree(final / UNFINISHED, ignore_errors=True)

    def _write_model(self, output_dir: str | None, **kwargs: Any) -> None:
        super().save_model(output_dir, **kwargs)
        if self.args.should_save and self.processing_class is not None:
            save_tokenizer(self.processing_class, output_dir or self.args.output_dir)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._unfinished or super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run = Path(super()._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                _remove_leftovers(run)
            self.accelerator.wait_for_everyone()  # a process must not write into a directory that another removes
            self._unfinished = run / UNFINISHED
            super()._save_checkpoint(model, trial)
            self._name_best_checkpoint(run, name)
            self.accelerator.wait_for_everyone()  # each process writes its RNG state
            if self.args.should_save:
                if self.made_with is not None:
                    made_with.write(self.made_with, run / UNFINISHED / name)
                _publish(run / UNFINISHED / name, run / name)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_about_writing(error):
                raise
            free = shutil.disk_usage(run).free / 2**20
            raise UserError(
                f"{name} could not be written to {run}: {one_line(innermost(error))}; {free:,.1f} MiB were free; earlier checkpoints are "
                "unchanged: free some disk space and resume with --resume_from_checkpoint latest"
            ) from error
        finally:
            self._unfinished = None
            if self.args.should_save:
                shutil.rmtree(run / UNFINISHED, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            rotate(run, run / name, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _name_best_checkpoint(self, run: Path, name: str) -> None:
        """Correct the path of the best checkpoint, which Trainer has recorded with the temporary name."""
        if self.state.best_model_checkpoint == str(run / UNFINISHED / name):
            self.state.best_model_checkpoint = str(run / name)
            if self.args.should_save:
                self.state.save_to_json(str(run / UNFINISHED / name / TRAINER_STATE))

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Save a checkpoint if an evaluation fails, for example out of memory, so that the steps before it are not lost."""
        try:
            return super()._evaluate(*args, **kwargs)
        except Exception:
            if self.args.world_size == 1 and self.state.global_step:  # saving with several processes is collective
                self._save_checkpoint(self.model, trial=None)
                print(f"the evaluation failed; checkpoint-{self.state.global_step} was saved before it")
            raise

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the scripts write the model card; TRL's would replace an edited one at each checkpoint."""

    def train(self, resume_from_checkpoint: str | None = None, **kwargs: Any) -> Any:
        self.made_with = made_with.describe(self, self.script_args)
        if resume_from_checkpoint:
            state = self._check_resumed(resume_from_checkpoint)
            control = state.stateful_callbacks.get("TrainerControl", {}).get("args", {})
            # Whether it was stopped early, not by its number of steps, which may have been increased.
            self._was_finished = control.get("should_training_stop", False) and state.global_step < state.max_steps
            # Stopped by SIGTERM before the evaluation of that step. The evaluation uses random numbers, so it must be made up for, or the
            # weights would differ from those of an uninterrupted run.
            evaluated = any(entry["step"] == state.global_step and "eval_runtime" in entry for entry in state.log_history)
            self._evaluation_due = control.get("should_evaluate", False) and not evaluated
        if self.args.should_save:
            _remove_leftovers(Path(self.args.output_dir))
        try:
            result = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.preemption.restore_signals()
        if self.state.global_step == 0:
            raise UserError("nothing was trained: there are no batches; give more data, or a smaller batch size")
        return result

    def _check_resumed(self, checkpoint: str) -> TrainerState:
        """The state of the checkpoint; prints settings that have changed.

        Raises:
            UserError: it cannot be read, or does not belong to this run.
        """
        try:
            state = read_trainer_state(checkpoint)
        except (OSError, ValueError) as error:
            raise UserError(f"{checkpoint} cannot be resumed: {one_line(error)}") from error
        check_callbacks(state, [*self.callback_handler.callbacks, self.control], checkpoint)
        assert self.made_with is not None  # train
        for change in made_with.compare(self.made_with, checkpoint):
            if self.is_world_process_zero():
                print(f"note: since {Path(checkpoint).name}: {change}")
        return state

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._is_sharded(resume_from_checkpoint):
            check_weights(resume_from_checkpoint, self.model if model is None else model)
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except Exception as error:  # safetensors', torch's and peft's
            raise UserError(f"{resume_from_checkpoint} cannot be resumed: {one_line(error)}") from error
        refuse_non_finite(resume_from_checkpoint, (self.model if model is None else model).named_parameters())

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do nothing for tensors that [`check_weights`] has compared: Trainer would warn of a tied head, which is saved once.

        Private in transformers, as of 5.24.
        """
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._issue_warnings_after_load(load_result)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self._is_sharded(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        check_optimizer(checkpoint, self.optimizer, self.lr_scheduler)
        # Hyperparameters are those of this run, which the user may have changed; only the state is loaded from the checkpoint.
        settings = [{name: value for name, value in group.items() if name != "params"} for group in self.optimizer.param_groups]
        rates = list(getattr(self.lr_scheduler, "base_lrs", []))
        super()._load_optimizer_and_scheduler(checkpoint)
        scheduled = isinstance(
            self.lr_scheduler, torch.optim.lr_scheduler.LambdaLR
        )  # otherwise the learning rate is part of the state
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update({name: value for name, value in own.items() if scheduled or name not in ("lr", "initial_lr")})
        if scheduled:
            self.lr_scheduler.base_lrs = rates
            for group, rate, factor in zip(self.optimizer.param_groups, rates, self.lr_scheduler.lr_lambdas):
                group["lr"] = rate * factor(self.lr_scheduler.last_epoch)
            self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _load_callback_state(self) -> None:
        """Counters of callbacks are loaded from the checkpoint; the patience is that of this run."""
        patience = [c.early_stopping_patience for c in self.callback_handler.callbacks if isinstance(c, EarlyStoppingCallback)]
        super()._load_callback_state()
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience = patience[0]

    def _is_sharded(self, checkpoint: str) -> bool:
        """Whether it was written by FSDP or DeepSpeed in their own formats, which they check themselves."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self._refuse_non_finite("loss", loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        """Check the gradient norm before the optimizer step. In float16, overflows are expected and skipped by the scaler."""
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and self.accelerator.scaler is None:
            self._refuse_non_finite("gradient's norm", norm)
        return norm

    def _refuse_non_finite(self, name: str, value: torch.Tensor | float) -> None:
        number = float(value)  # synchronizes with the GPU, as Trainer does in each step to filter NaN losses
        if self.allow_non_finite or math.isfinite(number):
            return
        checkpoint = newest_complete_checkpoint(self.args.output_dir)
        saved = f"{Path(checkpoint).name} is kept, resume from it" if checkpoint else "there is no checkpoint, start again"
        raise UserError(
            f"step {self.state.global_step + 1}: the {name} is {number}; stopped: {saved} with a lower --learning_rate or other "
            "data, or with --allow_non_finite"
        )

    def _load_rng_state(self, checkpoint: str | None) -> None:
        try:
            super()._load_rng_state(checkpoint)
        except Exception as error:  # of torch.load, or of the three generators that it is for
            said = one_line(str(error).split(". ")[0], 200) or type(error).__name__
            raise UserError(
                f"{checkpoint} cannot be resumed: rng_state cannot be read: {said}: it is damaged or foreign"
            ) from error
        if self._evaluation_due:
            self._evaluation_due = False
            self._determine_best_metric(metrics=self._evaluate(None, None), trial=None)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Do not run an epoch if training should stop: Trainer checks this only after a step, so a finished run would take another one."""
        if self._was_finished or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Skip this if the run was interrupted: with --save_total_limit 1, Trainer would delete all but the best checkpoint."""
        if self.preemption.saved:
            step = self.state.global_step
            interrupted = self.preemption.agreed == signal.SIGINT
            raise Preempted(
                f"stopped by {'Ctrl-C' if interrupted else 'SIGTERM'} after step {step:,} of {self.state.max_steps:,}; checkpoint-{step} "
                "is saved: resume with --resume_from_checkpoint latest",
                INTERRUPTED_STATUS if interrupted else PREEMPTED_STATUS,
            )
        return super()._finalize_training(*args, **kwargs)


def _is_about_writing(error: Exception) -> bool:
    # torch's zip writer raises a RuntimeError if the disk is full
    return not isinstance(error, RuntimeError) or any(word in str(error) for word in ("inline_container", "PytorchStreamWriter"))
