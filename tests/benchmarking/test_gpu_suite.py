"""The GPU suite on a CPU at a tiny size: every section measures, a section that fails is a row, and what was measured is saved."""

import json

import pytest
import torch
from tiny_benchmark import run

from gpt_scratch.benchmarking import gpu_suite
from gpt_scratch.benchmarking.harness import Sizes
from gpt_scratch.errors import UserError

SIZES = Sizes(n_layer=2, n_head=2, n_embd=32, vocab_size=1200, n_positions=64)


def test_attention_functions_and_packed_rows(monkeypatch):
    monkeypatch.setattr(gpu_suite, "ATTENTION", ("sdpa", "eager", "flash_attention_2"))  # the last needs a GPU
    rows = gpu_suite.attention_functions(SIZES, 1, 16, 1)
    measured = [(row["packed"], row["attention"]) for row in rows if "median_s" in row]
    assert sorted(measured) == [(packed, name) for packed in (False, True) for name in ("eager", "sdpa")]
    errors = [(row["packed"], row["attention"]) for row in rows if "error" in row]
    assert torch.cuda.is_available() or errors == [(False, "flash_attention_2"), (True, "flash_attention_2")]


def test_generation_with_both_caches():
    rows = gpu_suite.static_generation(SIZES, 3, 1)
    assert [row["batch"] for row in rows] == [1] * 4 + [8] * 4
    assert rows[0]["contender"] == "transformers, dynamic cache" and rows[0]["speedup"] == 1
    assert rows[3]["ms_per_step"] == pytest.approx(1e3 * rows[3]["median_s"] / 3)


def test_utilization_is_that_of_the_named_device(monkeypatch):
    assert gpu_suite.utilization(SIZES, 16, 1e6) is None
    monkeypatch.setattr(gpu_suite, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    matrices = 1200 * 32 + 2 * 12 * 32 * 32
    flops = 3 * (2 * matrices + 2 * 16 * 2 * 32)
    assert gpu_suite.utilization(SIZES, 16, 1e9) == pytest.approx(1e9 * flops / 989e12)


def test_each_launcher_trains_the_model_of_the_sizes(monkeypatch, tmp_path):
    commands = []

    def fail(command, output, timeout):
        commands.append(command)
        raise UserError(f"fails after {timeout}")

    monkeypatch.setattr(gpu_suite, "run_until_saved", fail)
    rows = gpu_suite.pretraining(tmp_path, SIZES, 2, 16, 5)
    assert [row["launched"] for row in rows] == ["one process", "DDP", "FSDP2"]
    assert all(row["error"] == f"fails after {gpu_suite.RUN_SECONDS}" for row in rows)
    for command in commands:
        model = json.loads(command[command.index("--config_overrides") + 1])
        assert model == vars(SIZES) | {"drop_rate": 0.0}
    assert "torch.distributed.run" in commands[1] and "accelerate.commands.launch" in commands[2]


def test_a_section_that_fails_or_is_late_is_a_row_and_the_others_are_saved(monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError("no kernel\nfor this device")

    monkeypatch.setattr(gpu_suite, "pretraining", fail)
    monkeypatch.setattr(gpu_suite, "ATTENTION", ("sdpa",))
    saved = []
    rows = gpu_suite.gpu_suite(tmp_path, SIZES, 16, 1, 2, 1, 100, lambda rows: saved.append(len(rows)))
    errors = [row["error"] for row in rows if "error" in row and row["section"] == "pretrain.py"]
    assert errors == ["RuntimeError: no kernel for this device"]
    assert len(saved) == 4 and saved == sorted(saved) and saved[-1] == len(rows)
    late = gpu_suite.gpu_suite(tmp_path, SIZES, 16, 1, 2, 1, -1, lambda rows: None)
    assert [row["section"] for row in late if "not begun" in row.get("error", "")] == [
        "step",
        "pretrain.py",
        "attention",
        "generation",
    ]


@pytest.mark.slow
def test_the_command(script, tmp_path):
    sizes = "--n_layer", "2", "--n_head", "2", "--n_embd", "32", "--vocab_size", "1200", "--shape", "2x64"
    output = tmp_path / "gpu.json"
    run(script, "gpu", *sizes, "--steps", "2", "--new_tokens", "4", "--repetitions", "1", "--output", str(output))
    rows = json.loads(output.read_text(encoding="utf-8"))["rows"]
    speeds = {row["launched"]: row.get("tokens_per_s") for row in rows if row["section"] == "pretrain.py"}
    assert speeds["one process"] > 0 and speeds["DDP"] > 0
