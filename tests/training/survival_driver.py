"""Runs training scripts in forks of one process that has imported everything, and kills them at given places.

Reads a JSON object a line: `script`, `argv`, `log` (a file for the output), and how to end it: `kill` (see [`plan`]), or `after`, seconds
until a SIGKILL from outside. Answers with a line: the exit status, negative for a signal.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import safetensors.torch
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
from modules import load_script

from gpt_scratch.data.instruction import InstructionCollator  # noqa: F401  imported once, not in each fork
from gpt_scratch.errors import run_script
from gpt_scratch.training import checkpoints
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.pretraining import PretrainingArguments

ARGUMENTS = {
    "pretrain": PretrainingArguments,
    "finetune_classifier": ClassificationArguments,
    "finetune_instructions": InstructionArguments,
}


SIGNALS = {
    "step": [signal.SIGKILL],
    "sigterm": [signal.SIGTERM],
    "two_sigterms": [signal.SIGTERM],
    "replacing": [signal.SIGTERM],
    "ctrl_c": [signal.SIGINT],
    "two_ctrl_cs": [signal.SIGINT, signal.SIGINT],
}  # at the end of a step


def die(signals=(signal.SIGKILL,)) -> None:
    for number in signals:
        os.kill(os.getpid(), number)


def plan(kill: dict) -> None:
    """Have this process die at a place, in the checkpoint of `step` or at that step.

    Places: step, ctrl_c, two_ctrl_cs, sigterm and two_sigterms (signals inside a step, one of them while it saves), evaluation_sigterm (in an evaluation),
    weights, optimizer and state (half of that file written), flushed (nothing named yet), named (before older ones go), removed (the
    first file of an older one is gone), replacing (an evaluation after SIGTERM is done; the checkpoint before it has lost its
    name, and the one with it has none yet), full (the disk is full when the optimizer is written).
    """
    place, step = kill["place"], kill["step"]
    trainer_class = checkpoints.ResumableTrainer
    saving: list[int] = []
    fired: list[int] = []
    save_checkpoint, training_step = trainer_class._save_checkpoint, trainer_class.training_step

    def note_saving(self, model, trial):
        saving.append(self.state.global_step)
        if place == "two_sigterms" and self.preemption.requested:
            die([signal.SIGTERM, signal.SIGTERM])
        try:
            save_checkpoint(self, model, trial)
        finally:
            saving.pop()

    def note_step(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        if self.state.global_step + 1 == step and place in SIGNALS and (place != "ctrl_c" or not fired):
            fired.append(step)  # once, and not in each piece of an accumulated batch
            die(SIGNALS[place])
        return loss

    trainer_class._save_checkpoint, trainer_class.training_step = note_saving, note_step

    def now() -> bool:
        return bool(saving) and saving[-1] >= step

    def halved(write, path_of):
        def written(*args, **kwargs):
            result = write(*args, **kwargs)
            path = Path(path_of(args))
            if now() and path.name == {"weights": "model.safetensors", "optimizer": "optimizer.pt"}[place]:
                os.truncate(path, path.stat().st_size // 2)
                die()
            return result

        return written

    if place in ("fill", "read_only"):
        spoil(trainer_class, kill)
    elif place == "weights":
        import transformers.modeling_utils as modeling

        modeling.safe_save_file = halved(safetensors.torch.save_file, lambda args: args[1])
    elif place == "optimizer":
        torch.save = halved(torch.save, lambda args: args[1])
    elif place == "state":
        from transformers.trainer_callback import TrainerState

        save_to_json = TrainerState.save_to_json

        def half_a_state(self, path):
            save_to_json(self, path)
            if now():
                os.truncate(path, os.path.getsize(path) // 2)
                die()

        TrainerState.save_to_json = half_a_state
    elif place in ("flushed", "named", "replacing"):
        replace = os.replace

        def rename(source, target):
            here = now() and Path(target).name.startswith(".replaced-" if place == "replacing" else "checkpoint-")
            if here and place == "flushed":
                die()
            replace(source, target)
            if here:
                die()

        os.replace = rename
    elif place == "removed":
        rmtree = shutil.rmtree

        def remove(path, **kwargs):
            if now() and Path(path).name.startswith("checkpoint-"):
                next(file for file in Path(path).iterdir() if file.is_file()).unlink()
                die()
            rmtree(path, **kwargs)

        shutil.rmtree = remove
    elif place == "evaluation_sigterm":
        evaluate = trainer_class._evaluate

        def interrupted(self, *args, **kwargs):
            if self.state.global_step == step:
                die([signal.SIGTERM])
            return evaluate(self, *args, **kwargs)

        trainer_class._evaluate = interrupted
    elif place == "full":
        save = torch.save

        def full(value, path, *args, **kwargs):
            if now() and Path(path).name == "optimizer.pt":
                Path(path).write_bytes(b"half")
                raise OSError(28, os.strerror(28))
            save(value, path, *args, **kwargs)

        torch.save = full


def spoil(trainer_class, kill: dict) -> None:
    """The file system of the run, `kill["disk"]`, is filled before the finished model is written, or its folders turn read-only at a step."""
    disk, save_model, step_of = Path(kill["disk"]), trainer_class.save_model, trainer_class.training_step

    def fill(self, *args, **kwargs):
        if self._unfinished is None:
            with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
        save_model(self, *args, **kwargs)

    def lock(self, *args, **kwargs):
        if self.state.global_step + 1 == kill["step"]:
            for folder in (disk, *(path for path in disk.rglob("*") if path.is_dir())):
                folder.chmod(0o555)
            if os.geteuid() == 0:  # who may write everywhere
                os.seteuid(65534)
        return step_of(self, *args, **kwargs)

    if kill["place"] == "fill":
        trainer_class.save_model = fill
    else:
        trainer_class.training_step = lock


def run(job: dict) -> None:
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    name = job["script"]
    sys.argv = [f"{name}.py", *job["argv"]]
    module = load_script(name)
    if job.get("kill"):
        plan(job["kill"])
    if name == "finetune_preferences":
        run_script(lambda: module.main(*module.parse(job["argv"])))
    else:
        run_script(lambda: module.main(*parse_arguments((ARGUMENTS[name], ScratchTrainingArguments), job["argv"])))


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        if job["script"] == "finetune_preferences":
            from gpt_scratch.training import preferences

            for method in preferences.METHODS:  # imported here, once, and not in each fork
                preferences.configuration_class(method)
            from trl import DPOTrainer  # noqa: F401
        start = time.perf_counter()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                run(job)
                status = 0
            except SystemExit as end:
                status = end.code or 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        killer = threading.Timer(job.get("after") or 0, os.kill, (child, signal.SIGKILL))
        if job.get("after") is not None:
            killer.start()
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # its number stays taken until the timer is off
        killer.cancel()
        _, status = os.waitpid(child, 0)
        answer = {"status": os.waitstatus_to_exitcode(status), "seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
