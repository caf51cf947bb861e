"""End to end, small: from text to a directory that the ecosystem loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from old_releases import assert_old_releases_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_scratch import GPTScratchConfig
from gpt_scratch.errors import UserError
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments, parse_config_overrides
from gpt_scratch.training.pretraining import PretrainingArguments
from gpt_scratch.verify_checkpoint import EQUAL, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TEXT = "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. The cat sat on the mat.\n" * 60
TINY = ["--config_overrides", "n_embd=32,n_layer=2,n_head=2,drop_rate=0.1", "--block_size", "32", "--vocab_size", "300",
        "--per_device_train_batch_size", "8", "--use_cpu", "--logging_steps", "5", "--disable_tqdm", "true"]  # fmt: skip


def run(script, *argv: str) -> dict:
    return script("pretrain").main(*parse_arguments((PretrainingArguments, ScratchTrainingArguments), [*TINY, *argv]))


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def finished(script, text_file, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "model"
    record = run(script, "--train_file", text_file, "--output_dir", str(output), "--num_train_epochs", "6", "--learning_rate", "1e-2",
                 "--eval_on_start", "--eval_train_blocks", "4", "--sample_tokens", "8", "--seed", "1")  # fmt: skip
    return output, record


def test_the_loss_falls_and_is_reported(finished):
    _, record = finished
    metrics = record["metrics"]
    assert metrics["validation_loss"] < metrics["curve"][0]["eval_loss"] - 2
    assert metrics["train_loss"] < metrics["validation_loss"] + 0.5
    assert metrics["tokens_seen"] == metrics["steps"] * 8 * 32 or metrics["tokens_seen"] < metrics["steps"] * 8 * 32
    assert metrics["train_tokens_per_second"] > 0 and metrics["best_validation_loss"] <= metrics["curve"][1]["eval_loss"]
    assert metrics["data"]["train"]["tokens"] > 1000


def test_the_directory_is_whole(finished):
    output, record = finished
    files = {path.name for path in output.iterdir()}
    assert files >= {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "README.md",
                     "metrics.json", "trainer_state.json", "samples.jsonl", "loss.png", "loss.pdf", "configuration_gpt_scratch.py",
                     "modeling_gpt_scratch.py", "reference_outputs.json"}  # fmt: skip
    assert_old_releases_open(output)
    assert json.loads((output / "metrics.json").read_text(encoding="utf-8")) == json.loads(json.dumps(record))
    assert verify_checkpoint(str(output)).status == EQUAL
    for file in ("metrics.json", "README.md", "reference_outputs.json"):
        assert str(output.parent.parent) not in (output / file).read_text(encoding="utf-8")  # no path of this machine
    card = (output / "README.md").read_text(encoding="utf-8")
    assert 'python -m gpt_scratch.verify_checkpoint "PATH_OR_NAME"' in card
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["pipeline_tag"] == "text-generation" and metadata["library_name"] == "transformers"
    value = metadata["model-index"][0]["results"][0]["metrics"][0]["value"]
    assert value == round(record["metrics"]["validation_loss"], 4)


def test_auto_classes_load_what_was_trained(finished):
    output, record = finished
    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    assert model.config.eos_token_id == tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer(TEXT[:400], return_tensors="pt")["input_ids"][:, :32]
    with torch.no_grad():
        assert model(ids, labels=ids).loss < 2.5
    text = tokenizer.decode(model.generate(ids[:, :8], max_new_tokens=8, do_sample=False)[0])
    assert text.startswith("One day")


@pytest.mark.thorough
def test_every_trainable_parameter_moved(script, text_file, tmp_path):
    """A training step that misses a parameter would go unnoticed in the loss."""
    output = tmp_path / "model"
    run(
        script, "--train_file", text_file, "--output_dir", str(output), "--max_steps", "2", "--eval_strategy", "no", "--seed", "1"
    )
    trained = AutoModelForCausalLM.from_pretrained(output)
    torch.manual_seed(1)
    fresh = type(trained)(trained.config)
    for (name, new), (_, old) in zip(trained.named_parameters(), fresh.named_parameters()):
        assert not torch.equal(new, old), name
        assert torch.isfinite(new).all(), name


@pytest.mark.thorough
def test_accumulated_small_batches_give_the_weights_of_one_large_batch(script, text_file, tmp_path):
    weights = []
    for name, flags in {
        "large": [],
        "small": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"],
    }.items():
        run(script, "--train_file", text_file, "--output_dir", str(tmp_path / name), "--max_steps", "3", "--eval_strategy", "no",
            "--config_overrides", "n_embd=32,n_layer=2,n_head=2,drop_rate=0", *flags)  # fmt: skip
        weights.append(AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.quick_cases("adamw")
def test_resuming_ends_with_the_same_weights(script, text_file, tmp_path, optimizer):
    common = [
        "--optimizer",
        optimizer,
        "--train_file",
        text_file,
        "--max_steps",
        "6",
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
        "--eval_strategy",
        "no",
    ]
    run(script, *common, "--output_dir", str(tmp_path / "whole"))
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    assert_old_releases_open(checkpoint)
    run(script, *common, "--output_dir", str(tmp_path / "resumed"), "--resume_from_checkpoint", str(checkpoint))
    whole, resumed = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.thorough
def test_streamed_training_sees_the_rows_of_training_in_memory(script, finished, text_file, tmp_path):
    """One epoch without shuffling is the same work either way."""
    tokenizer = str(finished[0])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line + " " + line}) + "\n" for line in TEXT.splitlines()), encoding="utf-8")
    common = ["--train_file", str(rows), "--tokenizer_name", tokenizer, "--validation_file", text_file, "--max_steps", "4",
              "--train_sampling_strategy", "sequential", "--eval_strategy", "no"]  # fmt: skip
    run(script, *common, "--output_dir", str(tmp_path / "memory"))
    run(script, *common, "--output_dir", str(tmp_path / "stream"), "--streaming")
    memory, stream = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("memory", "stream"))
    assert all(torch.equal(memory[name], stream[name]) for name in memory)


@pytest.mark.thorough
def test_flags_that_must_work_together(script, text_file, tmp_path):
    record = run(script, "--train_file", text_file, "--output_dir", str(tmp_path / "out"), "--num_train_epochs", "4", "--bf16",
                 "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--lr_scheduler_type", "cosine", "--warmup_steps", "3",
                 "--max_grad_norm", "0.5", "--early_stopping_patience", "2", "--save_strategy", "epoch", "--weight_decay", "0.1",
                 "--weight_decay_on", "all", "--isolate_documents", "--stride", "16")  # fmt: skip
    assert record["metrics"]["validation_loss"] < 6
    assert record["training_arguments"]["bf16"] is True


@pytest.mark.thorough
def test_smoothed_labels_are_shifted(script, text_file, tmp_path):
    """Trainer's own smoothing would train each position to repeat its own token, and the held-out loss would not fall."""
    record = run(script, "--train_file", text_file, "--output_dir", str(tmp_path / "out"), "--num_train_epochs", "4", "--learning_rate",
                 "1e-2", "--label_smoothing_factor", "0.1", "--save_strategy", "no", "--sample_tokens", "0")  # fmt: skip
    assert record["metrics"]["validation_loss"] < 3


