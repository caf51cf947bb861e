"""Whole runs: real commands at a tiny size, with a program in the place of run_clm.py that trains transformers' GPT-2."""

import json
import math
import os
from pathlib import Path

import pytest
from tiny_benchmark import TINY, run

from gpt_scratch.benchmarking import whole_run
from gpt_scratch.benchmarking.whole_run import flags, recipe, run_until_saved, split_lines
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

CONFIGS = Path(__file__).resolve().parents[2] / "scripts/configs/wikitext2"

# Takes the flags that the benchmark passes, and refuses all others.
RIVAL = """
import sys
from dataclasses import dataclass
from datasets import load_dataset
from transformers import (AutoTokenizer, DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel, HfArgumentParser, Trainer,
                          TrainingArguments)

@dataclass
class Flags:
    model_type: str
    config_overrides: str
    train_file: str
    tokenizer_name: str
    block_size: int

mine, args = HfArgumentParser((Flags, TrainingArguments)).parse_args_into_dataclasses()
config = GPT2Config()
config.update_from_string(mine.config_overrides)
tokenizer = AutoTokenizer.from_pretrained(mine.tokenizer_name)
assert mine.model_type == "gpt2" and config.vocab_size == len(tokenizer) and config.n_positions == mine.block_size and args.do_train
rows = load_dataset("text", data_files=mine.train_file, split="train")
rows = rows.map(lambda row: tokenizer(row["text"], truncation=True, max_length=mine.block_size), remove_columns=["text"])
tokenizer.pad_token = tokenizer.eos_token
trainer = Trainer(GPT2LMHeadModel(config), args, DataCollatorForLanguageModeling(tokenizer, mlm=False), rows)
trainer.train()
trainer.save_model()
print("dropout", config.attn_pdrop, file=sys.stderr)
"""


@pytest.mark.slow
def test_whole_run(script, tmp_path):
    text = "One day, Anna lost her key. She looked by the river.\n" * 200
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "run_clm.py").write_text(RIVAL, encoding="utf-8")
    train_byte_level_bpe([text], vocab_size=280).save_pretrained(tmp_path / "tokenizer")
    settings = (
        "--run_clm",
        str(tmp_path / "run_clm.py"),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--text",
        str(tmp_path / "text.txt"),
    )
    rows = run(script, "run", *TINY, "--repetitions", "1", *settings, "--steps", "12", "--fast_steps", "6")
    names = "run_clm.py", "run_clm.py, no dropout", "pretrain.py", "pretrain.py, fast recipe"
    assert [(row["contender"], row["part"]) for row in rows] == [(name, part) for name in names for part in ("total", "saved")]
    assert [row["tokens"] for row in rows[::2]] == [192, 192, 192, 96]
    for total, saved in zip(rows[::2], rows[1::2]):
        assert 0 < saved["median_s"] <= total["median_s"]
        assert 100 < total["peak_mib"] < 4096
        assert 1 < total["loss"] < math.log(280) + 0.1
        assert saved["tokens_per_s"] == pytest.approx(saved["tokens"] / saved["median_s"])


def test_recipe_keeps_the_shares_of_its_schedule():
    settings = recipe(CONFIGS / "modern.yaml", 140)
    assert settings["max_steps"] == 140 and settings["warmup_steps"] == 10
    assert settings["lr_scheduler_kwargs"] == {"num_decay_steps": 70, "decay_type": "linear"}
    assert settings["muon_learning_rate"] == 6e-3 and "vocab_size" not in settings
    assert recipe(CONFIGS / "gpt2.yaml", 50)["lr_scheduler_kwargs"] == {"min_lr_rate": 0.1}
    assert flags({"a": 1, "b": {"c": 0.5}}) == ["--a", "1", "--b", json.dumps({"c": 0.5})]


def test_lines_are_trained_on_or_held_out(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {i}\n" for i in range(20)), encoding="utf-8")
    train, held_out = split_lines(tmp_path / "text.txt", tmp_path)
    assert train.read_text(encoding="utf-8") + held_out.read_text(encoding="utf-8") == (tmp_path / "text.txt").read_text(
        encoding="utf-8"
    )
    assert held_out.read_text(encoding="utf-8") == "line 18\nline 19\n"
    (tmp_path / "short.txt").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="short.txt: 0 lines are too few"):
        split_lines(tmp_path / "short.txt", tmp_path)


def test_seconds_and_memory_of_a_command(tmp_path):
    code = "import pathlib, time; x = bytearray(300 << 20); pathlib.Path('{0}').write_bytes(b''); time.sleep(1)"
    parts, peak = run_until_saved(["-c", code.format(tmp_path / "model.safetensors")], str(tmp_path))
    assert parts["total"] - 0.9 > parts["saved"] > 0 and 300 <= peak < 400
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="-c fails: no output"):
        run_until_saved(["-c", "pass"], str(tmp_path))
    with pytest.raises(UserError, match="-c fails: no data"):
        run_until_saved(["-c", "raise SystemExit('no data')"], str(tmp_path))


def test_a_command_ends_with_the_benchmark_or_its_time(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"-c fails \(stopped after 0 s\): no output"):
        run_until_saved(["-c", "import time; time.sleep(60)"], str(tmp_path), timeout=0.3)
    started = []

    def interrupt(pid):
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_run, "peak_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_until_saved(["-c", "import time; time.sleep(60)"], str(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_missing_files_are_refused(script, tmp_path):
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")
    with pytest.raises(UserError, match="--run_clm, --tokenizer or --text is missing"):
        run(script, "run", *TINY)
