"""The parts of learning from preferences with TRL: flags, pairs, and a trainer for each method (DPO, reward model, GRPO).

DPO (Rafailov et al. 2023) trains a finetuned model on pairs at once. The classical chain takes two steps: a reward model, which is this
package's classifier with one label (Ouyang et al. 2022), then GRPO (Shao et al. 2024), which lets the model answer and reinforces the
answers that the reward model prefers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..data.instruction import PROMPT_STYLES, Conversations, set_prompt_style, split_conversations
from ..data.opening import Reading
from ..data.preference import preference_rows, read_preferences, refuse_unsaid_pairs
from ..errors import UserError, innermost, one_line
from ..inference.chat_template import bound_chat_templates, keep_content_text
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..plots import save_lines
from .checkpoints import ResumableTrainer
from .finetuning import load_language_model

METHODS = ("dpo", "reward", "grpo")
# What each method logs and plots: file, {key of the log: label}, label of the axis.
CURVES = {
    "dpo": [
        ("loss", {"loss": "training", "eval_loss": "validation"}, "loss"),
        ("margins", {"rewards/margins": "training", "eval_rewards/margins": "validation"}, "reward margin, chosen - rejected"),
        (
            "accuracy",
            {"rewards/accuracies": "training", "eval_rewards/accuracies": "validation"},
            "share of pairs ranked rightly",
        ),
    ],
    "reward": [
        ("loss", {"loss": "training", "eval_loss": "validation"}, "loss"),
        ("margins", {"margin": "training", "eval_margin": "validation"}, "reward margin, chosen - rejected"),
        ("accuracy", {"accuracy": "training", "eval_accuracy": "validation"}, "share of pairs ranked rightly"),
    ],
    "grpo": [
        ("reward", {"reward": "training", "eval_reward": "validation"}, "mean reward"),
        ("length", {"completions/mean_length": "training"}, "mean reply, tokens"),
    ],
}


@dataclass
class PreferenceArguments(Reading):
    """The flags of `scripts/finetune_preferences.py` besides those of TRL's configuration for the method."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Pairs: json, jsonl, csv, tsv, parquet or a `datasets` name, with instruction or prompt, chosen, rejected: texts, or "
            "lists of messages as TRL has them."
        },
    )
    ignore_keys: list[str] | None = field(
        default=None, metadata={"help": "Keys of pairs and messages that are not used, whatever they hold."}
    )
    split_fractions: list[float] = field(
        default_factory=lambda: [0.85, 0.05, 0.1],
        metadata={"help": "Shares of train, validation and test, as they stand in the file."},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A finetuned checkpoint of this package."})
    allow_non_finite: bool = field(
        default=False,
        metadata={"help": "Go on where the loss or the gradient's norm is NaN or infinite, which ends a run otherwise."},
    )
    reward_model: str | None = field(default=None, metadata={"help": "With grpo: a model trained by the method reward."})
    prompt_style: str = field(
        default="alpaca", metadata={"help": "The prompt style of the finetuning.", "choices": list(PROMPT_STYLES)}
    )


def import_trl() -> Any:
    """The module trl, which renders chat templates itself, here within their limits.

    Raises:
        UserError: it is not installed.
    """
    try:
        import trl
    except ImportError as error:
        raise UserError('learning from preferences needs trl: pip install "gpt_scratch[trl]"') from error
    bound_chat_templates()
    return trl


def configuration_class(method: str) -> type:
    """TRL's dataclass of flags for `method`."""
    trl = import_trl()
    return {"dpo": trl.DPOConfig, "reward": trl.RewardConfig, "grpo": trl.GRPOConfig}[method]


def read_pairs(args: PreferenceArguments) -> tuple[dict[str, datasets.Dataset], dict[str, Any]]:
    """Train, validation and test pairs, and what came of the file. Prints it, too.

    Raises:
        UserError: no file, broken pairs, a split without pairs.
    """
    if args.train_file is None:
        raise UserError("--train_file is missing: give the pairs to learn from")
    splits: dict[str, Conversations] = split_conversations(
        read_preferences(args.train_file, "train", Reading.of(args), args.ignore_keys or ()), args.split_fractions
    )
    rows, description = {}, {}
    for name, part in splits.items():
        rows[name], equal = preference_rows(part, args.prompt_style)
        if not len(rows[name]):
            raise UserError(f"{args.train_file}: all pairs of the {name} split hold two equal replies")
        description[name] = {"pairs": len(rows[name]), "pairs_of_equal_replies_left_out": equal}
        print(f"{name}: {len(rows[name]):,} pairs" + (f", {equal} pairs of equal replies left out" if equal else ""))
    return rows, description


def load_reward_model(name: str | None) -> tuple[Any, PreTrainedTokenizerBase]:
    """A classifier with one label and its tokenizer.

    Raises:
        UserError: none given, unreadable, or with several labels.
    """
    if name is None:
        raise UserError("grpo needs --reward_model: train one with the method reward")
    config = load_config(name)
    if config.num_labels != 1 or "ForSequenceClassification" not in (config.architectures or [""])[0]:
        raise UserError(
            f"--reward_model {name} is no reward model, which is a classifier with one label: train one with the method reward"
        )
    tokenizer = load_tokenizer(name)
    check_rows(tokenizer, config, name)
    return load_model(name, "classifier", "float32"), tokenizer


def make_trainer(
    method: str, args: PreferenceArguments, training_args: TrainingArguments, rows: dict[str, datasets.Dataset]
) -> Trainer:
    """TRL's trainer for `method`, with model, tokenizer and data.

    Raises:
        UserError: a checkpoint that cannot be loaded, or flags that TRL refuses.
    """
    trl = import_trl()
    if method == "grpo":
        reward_model, reward_tokenizer = load_reward_model(args.reward_model)
    model, tokenizer = load_language_model(args.model_name_or_path)
    set_prompt_style(tokenizer, args.prompt_style)
    refuse_unsaid_pairs(rows, tokenizer, args.prompt_style)
    keep_content_text(tokenizer)
    common: dict[str, Any] = {
        "args": training_args,
        "processing_class": tokenizer,
        "train_dataset": rows["train"],
        "eval_dataset": rows["validation"],
    }
    try:
        if method == "dpo":
            return _resumable(trl.DPOTrainer)(model=model, **common)  # its reference is a second copy of the same checkpoint
        if method == "reward":
            ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
            assert args.model_name_or_path is not None  # load_language_model
            scorer = load_model(args.model_name_or_path, "classifier", "float32", new_head=True, num_labels=1, **ids)
            return _resumable(trl.RewardTrainer)(model=scorer, **common)
        prompts = {split: part.select_columns(["prompt"]) for split, part in rows.items()}
        common |= {"train_dataset": prompts["train"], "eval_dataset": prompts["validation"]}
        return _resumable(trl.GRPOTrainer)(
            model=model, reward_funcs=reward_model, reward_processing_classes=reward_tokenizer, **common
        )
    except ValueError as error:
        raise UserError(f"{method}: {one_line(innermost(error))}") from error


def _resumable(trainer_class: type[Trainer]) -> Any:
    """TRL's trainer with checkpoints that are whole or not there, and saved at SIGTERM."""
    return type(trainer_class.__name__, (ResumableTrainer, trainer_class), {})


def final_metrics(trainer: Trainer, description: dict[str, Any], train_seconds: float) -> dict[str, Any]:
    """The last figures on the validation pairs, the whole curve, speed."""
    measured = [entry for entry in trainer.state.log_history if any(name.startswith("eval_") for name in entry)]
    last = measured[-1] if measured else {}
    return {
        **{
            name: value
            for name, value in last.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        },
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "train_seconds": train_seconds,
        "data": description,
        "curve": [
            {name: value for name, value in entry.items() if name in ("step", "epoch") or name.startswith("eval_")}
            for entry in trainer.state.log_history
            if any(name.startswith("eval_") for name in entry)
        ],
    }


def plot_curves(method: str, history: list[dict[str, Any]], output: Path) -> None:
    """The curves of `method` against steps, PNG and PDF."""
    for name, labels, y_label in CURVES[method]:
        save_lines(history, labels, "step", output / name, "step", y_label)
