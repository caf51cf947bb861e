"""Two processes train as one does: data parallel, sharded (FSDP2), tensor parallel, streamed, resumed, pre-empted. On the CPU, by gloo."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.checkpoints import newest_complete_checkpoint
from gpt_scratch.verify_checkpoint import EQUAL, verify_checkpoint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEXT = "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. The cat sat on the mat.\n"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--config_file",
    str(ROOT / "scripts/configs/accelerate/cpu.yaml"),
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
COMMON = ["--use_cpu", "--disable_tqdm", "true", "--logging_steps", "1", "--max_steps", "8", "--save_strategy", "steps", "--save_steps", "3",
          "--eval_strategy", "steps", "--eval_steps", "4", "--learning_rate", "1e-3"]  # fmt: skip
PRETRAIN = ["scripts/pretrain.py", *COMMON, "--block_size", "32", "--config_overrides", "n_embd=32,n_layer=2,n_head=2,drop_rate=0",
            "--sample_tokens", "4"]  # fmt: skip
CLASSIFY = ["scripts/finetune_classifier.py", *COMMON, "--trainable", "all", "--vocab_size", "300",
            "--config_overrides", "n_embd=32,n_layer=2,n_head=2,n_positions=64,drop_rate=0"]  # fmt: skip


def launch(launcher: list[str], *arguments: str, status: int = 0) -> str:
    done = subprocess.run(
        [*launcher, *arguments], capture_output=True, text=True, timeout=400, check=False, env=ENVIRONMENT, cwd=ROOT
    )
    assert done.returncode == status, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "text.txt").write_text(TEXT * 60, encoding="utf-8")
    rows = [json.dumps({"text": f"{i} " + TEXT * (1 + i % 3)}) for i in range(60)]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    messages = [f"message {i} {'x ' * (i % 7)}of {'ham' if i % 3 else 'spam'},{'ham' if i % 3 else 'spam'}" for i in range(150)]
    (folder / "sms.csv").write_text("\n".join(["text,label", *messages]), encoding="utf-8")
    tokenizer = train_byte_level_bpe([TEXT], vocab_size=300)
    shape = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "drop_rate": 0.0}
    families = {
        "gpt2": {"qkv_bias": True},
        "llama": {"position_embedding_type": "rope", "norm_type": "rmsnorm", "mlp_type": "gated", "hidden_act": "silu",
                  "num_key_value_heads": 2, "o_bias": False, "mlp_bias": False, "tie_word_embeddings": False},
    }  # fmt: skip
    torch.manual_seed(0)
    for family, choices in families.items():
        model = GPTScratchForCausalLM(GPTScratchConfig(**shape, **choices, initializer_range=0.2))
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # so that a bias added twice is seen
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / family)
        tokenizer.save_pretrained(folder / family)
    return folder


def losses(output: Path, name: str = "loss") -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [entry[name] for entry in history if name in entry]


def largest_difference(first: Path, second: Path) -> float:
    a, b = (load_file(folder / "model.safetensors") for folder in (first, second))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


RUNS = {
    "pretrain": [*PRETRAIN, "--train_file", "text.txt", "--vocab_size", "300"],
    "streaming": [
        *PRETRAIN,
        "--train_file",
        "rows.jsonl",
        "--tokenizer_name",
        "gpt2",
        "--streaming",
        "--validation_documents",
        "5",
    ],
    "classifier": [*CLASSIFY, "--train_file", "sms.csv"],
    "class_weights": [*CLASSIFY, "--train_file", "sms.csv", "--class_weights"],
}


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(data, tmp_path, name):
    """Eight rows a step: in one batch, in two accumulated, in one of four in each process, and in two of two in each."""
    argv = [str(data / word) if (data / word).exists() else word for word in RUNS[name]]
    ways = {
        "one": ([sys.executable], "8", "1"),
        "accumulated": ([sys.executable], "4", "2"),
        "two": (TORCHRUN, "4", "1"),
        "two_accumulated": (ACCELERATE, "2", "2"),
    }
    for way, (launcher, batch, accumulation) in ways.items():
        launch(launcher, *argv, "--output_dir", str(tmp_path / way), "--per_device_train_batch_size", batch,
               "--gradient_accumulation_steps", accumulation)  # fmt: skip
    print(f"\n{name}: steps {' '.join(str(step) for step in range(1, 9))}")
    for way in ways:
        curve, difference = losses(tmp_path / way), largest_difference(tmp_path / way, tmp_path / "one")
        print(f"{way}: {' '.join(f'{loss:.6f}' for loss in curve)}; largest difference of a weight {difference:.1e}")
        assert len(curve) == 8
        torch.testing.assert_close(curve, losses(tmp_path / "one"), atol=1e-5, rtol=0)
        assert difference < 1e-5
        assert verify_checkpoint(str(tmp_path / way)).status == EQUAL
        if "class" not in name:  # Trainer's own, of the classifier, counts some rows twice where they do not come out even
            torch.testing.assert_close(
                losses(tmp_path / way, "eval_loss"), losses(tmp_path / "one", "eval_loss"), atol=1e-5, rtol=0
            )
    assert losses(tmp_path / "one")[0] - losses(tmp_path / "one")[-1] > 0.05  # the weights have moved


@pytest.mark.parametrize("name", ["pretrain", "streaming"])
def test_two_processes_resume_exactly(data, tmp_path, name):
    """Within an epoch, with dropout; and after SIGTERM, which ends both at the same step."""
    argv = [str(data / word) if (data / word).exists() else word.replace("drop_rate=0", "drop_rate=0.1") for word in RUNS[name]]
    argv += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--save_total_limit", "9"]
    whole, resumed, stopped = (["--output_dir", str(tmp_path / way)] for way in ("whole", "resumed", "stopped"))
    launch(TORCHRUN, *argv, *whole)
    launch(TORCHRUN, *argv, *resumed, "--resume_from_checkpoint", str(tmp_path / "whole" / "checkpoint-3"))
    assert largest_difference(tmp_path / "whole", tmp_path / "resumed") == 0

    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([*TORCHRUN, *argv, *stopped], stdout=log, stderr=log, env=ENVIRONMENT, cwd=ROOT)
        while process.poll() is None and not (tmp_path / "stopped" / "checkpoint-3").exists():
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)  # torchrun hands it on to both
        process.wait(120)
    told = (tmp_path / "log").read_text()
    assert process.returncode != 0, told[-3000:]
    found = re.search(r"stopped by SIGTERM after step (\d) of 8", told)
    assert found, told[-3000:]
    assert newest_complete_checkpoint(str(tmp_path / "stopped")) == str(tmp_path / "stopped" / f"checkpoint-{found[1]}")
    launch(TORCHRUN, *argv, *stopped, "--resume_from_checkpoint", "latest")
    assert largest_difference(tmp_path / "whole", tmp_path / "stopped") == 0


def test_sharded_models_and_streams(data):
    told = [json.loads(line) for line in launch(TORCHRUN, str(Path(__file__).with_name("distributed_worker.py")), str(data)).splitlines()
            if line.startswith("{")]  # fmt: skip
    assert [result["check"] for result in told] == ["fsdp", "fsdp", "tensor_parallel", "tensor_parallel", "stream"]
    for result in told:
        print(result)
        if result["check"] == "fsdp":
            assert result["share"] == pytest.approx(0.5, abs=0.01) and max(*result["losses"], result["weights"]) < 1e-5
        elif result["check"] == "tensor_parallel":
            assert result["share"] == 0.5 and result["logits"] < 1e-5
        else:
            assert result["equal"] and result["repeated"] == 0 and result["rows"] > 100
