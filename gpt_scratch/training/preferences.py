"""Components of preference training with TRL: flags, pairs, and a trainer for each method (DPO, reward model, GRPO).

DPO (Rafailov et al. 2023) trains a finetuned model directly on pairs. The alternative has two steps: a reward model, which is this
package's classifier with one label (Ouyang et al. 2022), then GRPO (Shao et al. 2024), which samples replies and reinforces those with a
high reward. The reward can also be computed by a function (`reinforcement.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from ..data.instruction import PROMPT_STYLES, Conversations, set_prompt_style, split_conversations
from ..data.opening import Faults, Reading
from ..data.preference import preference_rows, read_preferences, refuse_omissions_in_pairs
from ..errors import UserError, innermost, one_line
from ..evaluation.rewards import load_rewards
from ..inference.chat_template import bound_chat_templates, encode_chat, keep_content_text
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..plots import save_lines
from ..progress import bar
from ..tokenization.special_tokens import describe_special_tokens
from .checkpoints import ResumableTrainer
from .finetuning import load_language_model
from .reinforcement import QuestionData, read_questions, reward_functions
from .run import evaluation_curve, run_figures

METHODS = ("dpo", "reward", "grpo")
# The plots of each method: file, {key of the log: label}, label of the axis.
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
        default=None, metadata={"help": "Keys of pairs and messages to ignore, whatever they contain."}
    )
    split_fractions: list[float] = field(
        default_factory=lambda: [0.85, 0.05, 0.1],
        metadata={"help": "Fractions for train, validation and test, in the order of the file."},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A finetuned checkpoint of this package."})
    allow_non_finite: bool = field(
        default=False,
        metadata={"help": "Continue if the loss or the gradient norm is NaN or infinite; by default the run stops."},
    )
    reward_model: str | None = field(default=None, metadata={"help": "With grpo: a model trained by the method reward."})
    reward: list[str] | None = field(
        default=None,
        metadata={
            "help": "With grpo, instead of --reward_model: exact_match, arithmetic, format, length, or path/to/file.py:function, which is "
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
    """Import trl, with limits for its rendering of chat templates.

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
    """Training, validation and test pairs, and the number of removed pairs with equal replies."""

    rows: dict[str, datasets.Dataset]
    left_out: dict[str, int]

    def description(self) -> dict[str, Any]:
        """Statistics of the data, for `metrics.json`."""
        return {
            name: {"pairs": len(rows), "pairs_of_equal_replies_left_out": self.left_out[name]} for name, rows in self.rows.items()
        }


def read_data(args: PreferenceArguments) -> PreferenceData | QuestionData:
    """Read the pairs, or with `--reward` the questions.

    Raises:
        UserError: broken records or rewards.
    """
    return read_questions(args, load_rewards(args.reward)) if args.reward else read_pairs(args)


