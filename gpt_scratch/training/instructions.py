"""Components of instruction finetuning: flags, data, trainable parameters, evaluation, sample replies and final metrics."""

import json
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from ..conflicts import check_instruction_splits
from ..data.instruction import (
    IGNORED,
    PROMPT_STYLES,
    Conversations,
    EncodedConversations,
    InstructionCollator,
    encode_conversations,
    pack_rows,
    prompt_ids,
    prompt_text,
    read_conversations,
    set_prompt_style,
    shared_prompts,
    split_conversations,
    to_messages,
)
from ..data.opening import Reading
from ..data.padding import by_length, padding_share
from ..errors import UserError
from ..evaluation.perplexity import evaluate_loss
from ..files import write_json
from ..tokenization.special_tokens import describe_special_tokens
from ..training_conflicts import resolve_trainable
from .callbacks import CurveCallback, OverfittingCallback, PerplexityCallback, SamplesCallback
from .finetuning import SPLITS, add_lora, train_last_blocks
from .optimizers import muon_learning_rate_field, optimizer_field
from .run import evaluation_curve, run_figures

LITTLE_ROOM = 64  # tokens, about two sentences: the minimum length of useful replies


@dataclass
class InstructionArguments(Reading):
    """The flags of `scripts/finetune_instructions.py` besides TrainingArguments."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Records to train on: json, jsonl, csv, tsv, parquet, or a `datasets` name. Alpaca (with system, history), messages, "
            "ShareGPT or prompt/completion."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "Records to validate on, with --split files."})
    test_file: str | None = field(default=None, metadata={"help": "Records to test on, with --split files."})
    split: str = field(
        default="ordered",
        metadata={
            "help": "ordered: train, test, validation in the order of the file, as published. random: shuffled first. files: three files.",
            "choices": ["ordered", "random", "files"],
        },
    )
    split_fractions: list[float] = field(
        default_factory=lambda: [0.85, 0.05, 0.1], metadata={"help": "Fractions for train, validation and test."}
    )
    split_seed: int = field(
        default=123, metadata={"help": "Seed of --split random; independent of --seed, so that runs share the split."}
    )
    remove_shared_prompts: bool = field(
        default=False, metadata={"help": "Remove training records whose prompt also occurs in validation or test."}
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A checkpoint of this package to finetune."})
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer. Default: the checkpoint's."})
    config_overrides: str | None = field(default=None, metadata={"help": "Dropout of the checkpoint: drop_rate=0.1"})
    prompt_style: str = field(
        default="alpaca",
        metadata={
            "help": "Chat template: alpaca, phi3, chatml, or the tokenizer's own (it needs {%% generation %%} markers).",
            "choices": list(PROMPT_STYLES),
        },
    )
    mask_prompt: bool = field(default=False, metadata={"help": "Train only on the replies, not on the prompts."})
    learn: str = field(
        default="all",
        metadata={
            "help": "Which replies of a conversation to train on: all, or only the last one.",
            "choices": ["all", "last"],
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens per record. Default: the model's context length."}
    )
    ignore_keys: list[str] | None = field(
        default=None, metadata={"help": "Keys of records and messages to ignore, whatever they contain."}
    )
    skip_unusable: bool = field(
        default=False,
        metadata={
            "help": "Skip records that cannot be trained on: an empty reply, no trainable token, parts that the template omits."
        },
    )
    packing: bool = field(
        default=False, metadata={"help": "Pack several records into a row of --pack_length; they do not attend to each other."}
    )
    pack_length: int = field(default=512, metadata={"help": "Maximum tokens per packed row."})
    trainable: str = field(
        default="all",
        metadata={"help": "Trainable parameters: all, last_blocks or lora.", "choices": ["all", "last_blocks", "lora"]},
    )
    train_last_blocks: int | None = field(
        default=None, metadata={"help": "With --trainable last_blocks: how many, and the final norm. Default: 2."}
    )
    lora_rank: int | None = field(default=None, metadata={"help": "Rank of the LoRA matrices. Default: 16."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA's scale is alpha / rank. Default: 16."})
    lora_targets: list[str] | None = field(
        default=None, metadata={"help": "Projections with LoRA, e.g. q_proj v_proj. Default: all of attention and MLP."}
    )
    optimizer: str = optimizer_field()
    muon_learning_rate: float | None = muon_learning_rate_field()
    loss_implementation: str = field(
        default="chunked",
        metadata={
            "help": "chunked: without keeping the logits, faster. full: all logits at once.",
            "choices": ["chunked", "full"],
        },
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better validation loss."}
    )
    sample_replies: int = field(default=3, metadata={"help": "Validation prompts answered after each evaluation; 0 for none."})
    sample_tokens: int = field(default=64, metadata={"help": "Maximum tokens per sample reply."})

    def __post_init__(self) -> None:
        resolve_trainable(self)


@dataclass
class InstructionSplits:
    """Training, validation and test records, and the number of training records removed because of shared prompts."""

    records: dict[str, Conversations]
    removed: int

    def prompts_in_train(self, split: str) -> int:
        """Number of records of a split whose prompt also occurs in the training data."""
        return 0 if split == "train" else len(shared_prompts(self.records[split], self.records["train"]))


@dataclass
class InstructionData:
    """Training rows, the encoded splits, and validation and test with other labels."""

    splits: InstructionSplits
    train: datasets.Dataset
    encoded: dict[str, EncodedConversations]
    replies: dict[str, datasets.Dataset]  # validation and test, with labels only on the replies
    everything: dict[str, datasets.Dataset]  # labels on every token
    sample_prompts: list[str | tuple[str, list[int]]]  # texts to show, with their tokens
    padding_share: float

    def description(self) -> dict[str, Any]:
        """Statistics of the data, for `metrics.json`."""
        counts = {
            split: {
                "records": len(self.splits.records[split]),
                "prompts_also_in_train": self.splits.prompts_in_train(split),
                "tokens": part.tokens,
                "trainable_tokens": part.trainable_tokens,
                "rows_cut": part.cut,
                "rows_left_out": part.left_out,
            }
            for split, part in self.encoded.items()
        }
        return {"training_records_removed": self.splits.removed, **counts}


def read_splits(args: InstructionArguments) -> InstructionSplits:
    """Read training, validation and test records; prints the size of each, and the number of prompts shared with train.

    Raises:
        UserError: flags that exclude each other, or data that cannot be read or split.
    """
    check_instruction_splits(args)
    assert args.train_file is not None  # check_instructions
    reading, ignored = Reading.of(args), args.ignore_keys or ()
    if args.split == "files":
        names = {"train": args.train_file, "validation": args.validation_file, "test": args.test_file}
        splits = {split: read_conversations(str(name), split, reading, ignored) for split, name in names.items()}
    else:
        seed = args.split_seed if args.split == "random" else None
        splits = split_conversations(read_conversations(args.train_file, "train", reading, ignored), args.split_fractions, seed)
    removed = 0
    if args.remove_shared_prompts:
        held_out = Conversations(splits["validation"].records + splits["test"].records, [])
        shared = set(shared_prompts(splits["train"], held_out))
        removed = len(shared)
        splits["train"] = splits["train"].take(i for i in range(len(splits["train"])) if i not in shared)
    result = InstructionSplits(splits, removed)
    for name, part in splits.items():
        shared_with_train = "" if name == "train" else f", {result.prompts_in_train(name)} of their prompts also in train"
        print(f"{name}: {len(part):,} records{shared_with_train}")
    if removed:
        print(f"{removed:,} training records were removed: their prompts occur in validation or test")
    return result


def prepare_data(
    args: InstructionArguments,
    splits: InstructionSplits,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    training_args: TrainingArguments,
) -> InstructionData:
    """Set the chat template of `prompt_style` and encode every split; prints statistics of each split.

    Raises:
        UserError: a template without markers, a row without a trainable token.
    """
    set_prompt_style(tokenizer, args.prompt_style)
    texts = (
        message["content"]
        for part in splits.records.values()
        for record in part.records
        if "input_ids" not in record
        for message in to_messages(record, args.prompt_style)
    )
    if written := describe_special_tokens(texts, tokenizer):
        print(written)
    limit = model.config.max_position_embeddings
    settings = {"max_length": min(args.max_length or limit, limit), "skip_unusable": args.skip_unusable, "learn": args.learn}
    if args.packing and args.pack_length > limit:
        raise UserError(f"--pack_length {args.pack_length} is longer than the model's {limit} positions")

    def encode(split: str, mask_prompt: bool) -> EncodedConversations:
        return encode_conversations(splits.records[split], tokenizer, args.prompt_style, mask_prompt, **settings)

    encoded = {split: encode(split, args.mask_prompt) for split in SPLITS}
    for split, part in encoded.items():
        print(f"{split}: {part}")
    held_out = ("validation", "test")
    # Sorted by length to reduce padding; the order does not affect a mean over tokens.
    replies = {split: by_length(encode(split, True).rows) for split in held_out}
    warn_of_little_room(replies["validation"]["labels"], limit)
    everything = {split: by_length(encode(split, False).rows) for split in held_out}
    train = encoded["train"].rows
    if args.packing:
        train = pack_rows(train, args.pack_length)
        print(f"packing: {len(encoded['train'].rows):,} rows in {len(train):,} of at most {max(train['length'])} tokens")
    grouped = training_args.train_sampling_strategy == "group_by_length"
    waste = padding_share(train["length"], training_args.per_device_train_batch_size, grouped)
    print(f"padding: {waste:.1%} of the tokens in training batches{' grouped by length' if grouped else ''}")
    askable = [record for record in splits.records["validation"].records if "input_ids" not in record]
    prompts: list[str | tuple[str, list[int]]] = [
        (prompt_text(record, tokenizer, args.prompt_style), prompt_ids(record, tokenizer, args.prompt_style))
        for record in askable[: args.sample_replies]
    ]
    return InstructionData(splits, train, encoded, replies, everything, prompts, waste)


def warn_of_little_room(labels: list[list[int]], positions: int) -> None:
    """Print a warning if prompts fill most of the model's positions.

    Args:
        labels: labels of rows, (T,) each, only on the replies.
    """
    prompt = int(statistics.median(next((i for i, label in enumerate(row) if label != IGNORED), len(row)) for row in labels))
    if positions - prompt < LITTLE_ROOM:
        print(
            f"warning: prompts have {prompt} tokens (median of the validation split), which leaves {max(0, positions - prompt)} of the "
            f"model's {positions} positions for a reply: choose a shorter --prompt_style or a model with more positions"
        )


def choose_trainable(model: PreTrainedModel, args: InstructionArguments) -> Any:
    """Freeze all parameters not selected by `args.trainable`; for "lora", return the model wrapped by peft.

    Raises:
        UserError: "lora" without peft installed or with unknown targets, more blocks than the model has.
    """
    if args.trainable == "lora":
        assert args.lora_rank is not None and args.lora_alpha is not None  # resolve_trainable
        return add_lora(model, "CAUSAL_LM", args.lora_rank, args.lora_alpha, args.lora_targets or "all-linear")
    if args.trainable == "last_blocks":
        train_last_blocks(model, args.train_last_blocks or 0)
    return model


def make_callbacks(
    args: InstructionArguments, data: InstructionData, tokenizer: PreTrainedTokenizerBase, title: str
) -> list[TrainerCallback]:
    """The callbacks of a run, in the order in which they must be called."""
    callbacks: list[TrainerCallback] = [PerplexityCallback(), OverfittingCallback(), CurveCallback(title)]
    if data.sample_prompts:
        callbacks.append(SamplesCallback(tokenizer, data.sample_prompts, args.sample_tokens))
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    return callbacks


def held_out_losses(
    model: Any, data: InstructionData, collator: InstructionCollator, batch_size: int, when: str
) -> dict[str, float]:
    """Nats per token over whole splits: of the replies only, and of prompts and replies together (as in published curves)."""

    def measure(rows: datasets.Dataset, what: str) -> float:
        return evaluate_loss(model, rows, batch_size, collator, f"measuring {what}, {when} training")["loss"]

    losses = {f"{split}_response_loss": measure(rows, f"replies of {split}") for split, rows in data.replies.items()}
    losses["validation_loss_all_tokens"] = measure(data.everything["validation"], "all tokens of validation")
    return losses


def figures_of_run(
    trainer: Trainer,
    data: InstructionData,
    trainable: tuple[int, int],
    before: dict[str, float],
    after: dict[str, float],
    train_seconds: float,
) -> dict[str, Any]:
    """Held-out losses before and after, the curve, sizes and speed."""
    return {
        **after,
        **{f"{name}_before": value for name, value in before.items()},
        "trainable_parameters": trainable[0],
        "all_parameters": trainable[1],
        "padding_share": data.padding_share,
        **run_figures(trainer, train_seconds),
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "data": data.description(),
        "curve": evaluation_curve(trainer.state.log_history, "eval_loss", "num_input_tokens_seen"),
    }


def save_test_records(output_dir: str, test: Conversations) -> None:
    """Write the test split as `test.json`, for `scripts/evaluate_instructions.py`."""
    write_json(Path(output_dir) / "test.json", json.loads(json.dumps(test.records, default=str)))
