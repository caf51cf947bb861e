"""Generation against llama.cpp: the same weights in the same number of bits, threads and prompts; each run in a process of its own."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

import torch

from ..conversion.checkpoint import Options
from ..conversion.convert import import_weights
from ..conversion.formats import recognize
from ..errors import UserError, one_line
from ..progress import named

# Our format to llama.cpp's with the same number of bits. On processors without bf16 instructions, its f16 is faster than its bf16.
FORMATS = {"float32": "ALL_F32", "bfloat16": "MOSTLY_F16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
WORKER = Path(__file__).with_name("generation_worker.py")
PACKAGE = Path(__file__).parents[2]  # where gpt_scratch is imported from, also if it is not installed
RUN_FILE = (
    "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"  # `python FILE` would put its folder first on sys.path
)


def against_llama_cpp(
    file: str, batches: Sequence[int], prompts: Sequence[int], new_tokens: int, repetitions: int, formats: Sequence[str]
) -> list[dict[str, Any]]:
    """Milliseconds per step, prompt tokens per second, seconds from the command to the first token, and memory.

    Both engines start from the weights in `file`: converted to a checkpoint of this package, and quantized by llama.cpp. In each
    repetition, a process of each engine is started, in alternating order, and measures all shapes. One more, at first, warms up the
    caches of files.

    Args:
        file: a GGUF file of GPT-2, Llama, Qwen 2 or Qwen 3 in any format.
        formats: of the weights, keys of `FORMATS`.

    Returns:
        A row per format, shape and engine: medians, their range over the repetitions, and the speedup over llama.cpp within a repetition.

    Raises:
        UserError: llama-cpp-python is missing, the file cannot be read, or a prompt and its new tokens exceed the model's positions.
    """
    if not is_installed():
        raise UserError("--llama_cpp needs llama-cpp-python: pip install llama-cpp-python")
    if new_tokens < 2:
        raise UserError(f"--new_tokens is {new_tokens}: a step is measured between two tokens")
    checkpoint = recognize(file, Options(), "gguf")
    positions = checkpoint.config.max_position_embeddings
    if max(prompts) + new_tokens > positions:
        raise UserError(f"--prompt {max(prompts)} and --new_tokens {new_tokens} exceed the {positions:,} positions of {file}")
    shapes = list(product(batches, prompts))
    settings = {"threads": torch.get_num_threads(), "vocab_size": checkpoint.config.vocab_size}
    rows = []
    with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as scratch:
        with named(f"converting {file}"):
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
                Path(scratch, name).mkdir()
                import_weights(checkpoint, Path(scratch, name), dtype, 5 << 30)
        unquantized = str(Path(scratch, "float32.gguf"))
        _run({"engine": "quantize", "model": str(Path(file).resolve()), "format": "ALL_F32", "output": unquantized} | settings)
        for weights in formats:
            theirs = unquantized
            if weights != "float32":
                theirs = str(Path(scratch, f"{weights}.gguf"))
                _run({"engine": "quantize", "model": unquantized, "format": FORMATS[weights], "output": theirs} | settings)
            ours = str(Path(scratch, "float32" if weights == "float32" else "bfloat16"))
            engines = {"llama.cpp": theirs, "gpt_scratch": ours}
            measured: dict[str, list[list[dict[str, Any]]]] = {engine: [] for engine in engines}
            for repetition in range(-1, repetitions):
                for engine in engines if repetition % 2 else reversed(engines):
                    more = {"engine": engine, "model": engines[engine], "weights": weights, "shapes": shapes}
                    results = _run(more | {"new_tokens": new_tokens if repetition >= 0 else 0} | settings)
                    if repetition >= 0:
                        measured[engine].append(results)
            for place, (batch, prompt) in enumerate(shapes, 1):
                rows += [_row(engine, weights, batch, prompt, place, measured) for engine in engines]
    return rows


def is_installed() -> bool:
    """Whether the Python binding of llama.cpp can be imported."""
    return importlib.util.find_spec("llama_cpp") is not None


def _row(
    engine: str, weights: str, batch: int, prompt: int, place: int, measured: dict[str, list[list[dict[str, Any]]]]
) -> dict[str, Any]:
    """`measured`: of each engine, of each repetition: the result of the first token, and of each shape (`place` is its index)."""
    theirs, ours = [run[place] for run in measured["llama.cpp"]], [run[place] for run in measured[engine]]
    steps, starts = [1e3 * result["step_s"] for result in ours], [run[0] for run in measured[engine]]
    ratios = [other["step_s"] / result["step_s"] for other, result in zip(theirs, ours)]
    prompt_ratios = [other["prompt_s"] / result["prompt_s"] for other, result in zip(theirs, ours)]
    version = f" (llama-cpp-python {metadata.version('llama-cpp-python')})" if engine == "llama.cpp" else ""
    equal = [row == other for row, other in zip(ours[0]["tokens"], theirs[0]["tokens"])]
    return {
        "contender": engine + version,
        "weights": FORMATS[weights].split("_", 1)[1].lower() if engine == "llama.cpp" else weights,
        "batch": batch,
        "prompt": prompt,
        "ms_per_step": statistics.median(steps),
        "ms_low": min(steps),
        "ms_high": max(steps),
        "speedup": statistics.median(ratios),
        "speedup_low": min(ratios),
        "speedup_high": max(ratios),
        "prompt_tokens_per_s": batch * prompt / statistics.median(result["prompt_s"] for result in ours),
        "prompt_speedup": statistics.median(prompt_ratios),
        "first_token_s": statistics.median(start["seconds"] for start in starts),
        "first_token_s_low": min(start["seconds"] for start in starts),
        "resident_mib": starts[0]["resident_mib"],
        "peak_mib": ours[0]["peak_mib"],
        "same_rows": f"{sum(equal)}/{batch}",
    }


def _run(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of a worker process; the first with the `seconds` since it was started."""
    path = os.pathsep.join(filter(None, (str(PACKAGE), os.environ.get("PYTHONPATH"))))
    threads = {name: str(settings["threads"]) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, "-c", RUN_FILE, str(WORKER), json.dumps(settings)]
    results: list[dict[str, Any]] = []
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "PYTHONPATH": path, **threads}
        ) as process,
    ):
        for line in process.stdout or ():
            if line.startswith("{"):  # not what a library prints
                results.append({"seconds": time.perf_counter() - start} | json.loads(line))
        process.wait()
        if process.returncode:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit status {process.returncode}"])[-1]
            raise UserError(f"generation with {settings['engine']} fails: {one_line(RuntimeError(last))}")
    return results
