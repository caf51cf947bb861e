"""Measures the peak memory of a training step in a separate process; started by `training.peak_memory` with its settings as JSON.

Prints `resident_mib`, the memory before the step (libraries, weights, optimizer state), and `above_mib`, the additional peak.
"""

import json
import resource
import sys
from pathlib import Path

import torch

from ..provenance import peak_bytes
from .harness import Sizes, load_rival
from .training import Step, contenders


def main(settings: dict) -> None:
    """Two steps make the optimizer state; the third is measured."""
    selected = contenders({settings["name"]: load_rival(settings["rival"])[1]} if settings["rival"] else {})
    factory, fast = selected[settings["name"]]
    step = Step(factory, Sizes(**settings["sizes"]), settings["batch"], settings["length"], settings["bf16"], False, fast)
    if torch.cuda.is_available():
        for _ in range(2):
            step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated()
    else:
        # The optimizer state is created without a step, so that the peak of the process is the peak of the measured step.
        for group in step.optimizer.param_groups:
            for parameter in group["params"]:
                step.optimizer.state[parameter] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(parameter).add_(0),
                    "exp_avg_sq": torch.zeros_like(parameter).add_(0),
                }
        resident = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
        before = int(resident) * resource.getpagesize()
        step()
        step()
        peak = peak_bytes() or 0
    print(json.dumps({"resident_mib": round(before / 2**20), "above_mib": round((peak - before) / 2**20)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
