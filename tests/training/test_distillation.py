"""Distillation: the loss by its formula, its two ends, accumulation, and a student that comes closer to its teacher."""

import json

import pytest
import torch
from tiny_models import tiny_model, token_ids
from transformers import AutoModelForCausalLM

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.distillation import DistillationArguments, distillation_loss

STORIES = [f"{name} went to the {place}. It was {weather}." for name in ("Anna", "Tom", "Mia") for place in ("sea", "hill", "mill")
           for weather in ("cold", "warm", "dark")]  # fmt: skip


def logits(seed: int, vocabulary: int = 7) -> torch.Tensor:
    return torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


LABELS = torch.tensor([[1, 2, 3, -100, 5], [6, 0, -100, -100, 1]])


def test_the_loss_is_its_formula_in_float64():
    student, teacher, temperature, share = logits(0), logits(1), 2.5, 0.3
    terms = []
    for row, place in [(0, 1), (0, 2), (0, 4), (1, 1), (1, 4)]:  # what is predicted
        s, t = student[row, place - 1], teacher[row, place - 1]
        hard = -torch.log(torch.exp(s[LABELS[row, place]]) / torch.exp(s).sum())
        p, q = torch.exp(t / temperature), torch.exp(s / temperature)
        p, q = p / p.sum(), q / q.sum()
        terms.append(share * hard + (1 - share) * temperature**2 * (p * torch.log(p / q)).sum())
    loss = distillation_loss(student, teacher, LABELS, temperature, share)
    assert float(loss) == pytest.approx(float(sum(terms) / 5), rel=1e-5)
    assert float(distillation_loss(student, teacher, LABELS, temperature, share, 10)) == pytest.approx(float(loss) / 2, rel=1e-5)


def test_a_teacher_of_more_rows_is_cut_and_an_equal_one_has_no_soft_loss():
    student = logits(0)
    wide = torch.cat((student, torch.full((2, 5, 3), -1e9, dtype=torch.float64)), -1)
    assert float(distillation_loss(student, wide, LABELS, 2.0, 0.0)) == pytest.approx(0, abs=1e-6)


def test_without_the_teacher_it_is_the_models_own_loss():
    model, ids = tiny_model(), token_ids(2, 9)
    loss = distillation_loss(model(ids).logits, model(ids).logits * 0, ids, 2.0, 1.0)
    assert float(loss) == pytest.approx(float(model(ids, labels=ids).loss), rel=1e-5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("distillation")
    (path / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in STORIES * 3), encoding="utf-8")
    tokenizer = train_byte_level_bpe(STORIES, vocab_size=290)
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 32, "drop_rate": 0.0, "initializer_range": 0.1}
    GPTScratchForCausalLM(GPTScratchConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(path / "teacher")
    tokenizer.save_pretrained(path / "teacher")
    train_byte_level_bpe(["other words", "and others"], vocab_size=262).save_pretrained(path / "other")
    return path


def run(script, folder, *argv: str) -> dict:
    words = ["--teacher", str(folder / "teacher"), "--train_file", str(folder / "text.jsonl"), "--block_size", "16", "--use_cpu",
             "--config_overrides", "n_embd=16,n_layer=1,n_head=2,drop_rate=0.0", "--disable_tqdm", "true", "--report_to", "none",
             "--save_strategy", "no", "--eval_strategy", "no", "--sample_tokens", "0", "--learning_rate", "1e-2", *argv]  # fmt: skip
    return script("distill").main(*parse_arguments((DistillationArguments, ScratchTrainingArguments), words))


@pytest.mark.thorough
def test_a_student_comes_closer_to_its_teacher(script, folder, tmp_path):
    """A teacher with random weights: what the student learns is the teacher, since the text says something else."""

    def distance(path) -> float:
        teacher, student = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (folder / "teacher", path))
        ids = torch.randint(0, 280, (16, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return float(distillation_loss(student(ids).logits, teacher(ids).logits, ids, 1.0, 0.0))

    taught = run(
        script,
        folder,
        "--hard_loss",
        "0",
        "--teacher_temperature",
        "1",
        "--max_steps",
        "40",
        "--output_dir",
        str(tmp_path / "taught"),
    )
    alone = run(script, folder, "--hard_loss", "1", "--max_steps", "40", "--output_dir", str(tmp_path / "alone"))
    assert distance(tmp_path / "taught") < 0.7 * distance(tmp_path / "alone")
    assert alone["metrics"]["validation_loss"] < taught["metrics"]["validation_loss"]
    assert taught["metrics"]["teacher_parameters"] > taught["parameters"]
    assert taught["metrics"]["validation_bits_per_byte"] > 0


@pytest.mark.thorough
def test_accumulated_batches_give_the_gradient_of_one(script, folder, tmp_path):
    flags = ["--max_steps", "1", "--learning_rate", "1e-2", "--lr_scheduler_type", "constant", "--max_grad_norm", "0"]
    whole = run(script, folder, *flags, "--per_device_train_batch_size", "8", "--output_dir", str(tmp_path / "whole"))
    parts = run(script, folder, *flags, "--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "4", "--output_dir",
                str(tmp_path / "parts"))  # fmt: skip
    assert parts["metrics"]["validation_loss"] == pytest.approx(whole["metrics"]["validation_loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tokenizer_name", "OTHER"], "the teacher's tokenizer .* differs from the student's"),
        (["--block_size", "64"], "--block_size 64 is longer than the teacher's 32 positions"),
        (["--hard_loss", "1.5"], "--hard_loss is 1.5: it must be between 0 and 1"),
        (["--teacher_temperature", "0"], "--teacher_temperature is 0.0"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(script, folder, tmp_path, argv, message):
    argv = [str(folder / "other") if word == "OTHER" else word for word in argv]
    with pytest.raises(UserError, match=message):
        run(script, folder, *argv, "--max_steps", "1", "--output_dir", str(tmp_path / "out"))
    assert not list(tmp_path.glob("out/*.safetensors"))


def test_a_teacher_is_needed(script, tmp_path):
    args = DistillationArguments(train_file=["x"])
    with pytest.raises(UserError, match="--teacher is missing"):
        script("distill").main(args, ScratchTrainingArguments(output_dir=str(tmp_path), use_cpu=True))
