"""Timing on a shared machine: contenders are run alternately and compared within each repetition."""

import importlib.util
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from ..training.precision import use_fast_fp32_matmul


@dataclass(frozen=True)
class Sizes:
    """Sizes of a GPT-2; the defaults are GPT-2 small."""

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    vocab_size: int = 50257
    n_positions: int = 1024


@dataclass
class Contender:
    """An implementation to time: `run` executes the workload once and may return the seconds of its parts."""

    name: str
    run: Callable[[], dict[str, float] | None]


def measure(contenders: Sequence[Contender], repetitions: int, warmup: int = 1) -> dict[str, dict[str, list[float]]]:
    """Seconds of each contender and each of its parts (always including "total"), one value per repetition, run alternately."""
    times: dict[str, dict[str, list[float]]] = {contender.name: {"total": []} for contender in contenders}
    for repetition in range(warmup + repetitions):
        # reversed in every other repetition, so that no contender always runs after the same one
        for contender in contenders if repetition % 2 else reversed(contenders):
            synchronize()
            start = time.perf_counter()
            parts = contender.run() or {}
            synchronize()
            parts = {"total": time.perf_counter() - start} | parts
            if repetition >= warmup:
                for part, seconds in parts.items():
                    times[contender.name].setdefault(part, []).append(seconds)
    return times


def summarize(times: dict[str, dict[str, list[float]]], reference: str) -> list[dict[str, Any]]:
    """A row per contender and part: median, minimum, and speedup over `reference` (median and range over the repetitions)."""
    rows = []
    for name, parts in times.items():
        for part, seconds in parts.items():
            row: dict[str, Any] = {
                "contender": name,
                "part": part,
                "median_s": statistics.median(seconds),
                "lowest_s": min(seconds),
            }
            if part in times[reference]:
                ratios = [theirs / ours for theirs, ours in zip(times[reference][part], seconds)]
                row |= {"speedup": statistics.median(ratios), "speedup_low": min(ratios), "speedup_high": max(ratios)}
            rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table with the columns of all rows, in order of appearance; floats with four significant digits."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [row.get(column, "") for column in columns]
        lines.append("| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |")
    return "\n".join(lines)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> dict[str, Any]:
    """The state of the machine that affects the figures: processor, threads, load."""
    model = "unknown"
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    }


def ceilings(repetitions: int = 15) -> list[dict[str, Any]]:
    """Peak throughput of this machine at this time: GFLOP/s of a matrix product (1024 x 768 by 768 x 3072), GB/s of memory reads.

    Returns:
        Rows "fp32 product", the same with oneDNN ("fast", see `training.precision`), "bf16 product", and "read".
    """
    x, weight = torch.randn(1024, 768, device=device()), torch.randn(3072, 768, device=device())
    many = torch.ones(2**26, device=device())

    def product(dtype: torch.dtype, fast: bool) -> Callable[[], None]:
        a, b = x.to(dtype), weight.to(dtype)

        def run() -> None:
            torch.set_float32_matmul_precision("highest")
            if fast:
                use_fast_fp32_matmul()
            for _ in range(5):
                torch.nn.functional.linear(a, b)

        return run

    def read() -> None:
        many.sum().item()

    contenders = [
        Contender("fp32 product", product(torch.float32, False)),
        Contender("fp32 product, fast", product(torch.float32, True)),
        Contender("bf16 product", product(torch.bfloat16, False)),
        Contender("read", read),
    ]
    precision = torch.get_float32_matmul_precision()
    times = measure(contenders, repetitions)
    torch.set_float32_matmul_precision(precision)
    work = {contender.name: (5 * 2 * 1024 * 768 * 3072, "GFLOP/s") for contender in contenders} | {"read": (2**28, "GB/s")}
    return [
        {"ceiling": name, "median": amount / statistics.median(times[name]["total"]) / 1e9,
         "highest": amount / min(times[name]["total"]) / 1e9, "unit": unit}
        for name, (amount, unit) in work.items()
    ]  # fmt: skip


def device() -> str:
    """The device of all benchmarks."""
    return "cuda" if torch.cuda.is_available() else "cpu"


# Factory of a contender: sizes -> module that returns the loss for (input_ids, labels); labels equal the ids and are shifted inside.
# An optional method `configure_optimizer()` of the module creates its optimizer.
Factory = Callable[[Sizes], nn.Module]


class _Loss(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids, labels=labels, use_cache=False).loss


def transformers_gpt2(sizes: Sizes) -> nn.Module:
    """transformers' GPT2LMHeadModel with sdpa, without dropout."""
    config = GPT2Config(**vars(sizes), resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None)
    return _Loss(GPT2LMHeadModel._from_config(config, attn_implementation="sdpa"))


def gpt_scratch(sizes: Sizes, loss_implementation: str = "chunked") -> nn.Module:
    """This package's GPT-2, without dropout."""
    config = GPTScratchConfig(
        **vars(sizes), qkv_bias=True, drop_rate=0.0, loss_implementation=loss_implementation, bos_token_id=None, eos_token_id=None
    )
    return _Loss(GPTScratchForCausalLM(config))


def load_rival(text: str) -> tuple[str, Factory]:
    """Load a contender from NAME=path/to/file.py:factory; the file's folder is on `sys.path` while it is loaded.

    Raises:
        UserError: not of that form, or the file or function does not exist.
    """
    name, _, place = text.partition("=")
    path, _, function = place.rpartition(":")
    if not name or not function or not Path(path).is_file():
        raise UserError(f"--rival {text}: expected NAME=path/to/file.py:factory with an existing file")
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        raise UserError(f"--rival {text}: {path} has no function {function}")
    return name, getattr(module, function)
