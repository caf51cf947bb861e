"""The classifier from labelled texts to a pipeline, small: what trains, what stays, what is measured, what is refused."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from old_releases import assert_old_releases_open
from transformers import AutoModelForSequenceClassification, pipeline

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments
from gpt_scratch.verify_checkpoint import EQUAL, verify_checkpoint

ROOT = Path(__file__).resolve().parents[2]

COMMON = ["--use_cpu", "--disable_tqdm", "true", "--per_device_train_batch_size", "8", "--per_device_eval_batch_size", "16",
          "--save_strategy", "no", "--logging_steps", "5"]  # fmt: skip


def messages(count: int) -> list[tuple[str, str]]:
    rng = random.Random(0)
    ham = ["dinner at {}", "see you by {}", "call me when {} is there", "the {} was nice"]
    spam = ["win {} pounds now", "free {} call this number", "you won a {} prize", "claim your {} award"]
    words = ["noon", "five", "Anna", "river", "phone", "holiday", "home", "gold", "Tom", "rain"]
    return [
        (kind, rng.choice(texts).format(rng.choice(words)) + f" {i}")
        for i in range(count)
        for kind, texts in (("ham", ham), ("spam", spam))
    ]


@pytest.fixture(scope="module")
def sms(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sms") / "SMSSpamCollection"
    path.write_text("".join(f"{label}\t{text}\n" for label, text in messages(60)), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    """A language model to finetune, with weights large enough that every layer matters."""
    path = tmp_path_factory.mktemp("base")
    tokenizer = train_byte_level_bpe([text for _, text in messages(60)], vocab_size=320)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.2, drop_rate=0.0
    )
    GPTScratchForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def run(script, *argv: str) -> dict:
    parsed = parse_arguments((ClassificationArguments, ScratchTrainingArguments), [*COMMON, *argv])
    return script("finetune_classifier").main(*parsed)


@pytest.fixture(scope="module")
def finished(script, sms, base, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "spam"
    record = run(script, "--train_file", sms, "--model_name_or_path", base, "--output_dir", str(output), "--trainable", "last_two_blocks",
                 "--num_train_epochs", "5", "--learning_rate", "5e-3", "--train_sampling_strategy", "group_by_length")  # fmt: skip
    return output, record


def test_it_learns_and_measures_whole_splits(finished):
    _, record = finished
    metrics = record["metrics"]
    assert metrics["test_accuracy"] > 0.9 and metrics["test_roc_auc"] > 0.95
    assert sum(map(sum, metrics["test_confusion_matrix"])) == metrics["data"]["test"]["rows"] == 24
    assert metrics["labels"] == ["ham", "spam"] and metrics["data"]["test"]["texts_also_in_train"] == 0
    assert 0 < metrics["padding_share"] < 0.5


def test_the_directory_is_whole_and_a_pipeline_names_the_classes(finished):
    output, record = finished
    files = {path.name for path in output.iterdir()}
    assert_old_releases_open(output)
    assert files >= {"model.safetensors", "config.json", "tokenizer.json", "metrics.json", "mistakes.tsv", "README.md", "loss.png", "loss.pdf",
                     "accuracy.png", "confusion_matrix.png", "confusion_matrix.pdf", "modeling_gpt_scratch.py"}  # fmt: skip
    assert verify_checkpoint(str(output)).status == EQUAL
    classify = pipeline("text-classification", model=str(output), device="cpu")
    assert [answer["label"] for answer in classify(["win 5 pounds now", "dinner at noon"])] == ["spam", "ham"]
    with (output / "mistakes.tsv").open(encoding="utf-8", newline="") as file:
        mistakes = list(csv.DictReader(file, delimiter="\t"))
    wrong = sum(
        count for i, row in enumerate(record["metrics"]["test_confusion_matrix"]) for j, count in enumerate(row) if i != j
    )
    assert len(mistakes) == wrong and all(row["predicted"] != row["true"] for row in mistakes)
    assert [float(row["confidence"]) for row in mistakes] == sorted((float(row["confidence"]) for row in mistakes), reverse=True)


@pytest.mark.thorough
def test_the_table_of_mistakes_shows_the_texts_that_were_misjudged(script, sms, base, tmp_path):
    """Also where batches are grouped by length, and predictions come in an order of their own."""
    output = tmp_path / "out"
    run(script, "--train_file", sms, "--model_name_or_path", base, "--output_dir", str(output), "--trainable", "head", "--max_steps", "2",
        "--learning_rate", "1e-5", "--eval_strategy", "no", "--train_sampling_strategy", "group_by_length")  # fmt: skip
    with (output / "mistakes.tsv").open(encoding="utf-8", newline="") as file:
        mistakes = list(csv.DictReader(file, delimiter="\t"))
    lines = Path(sms).read_text(encoding="utf-8").splitlines()
    answers = pipeline("text-classification", model=str(output), device="cpu")([row["text"] for row in mistakes])
    assert len(mistakes) > 4
    for row, answer in zip(mistakes, answers):
        assert lines[int(row["row"])] == f"{row['true']}\t{row['text']}"
        assert answer["label"] == row["predicted"] and answer["score"] == pytest.approx(float(row["confidence"]), abs=1e-3)


@pytest.mark.parametrize(
    ("trainable", "moving"),
    [
        ("head", ["score"]),
        ("last_block", ["score", "model.norm", "model.layers.2"]),
        ("last_two_blocks", ["score", "model.norm", "model.layers.2", "model.layers.1"]),
        ("all", ["score", "model"]),
    ],
)
@pytest.mark.quick_cases("last_two_blocks-moving2")
def test_what_trains_moves_and_what_is_frozen_stays_bit_identical(script, sms, base, tmp_path, trainable, moving):
    run(script, "--train_file", sms, "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"), "--trainable", trainable,
        "--max_steps", "3", "--learning_rate", "1e-3", "--eval_strategy", "no")  # fmt: skip
    before = GPTScratchForCausalLM.from_pretrained(base).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in after.items():
        if name != "score.weight":
            assert torch.equal(tensor, before[name]) != name.startswith(tuple(moving)), name


@pytest.mark.thorough
def test_lora_leaves_the_base_and_its_merged_model_gives_the_adapters_logits(script, sms, base, tmp_path):
    pytest.importorskip("peft")
    from peft import AutoPeftModelForSequenceClassification

    record = run(script, "--train_file", sms, "--model_name_or_path", base, "--output_dir", str(tmp_path / "out"), "--trainable", "lora",
                 "--lora_rank", "4", "--num_train_epochs", "2", "--learning_rate", "1e-2", "--eval_strategy", "no")  # fmt: skip
    assert record["metrics"]["trainable_parameters"] < record["metrics"]["all_parameters"] / 3
    assert verify_checkpoint(str(tmp_path / "out")).status == EQUAL
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    adapter = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out" / "adapter", num_labels=2).eval()
    ids = torch.arange(5, 25).view(2, 10)
    mask = torch.ones_like(ids)
    with torch.no_grad():
        torch.testing.assert_close(
            merged(ids, attention_mask=mask).logits, adapter(ids, attention_mask=mask).logits, atol=1e-4, rtol=0
        )


@pytest.mark.thorough
def test_accumulated_small_batches_give_the_weights_of_one_large_batch(script, sms, base, tmp_path):
    weights = []
    for name, flags in {
        "large": [],
        "small": ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4"],
    }.items():
        run(script, "--train_file", sms, "--model_name_or_path", base, "--output_dir", str(tmp_path / name), "--trainable", "all",
            "--class_weights", "--label_smoothing_factor", "0.1", "--max_steps", "2", "--eval_strategy", "no", *flags)  # fmt: skip
        weights.append(AutoModelForSequenceClassification.from_pretrained(tmp_path / name).state_dict())
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_files_any_classes_new_weights_and_early_stopping(script, tmp_path):
    for split, count in {"train": 60, "validation": 12, "test": 12}.items():
        lines = [{"review": f"this is {'very ' * (i % 3)}good {i}", "stars": i % 3} for i in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    files = [part for split in ("train", "validation", "test") for part in (f"--{split}_file", str(tmp_path / f"{split}.jsonl"))]
    record = run(script, *files, "--split", "files", "--text_column", "review", "--label_column", "stars", "--class_names", "2", "0", "1",
                 "--config_overrides", "n_embd=32,n_layer=2,n_head=2,n_positions=32", "--vocab_size", "300", "--trainable", "all",
                 "--num_train_epochs", "8", "--learning_rate", "5e-3", "--early_stopping_patience", "2", "--output_dir", str(tmp_path / "out"))  # fmt: skip
    assert record["metrics"]["labels"] == ["2", "0", "1"] and len(record["metrics"]["test_confusion_matrix"]) == 3
    model = GPTScratchForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "2", 1: "0", 2: "1"} and model.config.pad_token_id is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--train_file is missing"),
        (["--train_file", "SMS", "--split", "files"], "--split files needs"),
        (["--train_file", "SMS", "--split_fractions", "0.5", "0.1", "0.1"], "add up to 1"),
        (["--train_file", "SMS", "--class_names", "ham", "eggs"], "label 'spam' is not one of"),
        (["--train_file", "SMS", "--model_name_or_path", "nowhere"], "nowhere cannot be loaded"),
        (
            ["--train_file", "SMS", "--model_name_or_path", "BASE", "--config_overrides", "n_layer=2"],
            "only the dropout of a checkpoint can be changed",
        ),
        (["--train_file", "SMS", "--early_stopping_patience", "1", "--eval_strategy", "no"], "needs evaluations"),
    ],
)
def test_bad_input_ends_before_training(script, sms, base, tmp_path, flags, message):
    flags = [{"SMS": sms, "BASE": base}.get(flag, flag) for flag in flags]
    with pytest.raises(UserError, match=message):
        run(script, "--output_dir", str(tmp_path / "out"), *flags)


@pytest.mark.parametrize("recipe", sorted((ROOT / "scripts" / "configs" / "spam").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_parse(recipe, tmp_path):
    parse_arguments((ClassificationArguments, ScratchTrainingArguments), [str(recipe), "--output_dir", str(tmp_path)])
