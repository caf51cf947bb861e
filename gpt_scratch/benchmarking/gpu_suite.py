"""All GPU benchmarks in one command within a time limit: training steps, attention functions, pretrain.py, DDP and FSDP2, generation."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..analysis.runs import read_history
from ..analysis.summary import flops_per_token
from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from .generation import same_weights
from .harness import Contender, Sizes, device, gpt_scratch, measure, summarize
from .time_to_loss import seconds_per_step
from .training import FULL_LOSS, Step, training_step
from .whole_run import flags, run_until_saved

# Dense bf16 FLOP/s in the manufacturers' data sheets, by a part of the device's name.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}
RUN_SECONDS = 150  # of a run of pretrain.py, so that three leave time for the other sections
ATTENTION = ("sdpa", "flash_attention_2", "flex_attention")
Rows = list[dict[str, Any]]


def gpu_suite(
    scripts: Path,
    sizes: Sizes,
    length: int,
    steps: int,
    new_tokens: int,
    repetitions: int,
    limit: float,
    save: Callable[[Rows], None],
) -> Rows:
    """Rows of all sections, each with `section`; a section that fails, or begins after the limit, is a row with its `error`.

    Args:
        scripts: the folder with pretrain.py, in a clone of the repository.
        length: tokens per row.
        steps: of each run of pretrain.py.
        limit: seconds after which no further section begins.
        save: called with all rows after each section, so that a machine that is taken away leaves what was measured.
    """
    start = time.perf_counter()
    sizes = replace(sizes, n_positions=max(sizes.n_positions, length))
    batch = largest_batch(sizes, length) if device() == "cuda" else 2
    sections: dict[str, Callable[[], Rows]] = {
        "step": lambda: training_step(sizes, batch, length, True, device() == "cuda", repetitions, {}, (FULL_LOSS,)),
        "pretrain.py": lambda: pretraining(scripts, sizes, batch, length, steps),
        "attention": lambda: attention_functions(sizes, max(1, batch // 2), length, repetitions),
        "generation": lambda: static_generation(sizes, new_tokens, repetitions),
    }
    rows: Rows = [{"section": "batch", "rows": batch, "tokens": length, "seconds": time.perf_counter() - start}]
    for name, run in sections.items():
        began = time.perf_counter()
        try:
            if began - start > limit:
                raise TimeoutError(f"not begun: {limit:.0f} s had passed")
            found = run()
        except Exception as error:
            found = [{"error": f"{type(error).__name__}: {one_line(error)}"}]
        rows += [{"section": name, **row} for row in found]
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
        save(rows)
        if device() == "cuda":
            torch.cuda.empty_cache()
    return rows


def largest_batch(sizes: Sizes, length: int) -> int:
    """The largest power of two of rows whose bf16 training step, not compiled, fits into the memory of the GPU."""
    batch = 1
    while batch < 1024:
        try:
            Step(gpt_scratch, sizes, 2 * batch, length, True, False, False)()
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()
        batch *= 2
    return batch


def utilization(sizes: Sizes, length: int, tokens_per_second: float) -> float | None:
    """Model FLOPs utilization: operations of the model per second over the device's peak in bf16; `None` for an unknown device."""
    name = torch.cuda.get_device_name() if device() == "cuda" else ""
    peak = next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)
    with torch.device("meta"):
        model = GPTScratchForCausalLM(GPTScratchConfig(**vars(sizes)))
    return tokens_per_second * flops_per_token(model, length)[1] / peak if peak else None


