"""The parts of preference training with TRL: flags, pairs, and a trainer for each method (DPO, reward model, GRPO).

DPO (Rafailov et al. 2023) trains a finetuned model on pairs at once. The classical chain takes two steps: a reward model, which is this
package's classifier with one label (Ouyang et al. 2022), then GRPO (Shao et al. 2024), which lets the model answer and reinforces the
answers that the reward model prefers; or those that a reward finds right that is computed (`reinforcement.py`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..data.instruction import PROMPT_STYLES, Conversations, set_prompt_style, split_conversations
from ..data.opening import Reading
from ..data.preference import preference_rows, read_preferences, refuse_omissions_in_pairs
from ..errors import UserError, innermost, one_line
from ..evaluation.rewards import load_rewards
from ..inference.chat_template import bound_chat_templates, encode_chat, keep_content_text
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..plots import save_lines
from ..progress import bar
from .checkpoints import ResumableTrainer
from .finetuning import load_language_model
from .reinforcement import QuestionData, read_questions, reward_functions
from .run import evaluation_curve, run_figures

METHODS = ("dpo", "reward", "grpo")
# What each method logs and plots: file, {key of the log: label}, label of the axis.
CURVES = {
    "dpo": [
        ("loss", {"loss": "training", "eval_loss": "validation"}, "loss"),
        ("margins", {"rewards/margins": "training", "eval_rewards/margins": "validation"}, "reward margin, chosen - rejected"),
        (
            "accuracy",
            {"rewards/accuracies": "training", "eval_rewards/accuracies": "validation"},
            "share of pairs ranked correctly",
        ),
    ],
    "reward": [
        ("loss", {"loss": "training", "eval_loss": "validation"}, "loss"),
        ("margins", {"margin": "training", "eval_margin": "validation"}, "reward margin, chosen - rejected"),
        ("accuracy", {"accuracy": "training", "eval_accuracy": "validation"}, "share of pairs ranked correctly"),
    ],
    "grpo": [
        ("reward", {"reward": "training", "eval_reward": "validation"}, "mean reward"),
        ("length", {"completions/mean_length": "training"}, "mean reply, tokens"),
        ("entropy", {"entropy": "training"}, "entropy, nats per token"),
        ("divergence", {"kl": "training"}, "divergence from the start, nats per token"),
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
        metadata={"help": "Shares of train, validation and test, in the order of the file."},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A finetuned checkpoint of this package."})
    allow_non_finite: bool = field(
        default=False,
        metadata={"help": "Continue when the loss or the gradient's norm is NaN or infinite; by default this ends the run."},
    )
    reward_model: str | None = field(default=None, metadata={"help": "With grpo: a model trained by the method reward."})
    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "With grpo, in place of --reward_model: exact_match, arithmetic, format, length, or path/to/file.py:function, which is "
            "run; several, with --reward_weights. --train_file then holds instruction records, whose replies are the references."
        },
    )
    validation_file: str | None = field(
        default=None, metadata={"help": "With --reward: questions to measure on. Default: the last part of --train_file."}
    )
    success_questions: int = field(
        default=200,
        metadata={"help": "With --reward: validation questions that are answered before and after training, at most."},
    )
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
        raise UserError('preference training needs trl: pip install "gpt_scratch[trl]"') from error
    bound_chat_templates()
    return trl


def configuration_class(method: str) -> type:
    """TRL's dataclass of flags for `method`."""
    trl = import_trl()
    return {"dpo": trl.DPOConfig, "reward": trl.RewardConfig, "grpo": trl.GRPOConfig}[method]


@dataclass
class PreferenceData:
    """Pairs of train, validation and test, and how many were left out since their replies are equal."""

    rows: dict[str, datasets.Dataset]
    left_out: dict[str, int]

    def description(self) -> dict[str, Any]:
        """What was made of the file, for the record of the run."""
        return {
            name: {"pairs": len(rows), "pairs_of_equal_replies_left_out": self.left_out[name]} for name, rows in self.rows.items()
        }


def read_data(args: PreferenceArguments) -> PreferenceData | QuestionData:
    """The pairs, or with `--reward` the questions.

    Raises:
        UserError: broken records or rewards.
    """
    return read_questions(args, load_rewards(args.reward)) if args.reward else read_pairs(args)


def read_pairs(args: PreferenceArguments) -> PreferenceData:
    """Train, validation and test pairs; prints their numbers.

    Raises:
        UserError: broken pairs, a split without pairs.
    """
    assert args.train_file is not None  # check_preferences
    pairs = read_preferences(args.train_file, "train", Reading.of(args), args.ignore_keys or ())
    splits: dict[str, Conversations] = split_conversations(pairs, args.split_fractions)
    data = PreferenceData({}, {})
    for name, part in splits.items():
        data.rows[name], equal = preference_rows(part, args.prompt_style)
        if not len(data.rows[name]):
            raise UserError(f"{args.train_file}: all pairs of the {name} split hold two equal replies")
        data.left_out[name] = equal
        print(f"{name}: {len(data.rows[name]):,} pairs" + (f", {equal} pairs of equal replies left out" if equal else ""))
    return data


