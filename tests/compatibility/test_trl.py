"""trl: its trainers take the model unchanged, and their losses equal those computed by hand."""

import math

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt_scratch  # noqa: F401  registers the model

pytestmark = pytest.mark.thorough

trl = pytest.importorskip("trl")

ROWS = [list(range(3 + start, 3 + start + length)) for start, length in ((0, 12), (20, 7), (40, 15), (60, 9))]
PREFERENCES = {
    "prompt": ["The cat sat on the", "It's 12"],
    "chosen": [" mat.", " o'clock, and"],
    "rejected": [" hat sat on", " that!"],
}


def common(tmp_path, **settings):
    return {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,  # the default of trl
        "report_to": "none",
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "max_steps": 2,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        **settings,
    }


def loss_by_hand(model, rows) -> float:
    """Summed over the rows, each alone, per predicted token."""
    with torch.no_grad():
        logits = [model(torch.tensor([row])).logits[0, :-1].log_softmax(-1) for row in rows]
    scores = torch.cat([log[torch.arange(len(row) - 1), row[1:]] for log, row in zip(logits, rows)])
    return -scores.mean().item()


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_sft_trainers_loss_is_the_loss_by_hand_and_the_model_learns(checkpoint, tmp_path, packing):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    expected = loss_by_hand(model.eval(), ROWS)
    # bfd packing flattens rows of several documents, told apart by restarting positions alone
    settings = {"packing": True, "max_length": 32, "eval_packing": True} if packing else {"max_length": None}
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(**common(tmp_path, **settings)),
        train_dataset=Dataset.from_dict({"input_ids": ROWS}),
        eval_dataset=Dataset.from_dict({"input_ids": ROWS}),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    if packing:
        assert len(trainer.eval_dataset) < len(ROWS)  # rows really were merged
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert loss_by_hand(trainer.model.eval(), ROWS) < expected


def test_dpo_starts_at_the_logarithm_of_two(checkpoint, tmp_path):
    trainer = trl.DPOTrainer(
        AutoModelForCausalLM.from_pretrained(checkpoint),
        args=trl.DPOConfig(**common(tmp_path, max_length=48)),
        train_dataset=Dataset.from_dict(PREFERENCES),
        eval_dataset=Dataset.from_dict(PREFERENCES),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    # policy and reference are the same model: -log sigmoid(0)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < math.log(2) - 1e-4


def test_reward_trainer_makes_a_classifier_of_the_checkpoint(checkpoint, tmp_path):
    trainer = trl.RewardTrainer(
        str(checkpoint),
        args=trl.RewardConfig(**common(tmp_path, max_length=48)),
        train_dataset=Dataset.from_dict(PREFERENCES),
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )
    assert type(trainer.model).__name__ == "GPTScratchForSequenceClassification" and trainer.model.config.num_labels == 1
    losses = [entry["loss"] for entry in (trainer.train(), trainer.state.log_history)[1] if "loss" in entry]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
