"""A whole pretraining run: scripts/pretrain.py against transformers' example script run_clm.py, both started as commands."""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from ..data.blocks import TokenBlocks
from ..data.language_modeling import documents_from_files, tokenize_documents
from ..errors import UserError
from ..evaluation.perplexity import evaluate_loss
from ..files import write_json
from ..provenance import peak_bytes
from .harness import Contender, Sizes, measure, summarize

HELD_OUT = 10  # percent of the text's lines, from the end
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
# Settings of a recipe that concern its own text and evaluations, which this benchmark replaces.
REPLACED = {"vocab_size", "validation_split_percentage", "split_by", "eval_steps"}


def whole_run(
    scripts: Path,
    run_clm: str,
    text: str,
    tokenizer: PreTrainedTokenizerBase,
    sizes: Sizes,
    shape: tuple[int, int],
    steps: int,
    fast_steps: int,
    repetitions: int,
) -> list[dict[str, Any]]:
    """Seconds until a command ends ("total") and until it has saved the trained model ("saved"), in new processes, run alternately.

    Contenders: run_clm.py with GPT-2's default dropout of 0.1; the same without dropout; pretrain.py with that model and the optimizer of
    configs/wikitext2/gpt2.yaml, which all three use; and pretrain.py with configs/wikitext2/modern.yaml for `fast_steps` steps. All start
    from new weights, and train on the first 90 % of the text's lines with the same tokenizer and batches, without evaluations in between.

    Args:
        scripts: the folder with pretrain.py and configs, in a clone of the repository.
        run_clm: transformers' examples/pytorch/language-modeling/run_clm.py.
        sizes: of the model, except the vocabulary, which is the tokenizer's, and the number of positions, which is that of a row.
        shape: rows per batch, tokens per row.

    Returns:
        The rows of `summarize`, with the tokens trained on, tokens per second, the peak memory of the process in MiB, and the
        loss of the saved model on the other lines, in nats per predicted token, always computed by this package.

    Raises:
        UserError: a command fails, or `run_clm` is not a file.
    """
    if not Path(run_clm).is_file():
        raise UserError(f"--run_clm {run_clm}: no such file; give examples/pytorch/language-modeling/run_clm.py of transformers")
    batch, length = shape
    model = asdict(sizes) | {"vocab_size": len(tokenizer), "n_positions": length}
    with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as folder:
        train, held_out = split_lines(Path(text), Path(folder))
        tokenizer.save_pretrained(f"{folder}/tokenizer")
        shared = {
            "train_file": str(train),
            "tokenizer_name": f"{folder}/tokenizer",
            "block_size": length,
            "per_device_train_batch_size": batch,
            "logging_steps": 10,
            "save_strategy": "no",
            "eval_strategy": "no",
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
        }
        ours = shared | {"validation_file": str(held_out), "per_device_eval_batch_size": batch}
        plain = recipe(scripts / "configs/wikitext2/gpt2.yaml", steps)
        fast = recipe(scripts / "configs/wikitext2/modern.yaml", fast_steps)
        same_model = {"config_overrides": model | {"drop_rate": 0.0, "qkv_bias": True}}
        fast_model = {"config_overrides": fast["config_overrides"] | model}
        theirs = {name: value for name, value in plain.items() if name not in ("config_overrides", "sample_tokens")} | shared

        def run_clm_command(overrides: Mapping[str, Any]) -> list[str]:
            pairs = ",".join(f"{name}={value}" for name, value in overrides.items())
            return [run_clm, "--model_type", "gpt2", "--config_overrides", pairs, "--do_train", *flags(theirs)]

        def pretrain_command(name: str, settings: dict[str, Any]) -> list[str]:
            write_json(Path(folder, f"{name}.yaml"), settings)  # JSON is YAML
            return [str(scripts / "pretrain.py"), f"{folder}/{name}.yaml"]

        commands = {
            "run_clm.py": run_clm_command(model),
            "run_clm.py, no dropout": run_clm_command(model | NO_DROPOUT),
            "pretrain.py": pretrain_command("plain", plain | ours | same_model),
            "pretrain.py, fast recipe": pretrain_command("fast", fast | ours | fast_model),
        }
        tokens = {name: batch * length * (fast_steps if name.endswith("recipe") else steps) for name in commands}
        tokenized = tokenize_documents(documents_from_files([str(held_out)]), tokenizer)
        rows = TokenBlocks(tokenized, length, end_id=tokenizer.eos_token_id)
        details: dict[str, dict[str, Any]] = {}

        def contender(name: str) -> Contender:
            def run() -> dict[str, float]:
                with tempfile.TemporaryDirectory(dir=folder) as output:
                    parts, peak = run_until_saved([*commands[name], "--output_dir", f"{output}/model"], f"{output}/model")
                    trained = AutoModelForCausalLM.from_pretrained(f"{output}/model")
                    loss = evaluate_loss(trained, rows, batch)["loss"]
                peak = max(peak, details.get(name, {}).get("peak_mib", 0))
                details[name] = {"tokens": tokens[name], "peak_mib": peak, "loss": loss}
                return parts

            return Contender(name, run)

        times = measure([contender(name) for name in commands], repetitions, warmup=0)
    return [
        row | details[row["contender"]] | {"tokens_per_s": tokens[row["contender"]] / row["median_s"]}
        for row in summarize(times, "run_clm.py")
    ]


