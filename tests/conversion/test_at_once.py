"""Two conversions into one directory at once: one is written whole, the other ends in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_scratch.inference.loading import load_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.thorough
def test_one_of_two_conversions_into_one_directory_succeeds(tmp_path):
    for number in (1, 2):
        torch.manual_seed(number)
        sizes = {
            "vocab_size": 61,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 32,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path / f"source-{number}")
    output = tmp_path / "converted"
    both = [
        subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "convert_checkpoint.py", tmp_path / f"source-{number}", output, "--overwrite"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for number in (1, 2)
    ]  # fmt: skip
    ends = [(*process.communicate(timeout=120), process.returncode) for process in both]
    won = [number for number, end in enumerate(ends, start=1) if end[2] == 0]
    assert won, ends
    for _, stderr, status in ends:
        if status:
            assert status == 2 and stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in stderr
    written = load_model(str(output), "lm").model.embed_tokens.weight
    sources = {n: GPT2LMHeadModel.from_pretrained(tmp_path / f"source-{n}").transformer.wte.weight for n in won}
    assert any(torch.equal(written, source) for source in sources.values())
    assert {path.name for path in tmp_path.iterdir()} == {"source-1", "source-2", "converted"}  # nothing half-written beside it