@pytest.mark.thorough
def test_a_data_set_by_name_with_its_own_validation_split(script, tmp_path):
    for split in ("train", "validation"):
        rows = [json.dumps({"id": i, "story": TEXT[i : i + 300]}) for i in range(0, 3000, 50)]
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    record = run(script, "--dataset_name", str(tmp_path / "data"), "--text_column", "story", "--output_dir", str(tmp_path / "out"),
                 "--max_steps", "2", "--save_strategy", "no", "--sample_tokens", "0")  # fmt: skip
    assert record["metrics"]["data"]["train"]["documents"] == record["metrics"]["data"]["validation"]["documents"] == 60


@pytest.mark.thorough
def test_training_continues_from_a_checkpoint_of_this_package(script, finished, text_file, tmp_path):
    output, before = finished
    flags = [flag for flag in TINY if not flag.startswith(("--config_overrides", "n_embd"))]
    parsed = parse_arguments(
        (PretrainingArguments, ScratchTrainingArguments),
        [
            *flags,
            "--train_file",
            text_file,
            "--model_name_or_path",
            str(output),
            "--output_dir",
            str(tmp_path / "more"),
            "--max_steps",
            "2",
        ],
    )
    record = script("pretrain").main(*parsed)
    assert record["metrics"]["validation_loss"] < before["metrics"]["curve"][1]["eval_loss"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_file", "missing.txt"], "missing.txt: no such file"),
        ([], "either --train_file or --dataset_name"),
        (["--train_file", "TEXT", "--muon_learning_rate", "0.1"], "--muon_learning_rate needs --optimizer muon"),
        (
            ["--train_file", "TEXT", "--optimizer", "muon", "--weight_decay_on", "all"],
            "--weight_decay_on all needs --optimizer adamw",
        ),
        (["--train_file", "TEXT", "--block_size", "50000"], "fewer than one block"),
        (["--train_file", "TEXT", "--tokenizer_name", "nowhere-at-all"], "nowhere-at-all: its tokenizer cannot be loaded"),
        (
            ["--train_file", "TEXT", "--tokenizer_name", "RUN", "--config_overrides", "vocab_size=50"],
            "but the model's vocab_size is 50",
        ),
        (["--train_file", "TEXT", "--config_overrides", "n_embd=30,n_head=4"], "hidden_size 30 is not a multiple"),
        (["--train_file", "TEXT", "--config_overrides", "n_embd=abc"], "must be of type int"),
        (["--train_file", "TEXT", "--config_overrides", "n_embed=30"], "did you mean 'n_embd'"),
        (["--train_file", "TEXT", "--streaming", "--max_steps", "1"], "--streaming needs --tokenizer_name"),
        (["--train_file", "TEXT", "--resume_from_checkpoint", "latest"], "contains no complete checkpoint"),
        (["--train_file", "TEXT", "--output_dir", "RUN"], "already contains a run"),
        (["--train_file", "TEXT", "--output_dir", "TEXT"], "cannot write to"),
        (["--train_file", "TEXT", "--model_name_or_path", "RUN"], "--config_overrides is for new models"),
    ],
)
def test_bad_input_ends_before_training(script, finished, text_file, tmp_path, flags, message):
    names = {"TEXT": text_file, "RUN": str(finished[0])}
    flags = ["--output_dir", str(tmp_path / "out"), *(names.get(flag, flag) for flag in flags)]
    with pytest.raises(UserError, match=message) as error:
        run(script, *flags)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_the_script_itself_ends_with_one_line_and_status_2(tmp_path):
    command = [
        sys.executable,
        str(ROOT / "scripts" / "pretrain.py"),
        "--train_file",
        "missing.txt",
        "--output_dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and done.stderr.splitlines()[-1] == "error: missing.txt: no such file"


RECIPES = ROOT / "scripts" / "configs"


@pytest.mark.parametrize(
    "recipe",
    sorted(path for folder in (".", "tiny_shakespeare", "wikitext2") for path in (RECIPES / folder).glob("*.yaml")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_recipes_parse_and_describe_a_model(recipe, tmp_path):
    argv = [str(recipe), "--output_dir", str(tmp_path), "--bf16", "false", "--tf32", "false"]
    arguments, _ = parse_arguments((PretrainingArguments, ScratchTrainingArguments), argv)
    GPTScratchConfig(**parse_config_overrides(arguments.config_overrides, GPTScratchConfig))
