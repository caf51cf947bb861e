"""The loss, gradient accumulation, half precision and dropout."""

import copy
import math

import pytest
import torch
from tiny_models import assert_equal, grads, tiny_model, token_ids
from transformers import Trainer, TrainingArguments

from gpt_scratch import GPTScratchForSequenceClassification

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])


def ragged_labels(ids: torch.Tensor) -> torch.Tensor:
    """Labels of which row i lacks the last i tokens, and row 1 a few in the middle."""
    labels = ids.clone()
    for i in range(len(ids)):
        labels[i, ids.shape[1] - i :] = -100
    labels[1, 2:5] = -100
    return labels


# ---------------------------------------------------------------------------------------------------------------------- loss


def losses_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """-log softmax(logits at t)[label at t + 1], for every t + 1 that is labelled, in Python floats."""
    losses = []
    for row, row_labels in zip(logits.tolist(), labels.tolist()):
        for t in range(len(row) - 1):
            if row_labels[t + 1] != -100:
                losses.append(math.log(sum(math.exp(value) for value in row[t])) - row[t][row_labels[t + 1]])
    return losses


@STYLES
def test_the_loss_is_the_one_worked_out_by_hand(style):
    model, ids = tiny_model(style), token_ids(2, 6)
    labels = ids.clone()
    labels[0, 2] = labels[1, 4:] = -100
    with torch.no_grad():
        out, masked = model(ids, labels=ids), model(ids, labels=labels)
        every, some = losses_by_hand(out.logits, ids), losses_by_hand(out.logits, labels)
        assert (len(every), len(some)) == (10, 7)
        assert out.loss.item() == pytest.approx(sum(every) / 10, abs=1e-5)
        assert masked.loss.item() == pytest.approx(sum(some) / 7, abs=1e-5)
        for items in (20, torch.tensor(20)):  # over all accumulated batches
            assert model(ids, labels=labels, num_items_in_batch=items).loss.item() == pytest.approx(sum(some) / 20, abs=1e-5)
        assert out.loss.dtype is torch.float32 and out.loss.shape == ()
        assert model(ids).loss is None


def test_the_loss_of_uniform_logits_is_the_log_of_the_vocabulary():
    model = tiny_model("gpt2", tie_word_embeddings=False)
    torch.nn.init.zeros_(model.lm_head.weight)
    assert model(token_ids(2, 5), labels=token_ids(2, 5)).loss.item() == pytest.approx(math.log(61), abs=1e-6)


def test_overfitting_one_sequence_predicts_its_next_tokens():
    """Trained on one sequence, the model continues it: with labels shifted twice or not at all it would continue another one."""
    model, ids = tiny_model("gpt2", vocab_size=12).train(), torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    assert model.eval().generate(ids[:, :1], max_new_tokens=10, do_sample=False).tolist() == ids.tolist()


# -------------------------------------------------------------------------------------------------------------- accumulation


@STYLES
def test_batch_of_8_equals_4_accumulated_batches_of_2(style):
    model, ids = tiny_model(style).train(), token_ids(8, 12)
    labels = ragged_labels(ids)
    mask = (labels != -100).long()
    whole = model(ids, attention_mask=mask, labels=labels)
    whole.loss.backward()
    expected, scored = grads(model), int((labels[:, 1:] != -100).sum())
    model.zero_grad()
    total = 0.0
    for part in range(0, 8, 2):
        rows = slice(part, part + 2)
        loss = model(ids[rows], attention_mask=mask[rows], labels=labels[rows], num_items_in_batch=scored).loss
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(whole.loss.item(), abs=1e-5)
    assert expected.keys() == grads(model).keys() == dict(model.named_parameters()).keys()
    for name, gradient in grads(model).items():
        assert_equal(gradient, expected[name])


def one_optimizer_step(model, rows: list[dict], batch_size: int, output_dir) -> tuple[dict[str, torch.Tensor], float]:
    """The weights and the logged loss after one step of HF Trainer on all rows, in micro-batches of `batch_size`."""
    model = copy.deepcopy(model)
    arguments = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=len(rows) // batch_size,
        max_steps=1,
        learning_rate=0.5,
        optim="sgd",
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    return dict(model.state_dict()), trainer.state.log_history[0]["loss"]


