"""Checks of training: gradients, and transformers' Trainer."""

import tempfile
from pathlib import Path

import torch
from case import RELEASE, Case, near, same
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

STEPS = 3
# What Trainer divides the summed loss by: the labels, of which a row's first is never scored, or as before and after those that are scored.
COUNTS_ALL_LABELS = (4, 57) <= RELEASE < (5, 10)


def gradient_checkpointing(case: Case) -> None:
    """The gradients are those of a plain backward, and each layer was really computed twice."""
    labels, gradients, calls = case.ids.masked_fill(case.mask == 0, -100), [], []
    for checkpointing in (False, True):
        model = case.lm().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.model.layers[0].input_layernorm.register_forward_hook(lambda *_, round=checkpointing: calls.append(round))
        model(case.ids, attention_mask=case.mask, labels=labels).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    same((calls.count(False), calls.count(True)), (1, 2), "forwards of a layer without and with checkpointing")
    for name, gradient in gradients[0].items():
        near(gradients[1][name], gradient, f"gradient of {name}")


def trainer(case: Case) -> None:
    """Three steps on one batch: the first loss is that of the stored logits, the loss falls, and what is saved is what was trained."""
    model = case.lm()
    row = {"input_ids": case.rows[1], "labels": case.rows[1]}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=STEPS,
            per_device_train_batch_size=2,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        run = Trainer(model=model, args=arguments, train_dataset=[row] * (2 * STEPS))
        run.train()
        losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        scored = torch.nn.functional.cross_entropy(case.expected["logits.1"][:-1], case.rows[1][1:], reduction="sum").item()
        expected = scored / (len(case.rows[1]) - (0 if COUNTS_ALL_LABELS else 1))
        assert len(losses) == STEPS and abs(losses[0] - expected) < 1e-3, f"losses {losses}, the first should be {expected:.4f}"
        assert losses[0] > losses[1] > losses[2], f"the loss does not fall: {losses}"
        run.save_model(folder)
        again = AutoModelForCausalLM.from_pretrained(Path(folder), trust_remote_code=True).eval()
    with torch.no_grad():
        near(again(case.ids).logits, model.eval()(case.ids).logits, "logits of the trained model, saved and loaded")


CHECKS = (gradient_checkpointing, trainer)
