"""A run resumes only from a complete checkpoint of its own: damaged, hostile and foreign ones end in one line before the first step.

All runs are forks of one process, see survival_driver.py; so a segmentation fault is a status and not the end of the tests.
"""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bounds import run_bounded
from safetensors.torch import load_file, save_file

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.checkpoints import MANIFEST
from gpt_scratch.training.made_with import FILE

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks")

ROOT = Path(__file__).resolve().parents[2]

SECONDS, MEBIBYTES = 20, 2000  # the driver and the run, which share most pages, both counted

TEXT = "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. The cat sat on the mat.\n"

COMMON = ["--use_cpu", "--disable_tqdm", "true", "--logging_steps", "2", "--save_strategy", "steps", "--save_steps", "2", "--eval_strategy",
          "no", "--save_total_limit", "9"]  # fmt: skip

RUNS = {
    "pretrain": ("pretrain", [*COMMON, "--config_overrides", "n_embd=16,n_layer=1,n_head=2", "--block_size", "16", "--vocab_size", "280",
                              "--sample_tokens", "0", "--per_device_train_batch_size", "4", "--train_file", "TEXT", "--max_steps", "4"]),
    "epochs": ("pretrain", [*COMMON, "--config_overrides", "n_embd=16,n_layer=1,n_head=2", "--block_size", "64", "--vocab_size", "280",
                            "--sample_tokens", "0", "--per_device_train_batch_size", "4", "--train_file", "TEXT", "--num_train_epochs", "2"]),
    "lora": ("finetune_instructions", [*COMMON, "--train_file", "RECORDS", "--model_name_or_path", "BASE", "--trainable", "lora",
             "--per_device_train_batch_size", "4", "--sample_replies", "0", "--max_steps", "4"]),
    "classifier": ("finetune_classifier", [*COMMON, "--train_file", "LABELLED", "--config_overrides", "n_embd=16,n_layer=1,n_head=2,n_positions=32",
                   "--vocab_size", "280", "--trainable", "all", "--per_device_train_batch_size", "8", "--max_steps", "4"]),
}  # fmt: skip


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


def replace(name: str, value) -> object:
    """Write another object by `torch.save`, or bytes as they are."""

    def damage(folder: Path) -> None:
        if isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            torch.save(value, folder / name)

    return damage


def edit(name: str, change) -> object:
    def damage(folder: Path) -> None:
        content = torch.load(folder / name, weights_only=True)
        change(content)
        torch.save(content, folder / name)

    return damage


def edit_json(name: str, **changes) -> object:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | changes), encoding="utf-8")

    return damage


def text(name: str, content: str) -> object:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def tensors(change, name: str = "model.safetensors") -> object:
    def damage(folder: Path) -> None:
        content = load_file(folder / name)
        change(content)
        save_file(content, folder / name, {"format": "pt"})

    return damage


