"""The parts of a classification finetuning: its flags, data, model, what trains, metrics, plots and the table of mistakes."""

import csv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..configuration_gpt_scratch import GPTScratchConfig
from ..data.classification import (
    CONFLICTS,
    LabelledTexts,
    balance,
    check_labels,
    deduplicate,
    encode_texts,
    label_ids,
    overlap,
    published_split,
    read_labelled_texts,
    stratified_split,
)
from ..data.opening import Reading
from ..errors import UserError, one_line
from ..evaluation.classification import METRIC_PATH, softmax
from ..files import atomic_path
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..modeling_gpt_scratch import GPTScratchForSequenceClassification
from ..plots import new_figure, save_figure, save_lines
from ..tokenization.byte_pair import train_byte_level_bpe
from ..tokenization.special_tokens import describe_special_tokens
from .arguments import parse_config_overrides
from .finetuning import add_lora, dropout_overrides
from .losses import balanced_class_weights, classification_loss

SPLITS = ("train", "validation", "test")


@dataclass
class ClassificationArguments(Reading):
    """The flags of `scripts/finetune_classifier.py` besides TrainingArguments."""

    train_file: str | None = field(
        default=None,
        metadata={"help": "Labelled texts: the SMS Spam Collection (zip, tsv, no suffix), csv, tsv, jsonl, json, parquet."},
    )
    validation_file: str | None = field(default=None, metadata={"help": "Labelled texts to validate on, with --split files."})
    test_file: str | None = field(default=None, metadata={"help": "Labelled texts to test on, with --split files."})
    split: str = field(
        default="clean",
        metadata={
            "help": "clean: copies removed, then stratified by --split_fractions. published: the book's rows of the SMS Spam "
            "Collection, exactly. files: the three files as they are.",
            "choices": ["clean", "published", "files"],
        },
    )
    split_fractions: list[float] = field(
        default_factory=lambda: [0.7, 0.1, 0.2], metadata={"help": "Shares of train, validation and test with --split clean."}
    )
    split_seed: int = field(default=123, metadata={"help": "Seed of the clean split, apart from --seed so that runs share it."})
    deduplicate: bool = field(default=True, metadata={"help": "With --split clean, keep one of each group of equal texts."})
    conflicting_labels: str = field(
        default="refuse",
        metadata={
            "help": "Of equal texts with different labels, with --deduplicate: refuse them, keep the first, or drop them all.",
            "choices": list(CONFLICTS),
        },
    )
    balance_classes: bool = field(default=False, metadata={"help": "Train on as many texts of each class as the rarest has."})
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts. Default: text, in any case."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels. Default: label, in any case."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes in the order of their ids. Default: the labels, sorted."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint of this package, language model or classifier. Default: new weights."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer of a new model. Default: a BPE is trained."})
    vocab_size: int = field(default=2000, metadata={"help": "Vocabulary of the BPE that is trained."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Of a new model: n_embd=384,... or JSON; of a checkpoint only dropout: drop_rate=0.0"}
    )
    trainable: str = field(
        default="last_block",
        metadata={
            "help": "What trains: head alone, last_block (with final norm and head), last_two_blocks, all, or lora.",
            "choices": ["head", "last_block", "last_two_blocks", "all", "lora"],
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA matrices."})
    lora_alpha: int = field(default=16, metadata={"help": "LoRA's scale is alpha / rank."})
    class_weights: bool = field(
        default=False, metadata={"help": "Weight each class inversely to its share of the training rows."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Tokens of a text at most. Default: the model's positions."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better --metric_for_best_model."}
    )


@dataclass
class ClassificationData:
    """Encoded rows of each split, the texts that they came from, and the classes."""

    rows: dict[str, datasets.Dataset]
    texts: dict[str, LabelledTexts]
    ids: dict[str, int]
    description: dict[str, Any]


def read_splits(args: ClassificationArguments) -> tuple[dict[str, LabelledTexts], dict[str, int], dict[str, Any]]:
    """Texts of train, validation and test, the class ids, and a description of what came of the file. Prints it, too.

    Raises:
        UserError: flags that do not go together, or data that cannot be read or split.
    """
    if args.train_file is None:
        raise UserError("--train_file is missing: give the labelled texts to train on")

    reading = Reading.of(args)

    def read(name: str | None) -> LabelledTexts:
        if name is None:
            raise UserError("--split files needs --train_file, --validation_file and --test_file")
        return read_labelled_texts(name, args.text_column, args.label_column, reading=reading)

    copies = 0
    if args.split == "files":
        parts = [read(name) for name in (args.train_file, args.validation_file, args.test_file)]
    elif args.split == "published":
        parts = list(published_split(args.train_file))
    else:
        data = read(args.train_file)
        if args.deduplicate:
            data, copies = deduplicate(data, args.conflicting_labels)
        parts = stratified_split(data, args.split_fractions, args.split_seed)
    splits = dict(zip(SPLITS, parts))
    ids = label_ids(splits["train"].labels, args.class_names or splits["train"].class_order)
    for name, part in splits.items():
        check_labels(part, ids, name)
    if args.balance_classes:
        splits["train"] = balance(splits["train"], args.split_seed)
    description: dict[str, Any] = {"copies_removed": copies}
    for name, part in splits.items():
        description[name] = {"rows": len(part), "classes": part.counts(), "texts_also_in_train": overlap(part, splits["train"])}
        note = "" if name == "train" else f", {description[name]['texts_also_in_train']} of them also in train"
        print(f"{name}: {len(part):,} texts, {', '.join(f'{n:,} {label}' for label, n in part.counts().items())}{note}")
    if copies:
        print(f"{copies:,} copies of other texts were removed before splitting")
    return splits, ids, description


def make_model(
    args: ClassificationArguments, ids: dict[str, int], train: LabelledTexts, seed: int, resume: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The classifier to train, its head new unless the checkpoint is a classifier, and its tokenizer, with one pad token for both.

    Args:
        resume: the checkpoint that the run goes on from. Its tokenizer is taken where one would be trained.

    Raises:
        UserError: a checkpoint or tokenizer that cannot be loaded, or values that no model can have.
    """
    labels = {"id2label": {i: label for label, i in ids.items()}, "label2id": ids, "num_labels": len(ids)}
    set_seed(seed)
    if args.model_name_or_path:
        overrides = dropout_overrides(args.config_overrides)
        name, settings = args.model_name_or_path, {"problem_type": "single_label_classification", **labels, **overrides}
        base = load_config(name, **settings)
        tokenizer = load_tokenizer(args.tokenizer_name or name)
        check_rows(tokenizer, base, name)
        model = load_model(name, "classifier", "float32", new_head=True, config=base)
    else:
        overrides = parse_config_overrides(args.config_overrides, GPTScratchConfig)
        tokenizer = (
            load_tokenizer(args.tokenizer_name or str(resume))
            if args.tokenizer_name or resume
            else train_byte_level_bpe(train.texts, vocab_size=args.vocab_size)
        )
        try:
            sizes: dict[str, Any] = {"vocab_size": len(tokenizer), **overrides, **labels}
            config = GPTScratchConfig(**sizes, problem_type="single_label_classification")
        except (ValueError, TypeError) as error:
            raise UserError(f"--config_overrides: {one_line(error)}") from error
        check_rows(tokenizer, config, "the model of --config_overrides")
        model = GPTScratchForSequenceClassification(config)
    if tokenizer.pad_token is None:
        # Safe, since this model pools by attention_mask: an end-of-text token inside a text is not taken for padding.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
    return model, tokenizer


def choose_trainable(model: PreTrainedModel, args: ClassificationArguments) -> PreTrainedModel:
    """Freeze everything but what `args.trainable` names; for "lora" return the model wrapped by peft.

    Raises:
        UserError: "lora" without peft installed.
    """
    if args.trainable == "lora":
        return add_lora(model, "SEQ_CLS", args.lora_rank, args.lora_alpha, modules_to_save=["score"])
    blocks = {"head": 0, "last_block": 1, "last_two_blocks": 2, "all": len(model.model.layers)}[args.trainable]
    model.requires_grad_(args.trainable == "all")
    parts = [model.score] + ([model.model.norm, *model.model.layers[len(model.model.layers) - blocks :]] if blocks else [])
    for part in parts:
        part.requires_grad_(True)
    return model


def encode_splits(
    args: ClassificationArguments,
    splits: dict[str, LabelledTexts],
    ids: dict[str, int],
    description: dict[str, Any],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> ClassificationData:
    """Token ids of every text, cut at `max_length` with a printed count."""
    if written := describe_special_tokens((text for part in splits.values() for text in part.texts), tokenizer):
        print(written)
    limit = model.config.max_position_embeddings
    max_length = min(args.max_length or limit, limit)
    rows = {}
    for name, part in splits.items():
        rows[name], cut = encode_texts(part, tokenizer, ids, max_length)
        description[name] |= {"texts_cut": cut, "longest": max(rows[name]["length"]), "tokens": sum(rows[name]["length"])}
        if cut:
            print(f"{name}: {cut} texts are longer than {max_length} tokens and were cut")
    return ClassificationData(rows, splits, ids, description)


def make_loss(args: ClassificationArguments, training_args: TrainingArguments, data: ClassificationData) -> dict[str, Any]:
    """Keyword arguments for Trainer: a loss with class weights and label smoothing where either is asked for."""
    if not args.class_weights and not training_args.label_smoothing_factor:
        return {}
    weights = balanced_class_weights(data.rows["train"]["labels"], len(data.ids)) if args.class_weights else None
    return {"compute_loss_func": classification_loss(weights, training_args.label_smoothing_factor)}


def make_compute_metrics():
    """Trainer's `compute_metrics`: the package's own `evaluate` metric, loaded by path."""
    import evaluate

    metric = evaluate.load(METRIC_PATH)

    def compute(prediction: EvalPrediction) -> dict[str, Any]:
        return metric.compute(predictions=softmax(np.asarray(prediction.predictions)), references=prediction.label_ids)

    return compute


def final_metrics(trainer: Trainer, data: ClassificationData, trainable: tuple[int, int], train_seconds: float) -> dict[str, Any]:
    """Figures of all three splits on the whole of each, speed and sizes; writes plots and the table of mistakes."""
    output = Path(trainer.args.output_dir)
    names = sorted(data.ids, key=lambda label: data.ids[label])
    metrics: dict[str, Any] = {
        "trainable_parameters": trainable[0],
        "all_parameters": trainable[1],
        "train_seconds": train_seconds,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "labels": names,
        "data": data.description,
    }
    # Trainer groups by length here too where it does in training, and its predictions then come in an order of its own.
    strategy, trainer.args.train_sampling_strategy = trainer.args.train_sampling_strategy, "random"
    for split in SPLITS:
        lengths = data.rows[split]["length"]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)  # so that little is padded
        prediction = trainer.predict(data.rows[split].select(order), metric_key_prefix=split)
        for name, value in prediction.metrics.items():
            if not name.endswith(("_runtime", "_per_second", "_preparation_time")):
                metrics[name] = value
        if split == "test":
            texts, scores = data.texts[split].take(order), softmax(prediction.predictions)
            write_mistakes(output / "mistakes.tsv", texts, scores, prediction.label_ids, names)
            plot_confusion(metrics["test_confusion_matrix"], names, output / "confusion_matrix")
    trainer.args.train_sampling_strategy = strategy
    metrics["curve"] = [
        {name: entry[name] for name in ("step", "epoch", "eval_loss", "eval_accuracy") if name in entry}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]
    rows = len(data.rows["train"])
    plot_curves(trainer.state.log_history, rows, output)
    return metrics


def write_mistakes(path: Path, texts: LabelledTexts, scores: np.ndarray, references: np.ndarray, names: list[str]) -> None:
    """The wrong predictions, the most confident first: confidence, predicted, true, row of the file, text."""
    wrong = [i for i in np.argsort(-scores.max(-1)) if scores[i].argmax() != references[i]]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["confidence", "predicted", "true", "row", "text"])
        for i in wrong:
            writer.writerow(
                [f"{scores[i].max():.4f}", names[scores[i].argmax()], names[references[i]], texts.rows[i], texts.texts[i]]
            )


def plot_curves(history: list[dict[str, Any]], train_rows: int, output: Path) -> None:
    """`loss` and `accuracy` against examples seen, PNG and PDF."""
    examples = [{**entry, "examples": entry["epoch"] * train_rows} for entry in history if "epoch" in entry]
    save_lines(examples, {"loss": "training", "eval_loss": "validation"}, "examples", output / "loss", "examples seen", "loss")
    save_lines(examples, {"eval_accuracy": "validation"}, "examples", output / "accuracy", "examples seen", "accuracy")


def plot_confusion(matrix: list[list[int]], names: list[str], path: Path) -> None:
    """The confusion matrix with its counts, PNG and PDF."""
    figure, axes = new_figure(size=(1.5 + 1.2 * len(names), 1.2 + 1.1 * len(names)))
    axes.imshow(matrix, cmap="Blues")
    highest = max(map(max, matrix))
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if count > highest / 2 else "black")
    axes.set_xticks(range(len(names)), names, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    save_figure(figure, path)