def split_lines(text: Path, folder: Path) -> tuple[Path, Path]:
    """Write the first 90 % of the lines to train.txt and the others to validation.txt."""
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    cut = len(lines) * (100 - HELD_OUT) // 100
    paths = folder / "train.txt", folder / "validation.txt"
    for path, part in zip(paths, (lines[:cut], lines[cut:])):
        if not part:
            raise UserError(f"{text}: {len(lines)} lines are too few to hold out {HELD_OUT} %")
        path.write_text("".join(part), encoding="utf-8")
    return paths


def recipe(path: Path, steps: int) -> dict[str, Any]:
    """Settings of a recipe for this number of steps, without those in `REPLACED`; warm-up and decay keep their shares."""
    settings = {name: value for name, value in yaml.safe_load(path.read_text(encoding="utf-8")).items() if name not in REPLACED}
    share = steps / settings["max_steps"]
    schedule = dict(settings["lr_scheduler_kwargs"])
    if "num_decay_steps" in schedule:
        schedule["num_decay_steps"] = round(schedule["num_decay_steps"] * share)
    # "6e-3" without a dot is text to YAML 1.1.
    numbers = {name: float(value) for name, value in settings.items() if name.endswith("learning_rate")}
    return settings | numbers | {
        "max_steps": steps, "warmup_steps": round(settings["warmup_steps"] * share), "lr_scheduler_kwargs": schedule
    }  # fmt: skip


def flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as flags of a command line, dictionaries as JSON."""
    values = {name: json.dumps(value) if isinstance(value, dict) else str(value) for name, value in settings.items()}
    return [text for name, value in values.items() for text in (f"--{name}", value)]


def run_until_saved(
    command: Sequence[str], output: str, variables: Mapping[str, str | None] | None = None, timeout: float = math.inf
) -> tuple[dict[str, float], int]:
    """Run Python with these arguments, offline and with an empty cache of `datasets`; the log is log.txt beside `output`.

    Args:
        variables: of the environment; `None` removes one.
        timeout: seconds after which it is stopped.

    Returns:
        Seconds until it ends ("total") and until model.safetensors in `output` was written ("saved"); peak memory of the process in MiB.

    Raises:
        UserError: it fails or saves no model, with its last line.
    """
    folder = Path(output).parent
    changes = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")} | dict(variables or {})
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    peak, start, began = 0, time.perf_counter(), time.time()
    with open(folder / "log.txt", "w+", encoding="utf-8") as log:
        process = subprocess.Popen([sys.executable, *command], env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None and time.perf_counter() - start < timeout:
                peak = peak_bytes(process.pid) or peak
                time.sleep(0.05)
        finally:
            process.terminate()  # has no effect on one that has ended
            process.wait()
        total = time.perf_counter() - start
        log.seek(0)
        last = ([line.strip() for line in log if line.strip()] or ["no output"])[-1]
    weights = Path(output, "model.safetensors")
    if process.returncode or not weights.is_file():
        stopped = f" (stopped after {timeout:.0f} s)" if total >= timeout else ""
        raise UserError(f"{command[0]} fails{stopped}: {last}")
    return {"total": total, "saved": weights.stat().st_mtime - began}, peak // 2**20
