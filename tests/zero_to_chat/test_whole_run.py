"""All stages in one command, very small: each writes what the next one reads, and random kills change no weight."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from gpt_scratch.errors import UserError

pytest.importorskip("trl")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = ROOT / "gpt_scratch" / "data" / "samples"


def write(path: Path, lines: Iterable[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Stories, and questions answered by yes or no at random, so that replies are sometimes rewarded however little a model learns."""
    folder, flags, rng = tmp_path_factory.mktemp("files"), ["--pretraining_file"], random.Random(1)
    stories = (SAMPLES / "stories.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    flags.append(write(folder / "stories.jsonl", stories))
    numbers = iter(range(10_000))
    for part, count in {"instruction": 1280, "reinforcement": 64, "validation": 64, "test": 64}.items():
        rows = [{"instruction": f"Is {next(numbers)} red?", "output": rng.choice(["yes", "no"])} for _ in range(count)]
        flags += [f"--{part}_file", write(folder / f"{part}.jsonl", map(json.dumps, rows))]
    return flags


def start(output: Path, files: list[str]) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "scripts" / "zero_to_chat.py"), "--size", "2", "--samples", "2", "--no_chat"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*command, *files, "--output_dir", str(output)], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, files) -> tuple[Path, float]:
    """A run that was left alone, and its seconds."""
    output, begin = tmp_path_factory.mktemp("whole") / "run", time.monotonic()
    process = start(output, files)
    said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said
    assert "held-out questions" in said and "[7/7] evaluation after reinforcement" in said
    return output, time.monotonic() - begin


def weights(output: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((output / name / "model.safetensors").read_bytes()).hexdigest()
        for name in ("pretrained", "instructed", "reinforced")
    }


def test_every_stage_writes_its_output(whole):
    output, _ = whole
    report = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert [stage["attempts"] for stage in report["stages"]] == [1] * 7
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 2**27 for stage in report["stages"])
    assert all(report["accuracy"][name]["accuracy"]["count"] == 64 for name in ("pretrained", "instructed", "reinforced"))
    assert len(set(weights(output).values())) == 3
    assert report["pretraining"]["validation_bits_per_byte"] > 0 and len(report["replies"]) > 0
    assert (output / "report.html").stat().st_size > 50_000
    assert "Results" in (output / "reinforced" / "README.md").read_text(encoding="utf-8")


def test_kills_at_random_change_no_weight(whole, files, tmp_path):
    output, seconds = whole
    rng, killed = random.Random(int(os.environ.get("GPT_SCRATCH_SEED", "1"))), tmp_path / "run"
    for _ in range(3):
        process = start(killed, files)
        try:
            process.communicate(timeout=rng.uniform(0.15, 0.6) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    process = start(killed, files)
    said, _ = process.communicate(timeout=3600)
    assert process.returncode == 0, said
    assert weights(killed) == weights(output)


def test_a_test_question_that_is_learned_is_refused(script, files, tmp_path):
    module = script("zero_to_chat")
    flags = dict(zip(files[::2], files[1::2]))
    flags["--test_file"] = flags["--instruction_file"]
    words = [word for pair in flags.items() for word in pair]
    with pytest.raises(UserError, match="row 0 is also a question of --instruction_file"):
        module.main(module.parse(["--size", "2", "--no_chat", *words, "--output_dir", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()