def read_pairs(args: PreferenceArguments) -> PreferenceData:
    """Read training, validation and test pairs; prints their numbers.

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
            raise UserError(f"{args.train_file}: all pairs of the {name} split have equal replies")
        data.left_out[name] = equal
        print(f"{name}: {len(data.rows[name]):,} pairs" + (f", {equal} pairs with equal replies removed" if equal else ""))
    return data


def fit_lengths(
    method: str,
    training_args: Any,
    data: PreferenceData | QuestionData,
    tokenizer: PreTrainedTokenizerBase,
    models: dict[str, int],
) -> None:
    """Check the lengths of all pairs before training, and limit TRL's `max_length` to the models' positions.

    Prints how many pairs DPO truncates, or reward training drops.

    Args:
        models: name of each model, for messages, to its positions.

    Raises:
        UserError: a prompt that leaves no room for a reply, or a split without remaining pairs.
    """
    model, positions = min(models.items(), key=lambda item: item[1])
    if method == "grpo":
        if any("tools" in rows.column_names for rows in data.rows.values()):
            raise UserError(
                "pairs contain 'tools', which TRL's GRPO does not support: pass --ignore_keys tools, or use dpo or reward"
            )
        for split, rows in data.rows.items():
            lengths = [_tokens(tokenizer, row["prompt"]) for row in bar(rows, f"measuring the prompts of {split}")]
            longest = max(range(len(lengths)), key=lengths.__getitem__)
            room = positions - lengths[longest]
            if room < (training_args.max_completion_length or 1):
                advice = f"pass --max_completion_length {room}, or shorten it" if room > 0 else "shorten it"
                raise UserError(
                    f"{_place(rows, split, longest)}: the prompt has {lengths[longest]} tokens, so {max(room, 0)} of {model}'s "
                    f"{positions} positions are left for a reply, but --max_completion_length is {training_args.max_completion_length}: "
                    f"{advice}"
                )
        return
    limit = training_args.max_length = min(training_args.max_length or positions, positions)
    cuts_prompts = method == "reward" or training_args.truncation_mode != "keep_start"
    faults = Faults()
    for split, rows in data.rows.items():
        long = 0
        for number, row in enumerate(bar(rows, f"measuring the pairs of {split}")):
            prompt, tools = _tokens(tokenizer, row["prompt"], row.get("tools")), row.get("tools")
            if prompt >= limit and not cuts_prompts:
                faults.add(
                    f"{split} split",
                    "pair",
                    number,
                    f"the prompt has {limit} tokens or more, which leaves no room for the replies within {limit} (--max_length, or "
                    f"{model}'s {positions} positions): shorten it, or remove the pair",
                )
                continue
            long += any(_tokens(tokenizer, row["prompt"] + row[key], tools) > limit for key in ("chosen", "rejected"))
        if method == "reward" and long == len(rows):
            raise UserError(f"all pairs of the {split} split are longer than {limit} tokens, the limit of {model}")
        if long:
            what = "left out" if method == "reward" else "cut there"
            print(f"{split}: {long:,} of {len(rows):,} pairs are longer than {limit} tokens and are {what}")
    faults.check()


def _texts(rows: dict[str, datasets.Dataset]) -> Iterator[str]:
    """The contents of all messages of pairs or questions."""
    for part in rows.values():
        for row in part:
            for messages in (row[key] for key in ("prompt", "chosen", "rejected") if key in row):
                yield from (message["content"] for message in messages)


def _tokens(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], tools: list | None = None) -> int:
    """Number of tokens with TRL's encoding."""
    asks = messages[-1]["role"] != "assistant"
    return len(encode_chat(tokenizer, messages, tools, add_generation_prompt=asks).ids)


def _place(rows: datasets.Dataset, split: str, number: int) -> str:
    return f"pair {number} of the {split} split ({one_line(rows[number]['prompt'][-1]['content'], 40)!r})"


def load_reward_model(name: str) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a classifier with one label and its tokenizer.

    Raises:
        UserError: unreadable, or with several labels.
    """
    config = load_config(name)
    if config.num_labels != 1 or "ForSequenceClassification" not in (config.architectures or [""])[0]:
        raise UserError(
            f"--reward_model {name} is not a reward model (a classifier with one label): train one with the method reward"
        )
    tokenizer = load_tokenizer(name)
    check_rows(tokenizer, config, name)
    return load_model(name, "classifier", "float32"), tokenizer


def make_trainer(
    method: str, args: PreferenceArguments, training_args: TrainingArguments, data: PreferenceData | QuestionData
) -> Trainer:
    """Create TRL's trainer for `method`, with model, tokenizer and data.

    Raises:
        UserError: a checkpoint that cannot be loaded, pairs that are too long for the model, or flags that TRL refuses.
    """
    trl, rows, positions = import_trl(), data.rows, {}
    if args.reward_model is not None:
        reward_model, reward_tokenizer = load_reward_model(args.reward_model)
        positions["the reward model"] = reward_model.config.max_position_embeddings
    model, tokenizer = load_language_model(args.model_name_or_path)
    set_prompt_style(tokenizer, args.prompt_style)
    if not args.reward:
        refuse_omissions_in_pairs(rows, tokenizer, args.prompt_style)
    if written := describe_special_tokens(_texts(rows), tokenizer):
        print(written)
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
    """TRL's trainer combined with [`ResumableTrainer`]."""
    return type(trainer_class.__name__, (ResumableTrainer, trainer_class), {})


def figures_of_run(trainer: Trainer, data: PreferenceData | QuestionData, train_seconds: float) -> dict[str, Any]:
    """The final validation metrics, the curve and speed."""
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
    """Reward, reply length, entropy and KL divergence for each log entry of a GRPO run."""
    columns = [column for _, labels, _ in CURVES["grpo"] for column in labels if not column.startswith("eval_")]
    return [
        {name: entry[name] for name in entry if name in ("step", *columns) or name.startswith("rewards/")}
        for entry in history
        if "reward" in entry
    ]


def plot_curves(method: str, history: list[dict[str, Any]], output: Path) -> None:
    """Plot the curves of `method` against steps, PNG and PDF."""
    for name, labels, y_label in CURVES[method]:
        save_lines(history, labels, "step", output / name, "step", y_label)
