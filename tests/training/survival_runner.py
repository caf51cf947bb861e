"""Training runs in forks of one process, and the comparison of a resumed run with the one that was left alone."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.checkpoints import damage, newest_complete_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TEXT = "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. The cat sat on the mat.\n"
COMMON = ["--use_cpu", "--disable_tqdm", "true", "--logging_steps", "2", "--save_total_limit", "2", "--learning_rate", "1e-3"]
STEPS = ["--save_strategy", "steps", "--save_steps", "3", "--eval_strategy", "steps", "--eval_steps", "4"]
MODEL = "n_embd=32,n_layer=2,n_head=2,drop_rate=0.1"
PRETRAIN = [*COMMON, "--train_file", "TEXT", "--tokenizer_name", "BASE", "--config_overrides", MODEL, "--block_size", "32",
            "--per_device_train_batch_size", "4", "--sample_tokens", "4"]  # fmt: skip
# Each trains for 12 or 14 steps over more than one epoch, with dropout and in shuffled order where the data are not a stream.
RUNS = {
    "pretrain": ("pretrain", [*PRETRAIN, *STEPS, "--gradient_accumulation_steps", "2", "--max_steps", "14"]),
    "muon": ("pretrain", [*PRETRAIN, *STEPS, "--optimizer", "muon", "--max_steps", "14", "--eval_train_blocks", "2"]),
    "streaming": (
        "pretrain",
        [*PRETRAIN, *STEPS, "--streaming", "--train_file", "ROWS", "--validation_file", "TEXT", "--gradient_accumulation_steps", "2",
         "--max_steps", "14"],
    ),
    "best": (
        "pretrain",
        [*PRETRAIN, "--save_strategy", "epoch", "--eval_strategy", "epoch", "--num_train_epochs", "3",
         "--gradient_accumulation_steps", "3", "--early_stopping_patience", "2", "--save_total_limit", "1"],
    ),
    "stopped": (  # early, since it learns nothing
        "pretrain",
        [*PRETRAIN, *STEPS, "--learning_rate", "0", "--max_steps", "60", "--early_stopping_patience", "1"],
    ),
    "classifier": (
        "finetune_classifier",
        [*COMMON, *STEPS, "--train_file", "SMS", "--model_name_or_path", "BASE", "--config_overrides", "drop_rate=0.1", "--trainable",
         "all", "--per_device_train_batch_size", "8", "--gradient_accumulation_steps", "2", "--max_steps", "12"],
    ),
    "instructions": (
        "finetune_instructions",
        [*COMMON, *STEPS, "--train_file", "RECORDS", "--model_name_or_path", "BASE", "--prompt_style", "phi3", "--config_overrides", "drop_rate=0.1",
         "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2", "--max_steps", "12", "--sample_tokens", "4"],
    ),
    "lora_packed": (
        "finetune_instructions",
        [*COMMON, *STEPS, "--train_file", "RECORDS", "--model_name_or_path", "BASE", "--prompt_style", "phi3", "--config_overrides", "drop_rate=0.1",
         "--trainable", "lora", "--lora_rank", "4", "--packing", "--pack_length", "200", "--per_device_train_batch_size", "2", "--max_steps", "12",
         "--sample_tokens", "4"],
    ),
    "dpo": (
        "finetune_preferences",
        ["dpo", *COMMON, *STEPS, "--train_file", "PAIRS", "--model_name_or_path", "BASE", "--per_device_train_batch_size", "4", "--max_steps", "12",
         "--report_to", "none", "--gradient_checkpointing", "false", "--bf16", "false", "--max_length", "200"],
    ),
}  # fmt: skip


class Runner:
    """Training runs in forks of one process, see survival_driver.py."""

    def __init__(self, root: Path, names: dict[str, str]):
        self.root, self.names, self.whole_runs = root, names, {}
        self.faults: list[tuple[str, Path]] = []
        self.survived: Counter[str] = Counter()
        self.bytes_lost = 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("survival_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(root / "cache")},
        )

    def __call__(self, name: str, output: Path, *flags: str, kill: dict | None = None, after: float | None = None) -> dict:
        script, argv = RUNS[name]
        argv = [self.names.get(word, word) for word in argv] + ["--output_dir", str(output), *flags]
        log = output.parent / f"{output.name}.log"
        log.unlink(missing_ok=True)
        self.process.stdin.write(
            json.dumps({"script": script, "argv": argv, "log": str(log), "kill": kill, "after": after}) + "\n"
        )
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        if (kill or after) and answer["status"]:
            self.faults.append((kill["place"] if kill else "any moment", output))
        return answer | {"log": log.read_text(encoding="utf-8")}

    def resume(self, name: str, output: Path, **how) -> dict:
        """Resume, or start where nothing was saved."""
        return self(
            name, output, *(["--resume_from_checkpoint", "latest"] if newest_complete_checkpoint(str(output)) else []), **how
        )

    def whole(self, name: str) -> Path:
        """The output directory of the run that was left alone."""
        if name not in self.whole_runs:
            output = self.root / f"whole-{name}"
            done = self(name, output)
            assert done["status"] == 0, done["log"][-3000:]
            self.whole_runs[name] = output
        return self.whole_runs[name]

    def assert_same(self, output: Path, name: str) -> None:
        """The run ended with the weights of the run that was left alone."""
        assert_same(output, self.whole(name))
        self.survived.update(place for place, where in self.faults if where == output)

    def table(self) -> str:
        """Faults by kind, for the record."""
        tried = Counter(place for place, _ in self.faults)
        return "\n".join(f"| {place} | {tried[place]} | {self.survived[place]} |" for place in sorted(tried))


def curve(output: Path) -> list[tuple]:
    history = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return [(entry["step"], entry["eval_loss"]) for entry in history if "eval_loss" in entry]


def assert_same(ended: Path, whole: Path) -> None:
    """Weights bit for bit, and the losses of every evaluation."""
    assert (ended / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert curve(ended) == curve(whole)
    assert not list(ended.glob(".*checkpoint*"))
    assert all(damage(checkpoint) is None for checkpoint in ended.glob("checkpoint-*"))


def write_inputs(root: Path) -> dict[str, str]:
    """The data and the model that all runs begin with; their paths by the names in `RUNS`."""
    names = {name: str(root / file) for name, file in
             {"TEXT": "text.txt", "ROWS": "rows.jsonl", "SMS": "sms.csv", "RECORDS": "records.json", "PAIRS": "pairs.json", "BASE": "base"}.items()}  # fmt: skip
    (root / "text.txt").write_text(TEXT * 50, encoding="utf-8")
    (root / "rows.jsonl").write_text((json.dumps({"text": TEXT * 4}) + "\n") * 6, encoding="utf-8")
    (root / "sms.csv").write_text(
        "text,label\n"
        + "".join(f"message {i} of {'spam' if i % 2 else 'ham'},{'spam' if i % 2 else 'ham'}\n" for i in range(120)),
        encoding="utf-8",
    )
    things = {"snow": "white", "coal": "black", "grass": "green", "blood": "red"}
    records = [
        {"instruction": f"Name the colour of {t} {i}.", "input": "", "output": c} for i in range(16) for t, c in things.items()
    ]
    (root / "records.json").write_text(json.dumps(records), encoding="utf-8")
    pairs = [{"instruction": f"Name the colour of {t} {i}.", "input": "", "output": c, "chosen": c, "rejected": f"not {c}"}
             for i in range(16) for t, c in things.items()]  # fmt: skip
    (root / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    tokenizer = train_byte_level_bpe([TEXT], vocab_size=300)
    torch.manual_seed(0)
    GPTScratchForCausalLM(
        GPTScratchConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=256)
    ).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return names
