"""Selects the number of CPU threads for training by measuring a few steps at the start.

By default, torch uses one thread per core. On a loaded machine, each of the many small operations of a small model then waits for its
slowest thread, which can be ten times slower than a single thread (`scripts/benchmark.py load`). On an idle machine all threads are
used, so that repeated runs are bit-identical; `OMP_NUM_THREADS` overrides the choice.
"""

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

FIXED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
GAIN = 1.3  # minimum speedup over all threads for using fewer
STEPS = 3  # measured steps per number of threads, after a warm-up step
FLOP = 2e10  # maximum size of a measured step, about 0.5 s on a core: rows are dropped until it is smaller
LARGEST = 8e10  # a single row above this size is enough work for all threads


def fastest_threads(step: Callable[[], Any], max_threads: int) -> tuple[int, dict[int, float]]:
    """The fastest number of threads for `step`: `max_threads`, unless another is [`GAIN`] times faster; and the seconds for each.

    Powers of two are tried, starting with 1, until more threads do not help, then `max_threads`.
    """
    seconds: dict[int, float] = {}
    numbers = [2**i for i in range(max_threads.bit_length()) if 2**i < max_threads]
    for number in numbers:
        seconds[number] = _seconds(step, number)
        if number > 1 and seconds[number] > 0.9 * seconds[number // 2]:
            break
    seconds[max_threads] = _seconds(step, max_threads)
    fastest = min(seconds, key=seconds.__getitem__)
    chosen = fastest if seconds[max_threads] > GAIN * seconds[fastest] else max_threads
    torch.set_num_threads(chosen)
    return chosen, seconds


def _seconds(step: Callable[[], Any], threads: int) -> float:
    torch.set_num_threads(threads)
    taken = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


class ThreadsCallback(TrainerCallback, ExportableState):
    """Measures steps with the run's own model and data when training begins; a resumed run keeps its number of threads."""

    def __init__(self, threads: int | None = None):
        self.threads = threads

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"threads": self.threads}}

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        max_threads = torch.get_num_threads()
        if (
            max_threads == 1
            or args.world_size > 1
            or args.torch_compile
            or args.device.type != "cpu"
            or any(map(os.environ.get, FIXED_BY))
        ):
            return
        if self.threads is not None:
            torch.set_num_threads(min(self.threads, max_threads))
            return
        batch = first_rows(train_dataloader, model, args.per_device_train_batch_size)
        if batch is None:
            return
        self.threads, seconds = fastest_threads(lambda: _step(model, batch, args.bf16), max_threads)
        others = ", ".join(f"{value:.2g} s on {number}" for number, value in sorted(seconds.items()) if number != self.threads)
        print(
            f"threads: {self.threads} of {max_threads}, {seconds[self.threads]:.2g} s per step of {len(batch['input_ids'])} rows; "
            f"{others}{'' if self.threads == max_threads else ' (busy machine or small model)'}; set OMP_NUM_THREADS to override"
        )


def first_rows(dataloader: Any, model: Any, batch_size: int) -> dict[str, Any] | None:
    """A few rows of the run's data for the measurement; `None` for streams, large models, and unknown batches."""
    rows: Any = getattr(dataloader, "dataset", None)
    if isinstance(rows, torch.utils.data.IterableDataset) or not hasattr(rows, "__getitem__"):
        return None
    count = min(batch_size, len(rows))
    batch = dataloader.collate_fn([rows[i] for i in range(count)])
    if not hasattr(batch, "keys") or not {"input_ids", "labels"} <= batch.keys():
        return None
    work = 6 * sum(parameter.numel() for parameter in model.parameters()) * batch["input_ids"].shape[-1]  # FLOP of a row
    if work > LARGEST:
        return None
    kept = max(1, min(count, int(FLOP // work)))
    return {name: value[:kept] for name, value in batch.items() if isinstance(value, torch.Tensor)}


def _step(model: Any, batch: dict[str, Any], bf16: bool) -> None:
    """Forward and backward pass that preserves gradients and random state."""
    was_training = model.training
    model.train()
    with torch.random.fork_rng([]), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    model.train(was_training)
