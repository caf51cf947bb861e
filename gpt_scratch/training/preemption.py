"""Training that is stopped from outside, and resumes later where it stopped.

SIGTERM, which schedulers and cloud providers send before they take a machine away, saves a checkpoint after the step in progress and
ends the script with status 143 (128 + SIGTERM, what a shell reports of a program ended by it). More signals change nothing. Ctrl-C
does the same with status 130; a second one ends the script at once.
"""

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback

from ..errors import UserError

if TYPE_CHECKING:
    from .checkpoints import ResumableTrainer


class PreemptionCallback(TrainerCallback):
    """After SIGTERM or Ctrl-C: a checkpoint at the end of the step in progress, then the end of training.

    Processes agree on the step first, since the signal reaches each of them at another moment.
    """

    def __init__(self, trainer: "ResumableTrainer"):
        self.trainer = trainer
        self.requested = self.agreed = 0  # number of the signal
        self.saved = False
        self.group: Any = None
        self.previous: dict[int, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step > state.max_steps:
            raise UserError(
                f"the checkpoint is of step {state.global_step:,}, and by these flags the run has {state.max_steps:,} steps: "
                "nothing is left to train; raise --num_train_epochs or --max_steps"
            )
        state.compute_steps(args, state.max_steps)  # a checkpoint's would go on in place of this run's --save_steps and so on
        if threading.current_thread() is threading.main_thread():  # only there does Python allow setting handlers
            self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        if args.world_size > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo")  # on the CPU: asking does not wait for the GPU

    def _request(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT:
            if self.requested == signal.SIGINT:
                raise KeyboardInterrupt
            # Not by print, which may be what was interrupted.
            os.write(2, b"\nCtrl-C: a checkpoint is saved after this step; press it again to stop at once\n")
        self.requested = self.requested or number

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self._ask_everyone()
        if not self.agreed:
            return
        if control.should_evaluate:
            # The evaluation may take longer than the time that is left: a checkpoint first, then it, then the checkpoint with its figures.
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
            self.saved = True
        control.should_save = True

    def _ask_everyone(self) -> int:
        if self.group is None:
            return self.requested
        flag = torch.tensor(int(self.requested))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self.group)
        return int(flag)

    def on_save(self, args, state, control, **kwargs):
        if self.agreed:
            self.saved = True
            control.should_training_stop = True  # and not before it is saved: a checkpoint holds this, too

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed and state.global_step < state.max_steps:
            if state.epoch % 1:  # this epoch has not ended: nothing of what its end brings is due
                control.should_log = control.should_evaluate = control.should_save = False
            else:
                control.should_training_stop = False  # until it is saved again, with the evaluation
                control.should_save = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore_signals()

    def restore_signals(self) -> None:
        """As they were before training."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