def fit_lengths(
    method: str,
    training_args: Any,
    data: PreferenceData | QuestionData,
    tokenizer: PreTrainedTokenizerBase,
    models: dict[str, int],
) -> None:
    """Compare all pairs with the positions of the models before training starts, and lower TRL's `max_length` to them, where it has one.

    Prints how many pairs DPO will cut there, and how many a reward model leaves out.

    Args:
        models: the positions of each model that reads the pairs, by what it is called in messages.

    Raises:
        UserError: a prompt that leaves no room for a reply, or a split of which nothing is left.
    """
    model, positions = min(models.items(), key=lambda item: item[1])
    if method == "grpo":
        if any("tools" in rows.column_names for rows in data.rows.values()):
            raise UserError(
                "pairs hold 'tools', which TRL's GRPO does not write into prompts: pass --ignore_keys tools, or train by dpo or reward"
            )
        for split, rows in data.rows.items():
            lengths = [_tokens(tokenizer, row["prompt"]) for row in bar(rows, f"measuring the prompts of {split}")]
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            room = positions - lengths[longest]
            if room < (training_args.max_completion_length or 1):
                advice = f"pass --max_completion_length {room}, or shorten it" if room > 0 else "shorten it"
                raise UserError(
                    f"{_place(rows, split, longest)}: the prompt has {lengths[longest]} tokens, so that {max(room, 0)} of {model}'s "
                    f"{positions} positions are left for a reply, and --max_completion_length is {training_args.max_completion_length}: "
                    f"{advice}"
                )
        return
    limit = training_args.max_length = min(training_args.max_length or positions, positions)
    cuts_prompts = method == "reward" or training_args.truncation_mode != "keep_start"
    for split, rows in data.rows.items():
        long = 0
        for number, row in enumerate(bar(rows, f"measuring the pairs of {split}")):
            prompt, tools = _tokens(tokenizer, row["prompt"], row.get("tools")), row.get("tools")
            if prompt >= limit and not cuts_prompts:
                raise UserError(
                    f"{_place(rows, split, number)}: the prompt has {prompt} tokens, which leaves nothing of the replies within {limit} "
                    f"(--max_length, or {model}'s {positions} positions): shorten it, or remove the pair"
                )
            long += any(_tokens(tokenizer, row["prompt"] + row[key], tools) > limit for key in ("chosen", "rejected"))
        if method == "reward" and long == len(rows):
            raise UserError(f"all pairs of the {split} split are longer than {limit} tokens, the most that {model} reads")
        if long:
            what = "left out" if method == "reward" else "cut there"
            print(f"{split}: {long:,} of {len(rows):,} pairs are longer than {limit} tokens and are {what}")


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], tools: list | None = None) -> int:
    """As TRL encodes them."""
    asks = messages[-1]["role"] != "assistant"
    return len(encode_chat(tokenizer, messages, tools, add_generation_prompt=asks).ids)


def _place(rows: datasets.Dataset, split: str, number: int) -> str:
    return f"pair {number} of the {split} split ({one_line(rows[number]['prompt'][-1]['content'], 40)!r})"


def load_reward_model(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """A classifier with one label and its tokenizer.

    Raises:
        UserError: unreadable, or with several labels.
    """
    config = load_config(name)
    if config.num_labels != 1 or "ForSequenceClassification" not in (config.architectures or [""])[0]:
        raise UserError(
            f"--reward_model {name} is not a reward model, which is a classifier with one label: train one with the method reward"
        )
    tokenizer = load_tokenizer(name)
    check_rows(tokenizer, config, name)
    return load_model(name, "classifier", "float32"), tokenizer


def make_trainer(
    method: str, args: PreferenceArguments, training_args: TrainingArguments, data: PreferenceData | QuestionData
) -> Trainer:
    """TRL's trainer for `method`, with model, tokenizer and data.

    Raises:
        UserError: a checkpoint that cannot be loaded, pairs that the model's positions do not hold, or flags that TRL refuses.
    """
    trl, rows, positions = import_trl(), data.rows, {}
    if args.reward_model is not None:
        reward_model, reward_tokenizer = load_reward_model(args.reward_model)
        positions["the reward model"] = reward_model.config.max_position_embeddings
    model, tokenizer = load_language_model(args.model_name_or_path)
    set_prompt_style(tokenizer, args.prompt_style)
    if not args.reward:
        refuse_omissions_in_pairs(rows, tokenizer, args.prompt_style)
    keep_content_text(tokenizer)
    positions["the model"] = model.config.max_position_embeddings
    fit_lengths(method, training_args, data, tokenizer, positions)
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
        if args.reward:
            functions = reward_functions(load_rewards(args.reward), tokenizer.eos_token_id)
            return _resumable(trl.GRPOTrainer)(model=model, reward_funcs=functions, **common)
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


def figures_of_run(trainer: Trainer, data: PreferenceData | QuestionData, train_seconds: float) -> dict[str, Any]:
    """The last figures on the validation pairs, the whole curve, speed."""
    curve = evaluation_curve(trainer.state.log_history)
    last = curve[-1] if curve else {}
    return {
        **{
            name: value
            for name, value in last.items()
            if name.startswith("eval_") and not name.endswith(("_runtime", "_per_second"))
        },
        **run_figures(trainer, train_seconds),
        "data": data.description(),
        "curve": curve,
        **({"reinforcement_curve": found} if (found := reinforcement_curve(trainer.state.log_history)) else {}),
    }


def reinforcement_curve(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reward, length of replies, entropy and divergence from the start, of each line of a GRPO run's log."""
    columns = [column for _, labels, _ in CURVES["grpo"] for column in labels if not column.startswith("eval_")]
    return [
        {name: entry[name] for name in entry if name in ("step", *columns) or name.startswith("rewards/")}
        for entry in history
        if "reward" in entry
    ]


def plot_curves(method: str, history: list[dict[str, Any]], output: Path) -> None:
    """The curves of `method` against steps, PNG and PDF."""
    for name, labels, y_label in CURVES[method]:
        save_lines(history, labels, "step", output / name, "step", y_label)