def grow(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(*(size + 3 for size in tensor.shape))


def first_state(content: dict) -> dict:
    return next(iter(content["state"].values()))


def callback(name: str, **args) -> dict:
    return {"stateful_callbacks": {name: {"args": args, "attributes": {}}}}


# What was tried: the run, what is done to its checkpoint, further flags, and words of the error.
FAULTS = {
    "an optimizer state of other shapes": ("pretrain", edit("optimizer.pt", lambda c: first_state(c).update(exp_avg=torch.zeros(3, 2))), [], "exp_avg has the shape (3, 2)"),
    "an optimizer state that is larger": ("pretrain", edit("optimizer.pt", lambda c: [s.update(exp_avg_sq=grow(s["exp_avg_sq"])) for s in c["state"].values()]), [], "exp_avg_sq has the shape"),
    "an optimizer state without a moment": ("pretrain", edit("optimizer.pt", lambda c: first_state(c).pop("exp_avg_sq")), [], "exp_avg_sq is missing"),
    "an optimizer state of whole numbers": ("pretrain", edit("optimizer.pt", lambda c: first_state(c).update(exp_avg=first_state(c)["exp_avg"].long())), [], "of type torch.int64"),
    "an optimizer state with a NaN": ("pretrain", edit("optimizer.pt", lambda c: first_state(c)["exp_avg"].fill_(torch.nan)), [], "contains NaN"),
    "an optimizer state of no parameter": ("pretrain", edit("optimizer.pt", lambda c: c["state"].clear()), [], "no state of any parameter"),
    "an optimizer state at step infinity": ("pretrain", edit("optimizer.pt", lambda c: first_state(c).update(step=torch.tensor(torch.inf))), [], "step is inf"),
    "an optimizer with a group too few": ("pretrain", edit("optimizer.pt", lambda c: c["param_groups"].pop()), [], "1 parameter groups"),
    "an optimizer with a learning rate that is a text": ("pretrain", edit("optimizer.pt", lambda c: c["param_groups"][0].update(lr="fast")), [], "lr is 'fast'"),
    "an optimizer with a learning rate that is NaN": ("pretrain", edit("optimizer.pt", lambda c: c["param_groups"][0].update(lr=torch.nan)), [], "lr is nan"),
    "an optimizer.pt that is a list": ("pretrain", replace("optimizer.pt", [1]), [], "it contains no state and param_groups"),
    "an optimizer.pt with code": ("pretrain", replace("optimizer.pt", pickle.dumps(Evil())), [], "optimizer.pt cannot be read"),
    "an optimizer.pt with code in a zip": ("pretrain", replace("optimizer.pt", Evil()), [], "optimizer.pt cannot be read"),
    "an optimizer.pt of zeros": ("pretrain", replace("optimizer.pt", bytes(5000)), [], "optimizer.pt cannot be read"),
    "half of an optimizer.pt": ("pretrain", lambda f: os.truncate(f / "optimizer.pt", (f / "optimizer.pt").stat().st_size // 2), [], "optimizer.pt cannot be read"),
    "no optimizer.pt": ("pretrain", lambda f: (f / "optimizer.pt").unlink(), [], "it contains no optimizer.pt"),
    "a scheduler.pt with code": ("pretrain", replace("scheduler.pt", pickle.dumps(Evil())), [], "scheduler.pt cannot be read"),
    "a scheduler.pt that is a number": ("pretrain", replace("scheduler.pt", 7), [], "scheduler.pt is not a mapping"),
    "a scheduler.pt that replaces a method": ("pretrain", edit("scheduler.pt", lambda c: c.update(step=7)), [], "has 'step'"),
    "a scheduler.pt at step infinity": ("pretrain", edit("scheduler.pt", lambda c: c.update(last_epoch=torch.inf)), [], "last_epoch is inf"),
    "a rng_state.pth with code": ("pretrain", replace("rng_state.pth", pickle.dumps(Evil())), [], "rng_state cannot be read"),
    "a rng_state.pth of another form": ("pretrain", replace("rng_state.pth", {"python": 1}), [], "rng_state cannot be read"),
    "a trainer_state at step 10^9": ("pretrain", edit_json("trainer_state.json", global_step=10**9), [], "trainer_state.json is of step 1,000,000,000"),
    "a trainer_state at step 10^9 in a directory of that name": ("pretrain 1000000000", edit_json("trainer_state.json", global_step=10**9), [], "nothing is left to train"),
    "a trainer_state at step -1": ("pretrain", edit_json("trainer_state.json", global_step=-1), [], "global_step has the invalid value '-1'"),
    "a trainer_state at a step that is a text": ("pretrain", edit_json("trainer_state.json", global_step="2"), [], "global_step has the invalid value '2'"),
    "a trainer_state at epoch NaN": ("pretrain", edit_json("trainer_state.json", epoch=float("nan")), [], "epoch has the invalid value 'nan'"),
    "a trainer_state that is a list": ("pretrain", text("trainer_state.json", "[]"), [], "must hold a JSON object"),
    "a trainer_state nested 200,000 deep": ("pretrain", text("trainer_state.json", "[" * 200_000), [], "nested too deeply"),
    "a trainer_state with a log of numbers": ("pretrain", edit_json("trainer_state.json", log_history=[1]), [], "log_history must be"),
    "a trainer_state with an unknown key": ("pretrain", edit_json("trainer_state.json", evil=1), [], "evil"),
    "a trainer_state with a callback of another form": ("pretrain", edit_json("trainer_state.json", **callback("TrainerControl", should_save="x")), [], "should_save"),
    "a checkpoint without a tensor": ("pretrain", tensors(lambda t: t.pop("model.norm.weight")), [], "its weights lack model.norm.weight"),
    "a checkpoint with a NaN": ("pretrain", tensors(lambda t: t["model.norm.weight"].fill_(torch.nan)), [], "contains NaN"),
    "a checkpoint with a tensor of another shape": ("pretrain", tensors(lambda t: t.update({"model.norm.weight": torch.ones(9)})), [], "model.norm.weight has the shape (9,)"),
    "a checkpoint of a compiled model": ("pretrain", tensors(lambda t: [t.update({f"_orig_mod.{n}": t.pop(n)}) for n in list(t)]), [], "its weights lack"),
    "a checkpoint without tensors": ("pretrain", tensors(dict.clear), [], "its weights lack"),
    "truncated weights of a checkpoint": ("pretrain", lambda f: os.truncate(f / "model.safetensors", 3000), [], "checkpoint-2"),
    "an adapter's checkpoint without a tensor": ("lora", tensors(lambda t: t.pop(next(n for n in t if "lora_A" in n)), "adapter_model.safetensors"), [], "its weights lack"),
    "an adapter's checkpoint with a NaN": ("lora", tensors(lambda t: next(iter(t.values())).fill_(torch.nan), "adapter_model.safetensors"), [], "contains NaN"),
    "an adapter's checkpoint without weights": ("lora", lambda f: (f / "adapter_model.safetensors").unlink(), [], "contains no adapter_model.safetensors"),
    "an adapter's checkpoint with a configuration that is a list": ("lora", text("adapter_config.json", "[]"), [], "must hold a JSON object"),
    "an adapter's checkpoint of another rank": ("lora", lambda f: None, ["--lora_rank", "3"], "other trained parameters"),
    "a made_with.json that is a list": ("pretrain", text(FILE, "[]"), [], f"{FILE} must hold a JSON object"),
}  # fmt: skip

# Of the user's own making: another run than the one that was begun.
CHANGES = {
    "another text": ("pretrain", ["--train_file", "OTHER"], "other training data"),
    "a text that has grown": ("pretrain", ["--train_file", "GROWN"], "other training data (rows "),
    "another tokenizer": ("pretrain", ["--tokenizer_name", "BASE"], "another tokenizer"),
    "another seed": ("pretrain", ["--seed", "7"], "another seed (seed 42 before, 7 now)"),
    "another number of heads": ("pretrain", ["--config_overrides", "n_embd=16,n_layer=1,n_head=4"], "another architecture ("),
    "another width": ("pretrain", ["--config_overrides", "n_embd=32,n_layer=1,n_head=2"], "another architecture ("),
    "a larger batch": ("epochs", ["--per_device_train_batch_size", "8"], "made with 4 rows per step, now it would be 8"),
    "fewer epochs": ("epochs 10", ["--num_train_epochs", "1"], "nothing is left to train"),
    "other classes": ("classifier", ["--class_names", "spam", "ham"], "other classes"),
    "a file with a class more": ("classifier", ["--train_file", "THREE"], "other classes"),
    "what is trained": ("classifier", ["--trainable", "head"], "other trained parameters"),
    "an adapter for a whole model": ("lora", ["--trainable", "all"], "other trained parameters"),
}

ALLOWED = {
    "a learning rate": ("pretrain", ["--learning_rate", "1e-4"], "learning_rate: 0.005 before, 0.0001 now"),
    "more steps": ("pretrain", ["--max_steps", "6"], "max_steps: 4 before, 6 now"),
    "a batch, with a number of steps": ("pretrain", ["--per_device_train_batch_size", "2"], "rows per step: 4 before, 2 now"),
    "the same batch in other pieces": (
        "epochs", ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2"], "everything is in"),
    "nothing": ("classifier", [], "everything is in"),
    "no made_with.json": ("lora", [], f"contains no {FILE}"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    (root / "text.txt").write_text(TEXT * 30, encoding="utf-8")
    (root / "other.txt").write_text((TEXT * 30).replace("Anna", "Emma"), encoding="utf-8")
    (root / "grown.txt").write_text(TEXT * 30 + "Then the boats came home. " * 40, encoding="utf-8")
    for name, labels in (("labelled", ["ham", "spam"]), ("three", ["eggs", "ham", "spam"])):
        rows = [f"message {i} of {labels[i % len(labels)]},{labels[i % len(labels)]}\n" for i in range(60)]
        (root / f"{name}.csv").write_text("text,label\n" + "".join(rows), encoding="utf-8")
    records = [{"instruction": f"Name colour {i}.", "input": "", "output": f"It is {i}."} for i in range(40)]
    (root / "records.json").write_text(json.dumps(records), encoding="utf-8")
    tokenizer = train_byte_level_bpe([TEXT], vocab_size=290)
    torch.manual_seed(0)
    GPTScratchForCausalLM(
        GPTScratchConfig(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=160)
    ).save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    return root


def drive(folder: Path, jobs: list[tuple[str, Path, list[str]]], seconds: float) -> list[dict]:
    """Status, seconds and log of each run: name in RUNS, output directory, further flags."""
    names = {"TEXT": "text.txt", "OTHER": "other.txt", "GROWN": "grown.txt", "LABELLED": "labelled.csv", "THREE": "three.csv",
             "RECORDS": "records.json", "BASE": "base"}  # fmt: skip
    lines = []
    for number, (name, output, flags) in enumerate(jobs):
        script, argv = RUNS[name]
        argv = [str(folder / names[word]) if word in names else word for word in [*argv, *flags]]
        lines.append(
            json.dumps({"script": script, "argv": [*argv, "--output_dir", str(output)], "log": f"{output}.{number}.log"})
        )
    environment = {"PYTHONPATH": str(ROOT), "HF_DATASETS_CACHE": str(folder / "cache")}
    driver = [sys.executable, Path(__file__).with_name("survival_driver.py")]
    outcome = run_bounded(driver, seconds, MEBIBYTES, cwd=folder, env=environment, stdin="\n".join(lines) + "\n")
    assert outcome.exceeded is None, (outcome.exceeded, outcome.stdout[-500:])
    answers = [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("{")]
    assert len(answers) == len(jobs), outcome.stderr[-2000:]
    logs = [Path(f"{output}.{number}.log").read_text(encoding="utf-8") for number, (_, output, _) in enumerate(jobs)]
    return [answer | {"log": log} for answer, log in zip(answers, logs)]


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, dict]:
    """How each resumed run ended."""
    whole = {name: folder / f"whole-{name}" for name in RUNS}
    for name, answer in zip(RUNS, drive(folder, [(name, output, []) for name, output in whole.items()], 200)):
        assert answer["status"] == 0, (name, answer["log"][-3000:])
    everything = [(what, run, damage, flags) for what, (run, damage, flags, _) in FAULTS.items()]
    everything += [(what, run, lambda f: None, flags) for what, (run, flags, _) in (CHANGES | ALLOWED).items()]
    jobs = []
    for number, (what, run, damage, flags) in enumerate(everything):
        name, _, step = run.partition(" ")
        output = folder / f"run-{number}"
        source = int(step) if step and (whole[name] / f"checkpoint-{step}").is_dir() else 2
        checkpoint = output / f"checkpoint-{step or source}"
        shutil.copytree(whole[name] / f"checkpoint-{source}", checkpoint)
        (checkpoint / MANIFEST).unlink()  # as from a plain Trainer: only the content shows the damage
        if what == "no made_with.json":
            (checkpoint / FILE).unlink()
        damage(checkpoint)
        jobs.append((name, output, ["--resume_from_checkpoint", str(checkpoint), *flags]))
    answers = drive(folder, jobs, 400)
    assert not (folder / "executed").exists(), "code was executed"
    return {what: answer | {"output": job[1]} for (what, *_), job, answer in zip(everything, jobs, answers)}


def check_refused(answer: dict, words: str) -> None:
    assert answer["status"] == 2, (answer["status"], answer["log"][-3000:])
    last = answer["log"].strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last, last
    assert "Traceback" not in answer["log"] and "{'loss'" not in answer["log"], answer["log"][-3000:]
    assert answer["seconds"] < SECONDS
    assert len(list(answer["output"].glob("checkpoint-*"))) == 1 and not (answer["output"] / "README.md").exists()


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=pytest.mark.fault(what, seconds=SECONDS, mebibytes=MEBIBYTES)) for what in FAULTS]
)
@pytest.mark.thorough
def test_a_damaged_or_hostile_checkpoint_is_refused_before_the_first_step(ended, what):
    check_refused(ended[what], FAULTS[what][3])


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.thorough
def test_what_would_change_the_meaning_of_a_run_is_refused(ended, what):
    check_refused(ended[what], CHANGES[what][2])


@pytest.mark.parametrize("what", ALLOWED)
@pytest.mark.thorough
def test_allowed_changes_are_reported(ended, what):
    answer = ended[what]
    assert answer["status"] == 0, answer["log"][-3000:]
    assert ALLOWED[what][2] in answer["log"]
    if what in ("nothing", "the same batch in other pieces"):
        assert "note: since" not in answer["log"]
    elif what != "no made_with.json":
        # A learning rate that is given leaves the default schedule, too.
        assert answer["log"].count("note: since checkpoint-2: ") == (3 if what == "a learning rate" else 1)
