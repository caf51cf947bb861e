"""Benchmarks of training steps: seconds, peak memory, scaling with length, and the overhead of Trainer."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from ..training.precision import use_fast_fp32_matmul
from .harness import Contender, Factory, Sizes, device, gpt_scratch, measure, summarize, synchronize, transformers_gpt2


class Step:
    """A model, its optimizer (fused AdamW, or that of the model's `configure_optimizer`), and one training step on random tokens."""

    def __init__(self, factory: Factory, sizes: Sizes, batch: int, length: int, bf16: bool, compiled: bool, fast_matmul: bool):
        torch.manual_seed(0)
        self.model: nn.Module = factory(sizes).to(device()).train()
        configure: Any = getattr(self.model, "configure_optimizer", self.fused_adamw)
        self.optimizer: torch.optim.Optimizer = configure()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.ids = torch.randint(sizes.vocab_size, (batch, length), device=device())
        self.bf16, self.fast_matmul = bf16, fast_matmul

    def fused_adamw(self) -> torch.optim.Optimizer:
        """Trainer's default optimizer."""
        return torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)

    def __call__(self) -> dict[str, float]:
        """Seconds of forward, backward and optimizer."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        if self.fast_matmul:
            use_fast_fp32_matmul()
        times = [time.perf_counter()]
        with torch.autocast(device(), torch.bfloat16, enabled=self.bf16):
            loss = self.forward(self.ids, self.ids)
        for part in (loss.backward, self.optimizer.step):
            synchronize()
            times.append(time.perf_counter())
            part()
        self.optimizer.zero_grad()
        synchronize()
        times.append(time.perf_counter())
        torch.set_float32_matmul_precision(precision)
        return dict(zip(("forward", "backward", "optimizer"), (after - before for before, after in pairwise(times))))


FAST_TRANSFORMERS, FULL_LOSS = "transformers, fast fp32", "gpt_scratch, full loss"


def contenders(rivals: dict[str, Factory]) -> dict[str, tuple[Factory, bool]]:
    """The contenders, and whether each uses oneDNN for fp32 products, a setting that is available to every user."""
    return {
        "transformers": (transformers_gpt2, False),
        FAST_TRANSFORMERS: (transformers_gpt2, True),
        "gpt_scratch": (gpt_scratch, True),
        FULL_LOSS: (lambda sizes: gpt_scratch(sizes, "full"), True),
    } | {name: (factory, False) for name, factory in rivals.items()}


def training_step(
    sizes: Sizes,
    batch: int,
    length: int,
    bf16: bool,
    compiled: bool,
    repetitions: int,
    rivals: dict[str, Factory],
    without: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Seconds of a step, by contender (except those in `without`) and part, relative to transformers with default settings."""
    selected = {name: contender for name, contender in contenders(rivals).items() if name not in without}
    if bf16:
        selected.pop(FAST_TRANSFORMERS, None)  # no fp32 products are left
    steps = [
        Contender(name, Step(factory, sizes, batch, length, bf16, compiled, fast)) for name, (factory, fast) in selected.items()
    ]
    rows = summarize(measure(steps, repetitions), "transformers")
    setting = {"shape": f"{batch}x{length}", "dtype": "bf16" if bf16 else "fp32", "compiled": compiled}
    return [setting | row for row in rows]


def peak_memory(
    sizes: Sizes,
    batch: int,
    length: int,
    bf16: bool,
    rivals: dict[str, str],
    repetitions: int = 1,
    without: Sequence[str] = (FAST_TRANSFORMERS,),
) -> list[dict[str, Any]]:
    """Peak memory of a step in MiB, excluding weights and optimizer state, each contender in a separate process."""
    rows = []
    for name in [*contenders({}), *rivals]:
        if name in without:
            continue
        settings = {"sizes": vars(sizes), "batch": batch, "length": length, "bf16": bf16, "name": name, "rival": rivals.get(name)}
        peaks = []
        for _ in range(repetitions):
            command = [sys.executable, "-m", "gpt_scratch.benchmarking.peak", json.dumps(settings)]
            peaks.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]))
        best = min(peaks, key=lambda peak: peak["above_mib"])
        rows.append({"contender": name, "shape": f"{batch}x{length}", "dtype": "bf16" if bf16 else "fp32", **best})
    for row in rows:
        row["share_of_transformers"] = row["above_mib"] / rows[0]["above_mib"]
    return rows


def growth(
    settings: Sequence[tuple[Sizes, int, int]],
    bf16: bool,
    compiled: bool,
    repetitions: int,
    rivals: dict[str, Factory],
    rival_places: dict[str, str],
) -> list[dict[str, Any]]:
    """Seconds and peak memory of a step for each (sizes, batch, length)."""
    without = (FAST_TRANSFORMERS, FULL_LOSS)
    rows = []
    for sizes, batch, length in settings:
        memory = peak_memory(sizes, batch, length, bf16, rival_places, without=without)
        above = {row["contender"]: row["above_mib"] for row in memory}
        steps = training_step(sizes, batch, length, bf16, compiled, repetitions, rivals, without)
        rows += [
            {"vocab_size": sizes.vocab_size, **row, "above_mib": above[row["contender"]]}
            for row in steps
            if row["part"] == "total"
        ]
    return rows


class _Rows(torch.utils.data.Dataset):
    def __init__(self, ids: torch.Tensor, count: int):
        self.ids, self.count = ids, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self.ids[index % len(self.ids)].tolist()
        return {"input_ids": row, "labels": row}


def trainer_overhead(sizes: Sizes, batch: int, length: int, steps: int, repetitions: int) -> list[dict[str, Any]]:
    """Seconds of `steps` steps with Trainer and with a plain training loop with the same model, optimizer, clipping and schedule."""
    step = Step(gpt_scratch, sizes, batch, length, bf16=False, compiled=False, fast_matmul=True)
    use_fast_fp32_matmul()
    model: Any = step.model.model

    def bare() -> None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
        for _ in range(steps):
            model(step.ids, labels=step.ids).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()

    def by_trainer() -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            args = TrainingArguments(
                output_dir=folder, max_steps=steps, per_device_train_batch_size=batch, learning_rate=1e-4, weight_decay=0.1,
                logging_steps=steps, save_strategy="no", report_to="none", disable_tqdm=True, use_cpu=device() == "cpu",
            )  # fmt: skip
            trainer = Trainer(model, args, train_dataset=_Rows(step.ids, steps * batch), data_collator=default_data_collator)
            return {"total": trainer.train().metrics["train_runtime"]}

    rows = summarize(measure([Contender("bare loop", bare), Contender("Trainer", by_trainer)], repetitions), "bare loop")
    return [{"steps": steps, "shape": f"{batch}x{length}", **row} for row in rows]