@STYLES
def test_trainer_batch_of_8_equals_4_accumulated_batches_of_2(style, tmp_path):
    model, ids = tiny_model(style), token_ids(8, 12)
    labels = ragged_labels(ids)
    rows = [{"input_ids": i, "attention_mask": (row != -100).long(), "labels": row} for i, row in zip(ids, labels)]
    whole, whole_loss = one_optimizer_step(model, rows, 8, tmp_path)
    parts, parts_loss = one_optimizer_step(model, rows, 2, tmp_path)
    assert parts_loss == pytest.approx(whole_loss, abs=1e-4)  # the log is rounded
    for name, weight in model.state_dict().items():
        # A bias of the keys shifts all scores of a query alike, which softmax does not see.
        assert not torch.equal(whole[name], weight) or "k_proj.bias" in name, f"{name} was not trained"
        assert_equal(parts[name], whole[name])


@pytest.mark.parametrize(
    "problem_type, labels",
    [
        ("single_label_classification", torch.tensor([0, 1, 2, 2, 1, 0, 1, 1])),
        ("multi_label_classification", torch.tensor([[1.0, 0.0, 1.0]] * 5 + [[0.0, 1.0, 0.0]] * 3)),
        ("regression", torch.linspace(-1, 2, 24).view(8, 3)),
    ],
)
@pytest.mark.thorough
def test_trainer_accumulation_of_the_classifier(problem_type, labels, tmp_path):
    model = tiny_model("gpt2", cls=GPTScratchForSequenceClassification, num_labels=3, problem_type=problem_type)
    rows = [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": label} for ids, label in zip(token_ids(8, 9), labels)
    ]
    whole, whole_loss = one_optimizer_step(model, rows, 8, tmp_path)
    parts, parts_loss = one_optimizer_step(model, rows, 2, tmp_path)
    assert parts_loss == pytest.approx(whole_loss, abs=1e-4)
    for name, weight in model.state_dict().items():
        assert not torch.equal(whole[name], weight) or "k_proj.bias" in name, f"{name} was not trained"
        assert_equal(parts[name], whole[name])


# --------------------------------------------------------------------------------------------------------- precision, dropout


@STYLES
@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 8e-2), (torch.float16, 8e-3)])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_half_precision(style, dtype, tolerance, attention):
    model, ids = tiny_model(style, attention=attention), token_ids(2, 12)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :4] = 0
    expected = model(ids, attention_mask=mask).logits
    half = copy.deepcopy(model).to(dtype)
    out = half(ids, attention_mask=mask, labels=ids)
    out.loss.backward()
    assert out.logits.dtype is dtype and out.loss.dtype is torch.float32
    assert_equal(out.logits.float()[mask.bool()], expected[mask.bool()], tolerance)
    assert all(gradient.isfinite().all() and gradient.dtype is dtype for gradient in grads(half).values())
    assert half.generate(ids, attention_mask=mask, max_new_tokens=3, do_sample=False).shape == (2, 15)


@STYLES
def test_autocast(style):
    model, ids = tiny_model(style).train(), token_ids(2, 12)
    expected = model(ids, labels=ids).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)
    assert all(gradient.dtype is torch.float32 and gradient.isfinite().all() for gradient in grads(model).values())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dropout", ["embedding_dropout", "attention_dropout", "residual_dropout"])
def test_each_dropout_works_in_training_only(attention, dropout):
    model, ids = tiny_model("gpt2", attention=attention, **{dropout: 0.3}), token_ids(1, 8)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert_equal(model(ids).logits, tiny_model("gpt2", attention=attention)(ids).logits)
    model.train()
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.1


@pytest.mark.parametrize("silent", ["self_attn.o_proj", "mlp.down_proj"])
def test_residual_dropout_falls_on_both_branches(silent):
    """With one branch of every layer switched off, the other still shows the dropout."""
    model, ids = tiny_model("gpt2", residual_dropout=0.3).train(), token_ids(1, 8)
    for block in model.model.layers:
        for parameter in block.get_submodule(silent).parameters():
            torch.nn.init.zeros_(parameter)
    assert (model(ids).logits - model(ids).logits).abs().max() > 0.1