def pretraining(scripts: Path, sizes: Sizes, batch: int, length: int, steps: int) -> Rows:
    """pretrain.py on the bundled stories, compiled, in bf16: by itself, and launched on one device with DDP and with FSDP2."""
    fsdp2 = str(scripts / "configs/accelerate/fsdp2.yaml")
    launchers = {
        "one process": [],
        "DDP": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"],
        "FSDP2": ["-m", "accelerate.commands.launch", "--config_file", fsdp2, "--num_processes", "1"],
    }
    settings = {
        "train_file": str(scripts.parent / "gpt_scratch/data/samples/stories.jsonl"),
        "vocab_size": 1000,  # of the tokenizer; the model's is that of the sizes, however few tokens the text has
        "config_overrides": vars(sizes) | {"drop_rate": 0.0},
        "block_size": length,
        "per_device_train_batch_size": batch,
        "max_steps": steps,
        "logging_steps": max(1, steps // 10),
        "bf16": True,
        "torch_compile": device() == "cuda",
        "use_cpu": device() == "cpu",
        "eval_strategy": "no",
        "save_strategy": "no",
        "sample_tokens": 0,
    }
    rows: Rows = []
    for name, launcher in launchers.items():
        with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as folder:
            output = f"{folder}/model"
            command = [*launcher, str(scripts / "pretrain.py"), "--output_dir", output, *flags(settings)]
            try:
                run_until_saved(command, output, timeout=RUN_SECONDS)
            except UserError as error:
                rows.append({"launched": name, "error": one_line(error)})
                continue
            seconds = seconds_per_step(read_history(output))
        speed = batch * length / seconds
        row = {"s_per_step": seconds, "tokens_per_s": speed, "utilization": utilization(sizes, length, speed)}
        rows.append({"launched": name} | row)
    return rows


def attention_functions(sizes: Sizes, batch: int, length: int, repetitions: int) -> Rows:
    """A bf16 training step by attention function, with rows of one document, and of four packed ones that do not attend to each other."""
    together = torch.arange(length, device=device()).expand(batch, -1)
    apart = torch.arange(length, device=device()).remainder(max(1, length // 4)).expand(batch, -1)
    ids = torch.randint(sizes.vocab_size, (batch, length), device=device())
    rows = []
    for packed, positions in ((False, together), (True, apart)):
        contenders = []
        for name in ATTENTION:
            try:
                config = GPTScratchConfig(**vars(sizes), drop_rate=0.0, bos_token_id=None, eos_token_id=None)
                model: Any = GPTScratchForCausalLM._from_config(config, attn_implementation=name).to(device()).train()
                run = one_step(model, ids, positions)
                run()
            except (ImportError, ValueError, RuntimeError) as error:
                rows.append({"packed": packed, "attention": name, "error": one_line(error)})
                continue
            contenders.append(Contender(name, run))
        rows += [
            {"packed": packed, "attention": row.pop("contender"), **row}
            for row in summarize(measure(contenders, repetitions), "sdpa")
        ]
    return rows


def one_step(model: Any, ids: torch.Tensor, positions: torch.Tensor) -> Callable[[], None]:
    """Forward and backward pass, without an optimizer."""

    def run() -> None:
        with torch.autocast(device(), torch.bfloat16):
            model(ids, labels=ids, position_ids=positions, use_cache=False).loss.backward()
        model.zero_grad()

    return run


def static_generation(sizes: Sizes, new_tokens: int, repetitions: int) -> Rows:
    """Milliseconds per step of greedy generation in bf16 for 1 and 8 prompts of 32 tokens, with a dynamic and a compiled static cache."""
    theirs, ours = same_weights(sizes)
    models = {"transformers": theirs.to(torch.bfloat16), "gpt_scratch": ours.to(torch.bfloat16)}
    rows = []
    for batch in (1, 8):
        ids = torch.randint(sizes.vocab_size, (batch, 32), device=device())
        contenders = [
            Contender(f"{name}, {cache or 'dynamic'} cache", generating(model, ids, new_tokens, cache))
            for name, model in models.items()
            for cache in (None, "static")
        ]
        found = summarize(measure(contenders, repetitions), contenders[0].name)
        rows += [{"batch": batch, **row, "ms_per_step": 1e3 * row["median_s"] / new_tokens} for row in found]
    return rows


def generating(model: Any, ids: torch.Tensor, new_tokens: int, cache: str | None) -> Callable[[], None]:
    """Greedy generation of exactly `new_tokens`."""
    model.generation_config.eos_token_id = None
    settings = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0, "cache_implementation": cache}

    def run() -> None:
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **settings)

    return run
