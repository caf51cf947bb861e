"""What torch's default of all threads costs on a busy machine: seconds of a training step by number of threads.

    python tests/training/measure_threads.py                 # as the machine is
    python tests/training/measure_threads.py --busy 4        # with four processes that take a core each

The small models are README's first one and the quickstart's.
"""

import argparse
import multiprocessing
import os
import time
from functools import partial

import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.training.threads import _step, fastest_threads

SIZES = {
    "0.2M parameters, 8 rows of 64 tokens": ({"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}, 8),
    "0.9M parameters, 8 rows of 128 tokens": ({"n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 128}, 8),
}


def keep_busy() -> None:
    while True:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--busy", type=int, default=0, help="processes that take a core each meanwhile")
    args = parser.parse_args()
    others = [multiprocessing.get_context("spawn").Process(target=keep_busy, daemon=True) for _ in range(args.busy)]
    for other in others:
        other.start()
    time.sleep(2 if others else 0)
    most = torch.get_num_threads()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch's default {most} threads")
    for name, (sizes, rows) in SIZES.items():
        model = GPTScratchForCausalLM(GPTScratchConfig(vocab_size=1000, **sizes))
        ids = torch.randint(0, 1000, (rows, sizes["n_positions"]))
        chosen, seconds = fastest_threads(partial(_step, model, {"input_ids": ids, "labels": ids}, False), most)
        print(f"{name}: " + ", ".join(f"{value:.3f} s on {number}" for number, value in seconds.items()) + f"; chosen: {chosen}")
    for other in others:
        other.terminate()
