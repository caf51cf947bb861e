"""Handling of preemption: training is stopped by a signal and can be resumed.

After SIGTERM, which schedulers and cloud providers send before they stop a machine, a checkpoint is saved after the current step and the
script exits with status 143 (128 + SIGTERM, the status of a program ended by it). Further signals have no effect. Ctrl-C does the same with
status 130; a second one exits immediately.
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
    """After SIGTERM or Ctrl-C, saves a checkpoint at the end of the current step and stops training.

    In distributed runs, the processes first agree on the step, since they receive the signal at different times.
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
                f"the checkpoint is of step {state.global_step:,}, but the run has only {state.max_steps:,} steps: "
                "nothing is left to train; increase --num_train_epochs or --max_steps"
            )
        state.compute_steps(args, state.max_steps)  # use this run's --save_steps etc., not those of the checkpoint
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self.previous = {number: signal.signal(number, self._request) for number in (signal.SIGTERM, signal.SIGINT)}
        if args.world_size > 1 and self.group is None:
            self.group = dist.new_group(backend="gloo")  # on the CPU, to avoid synchronizing with the GPU

    def _request(self, number: int, _frame: Any) -> None:
        if number == signal.SIGINT:
            if self.requested == signal.SIGINT:
                raise KeyboardInterrupt
            # Not with print, which may be what was interrupted.
            os.write(2, b"\nCtrl-C: a checkpoint is saved after this step; press it again to stop immediately\n")
        self.requested = self.requested or number

    def on_step_end(self, args, state, control, **kwargs):
        self.agreed = self._ask_everyone()
        if not self.agreed:
            return
        if control.should_evaluate:
            # The evaluation may take too long: save a checkpoint first, then evaluate, then save the checkpoint with the metrics.
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
            control.should_training_stop = True  # only after saving, since the checkpoint contains this flag, too

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreed and state.global_step < state.max_steps:
            if state.epoch % 1:  # the epoch has not ended: its evaluation and saving are not due
                control.should_log = control.should_evaluate = control.should_save = False
            else:
                control.should_training_stop = False  # until it is saved again after the evaluation
                control.should_save = True

    def on_train_end(self, args, state, control, **kwargs):
        self.restore_signals()

    def restore_signals(self) -> None:
        """Restore the signal handlers."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
