"""Components of classification finetuning: flags, data, model, trainable parameters, metrics, plots and the table of mistakes."""

import csv
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from ..configuration_gpt_scratch import GPTScratchConfig
from ..conflicts import check_classification_splits
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
from ..evaluation.classification import METRIC_PATH, figures_by_class, softmax
from ..files import atomic_path
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..modeling_gpt_scratch import GPTScratchForSequenceClassification
from ..overrides import DROPOUTS
from ..plots import new_figure, save_figure, save_lines
from ..progress import named
from ..tokenization.byte_pair import train_byte_level_bpe
from ..tokenization.special_tokens import describe_special_tokens
from ..training_conflicts import resolve_trainable
from .arguments import parse_config_overrides
from .checkpoints import ResumableTrainer
from .finetuning import (
    SPLITS,
    add_lora,
    dropout_overrides,
    train_last_blocks,
)
from .losses import balanced_class_weights, classification_loss
from .run import evaluation_curve, run_figures

# Default sizes of a new classifier, as in spam/random.yaml: a few thousand texts are too few to train GPT-2's 86 million weights.
SMALL = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 512, "drop_rate": 0.2}
SIZES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "head_dim"}


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
        default_factory=lambda: [0.7, 0.1, 0.2], metadata={"help": "Fractions for train, validation and test with --split clean."}
    )
    split_seed: int = field(
        default=123, metadata={"help": "Seed of the clean split; independent of --seed, so that runs share the split."}
    )
    deduplicate: bool = field(default=True, metadata={"help": "With --split clean, keep one of each group of equal texts."})
    conflicting_labels: str = field(
        default="refuse",
        metadata={
            "help": "With --deduplicate, what to do with equal texts with different labels: refuse, keep the first, or drop all.",
            "choices": list(CONFLICTS),
        },
    )
    balance_classes: bool = field(
        default=False, metadata={"help": "Train on the same number of texts of each class: as many as the rarest has."}
    )
    text_column: str | None = field(default=None, metadata={"help": "Column of the texts. Default: text, in any case."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels. Default: label, in any case."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "Names of the classes in the order of their ids. Default: the labels, sorted."}
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "A checkpoint of this package, language model or classifier. Default: new weights."}
    )
    tokenizer_name: str | None = field(default=None, metadata={"help": "Tokenizer of a new model. Default: a BPE is trained."})
    vocab_size: int = field(default=2000, metadata={"help": "Vocabulary size of the BPE that is trained."})
    config_overrides: str | None = field(
        default=None,
        metadata={
            "help": "Of a new model: n_embd=384,... or JSON; of a checkpoint only dropout: drop_rate=0.0. Default of a new model: that of "
            "scripts/configs/spam/random.yaml, n_embd=128,n_layer=4,n_head=4,n_positions=512,drop_rate=0.2."
        },
    )
    trainable: str | None = field(
        default=None,
        metadata={
            "help": "Trainable parameters: head, last_blocks (with final norm and head), all, or lora. Default: all of a new model, the "
            "last block of a checkpoint. last_block and last_two_blocks are last_blocks with --train_last_blocks 1 and 2.",
            "choices": ["head", "last_blocks", "all", "lora", "last_block", "last_two_blocks"],
        },
    )
    train_last_blocks: int | None = field(default=None, metadata={"help": "With --trainable last_blocks: how many. Default: 2."})
    lora_rank: int | None = field(default=None, metadata={"help": "Rank of the LoRA matrices. Default: 16."})
    lora_alpha: int | None = field(default=None, metadata={"help": "LoRA's scale is alpha / rank. Default: 16."})
    class_weights: bool = field(
        default=False, metadata={"help": "Weight each class inversely to its frequency in the training rows."}
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum tokens per text. Default: the model's context length."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after this many evaluations without a better --metric_for_best_model."}
    )

    def __post_init__(self) -> None:
        resolve_trainable(self)


@dataclass
class ClassificationSplits:
    """Training, validation and test texts, and the id of each class."""

    texts: dict[str, LabelledTexts]
    ids: dict[str, int]
    copies_removed: int

    @property
    def names(self) -> list[str]:
        """The classes in the order of their ids."""
        return sorted(self.ids, key=self.ids.__getitem__)

    def also_in_train(self, split: str) -> int:
        """Number of texts of a split that also occur in the training data."""
        return overlap(self.texts[split], self.texts["train"])


@dataclass
class ClassificationData:
    """Encoded rows of each split, and the number of truncated texts."""

    splits: ClassificationSplits
    rows: dict[str, datasets.Dataset]
    cut: dict[str, int]

    def description(self) -> dict[str, Any]:
        """Statistics of the data, for `metrics.json`."""
        counts = {
            split: {
                "rows": len(texts),
                "classes": texts.counts(),
                "texts_also_in_train": self.splits.also_in_train(split),
                "texts_cut": self.cut[split],
                "longest": max(self.rows[split]["length"]),
                "tokens": sum(self.rows[split]["length"]),
            }
            for split, texts in self.splits.texts.items()
        }
        return {"copies_removed": self.splits.copies_removed, **counts}


def read_splits(args: ClassificationArguments) -> ClassificationSplits:
    """Read training, validation and test texts, and the class ids; prints statistics of each split.

    Raises:
        UserError: flags that exclude each other, or data that cannot be read or split.
    """
    check_classification_splits(args)
    assert args.train_file is not None
    reading = Reading.of(args)

    def read(name: Any) -> LabelledTexts:
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
    texts = dict(zip(SPLITS, parts))
    ids = label_ids(texts["train"].labels, args.class_names or texts["train"].class_order)
    for name, part in texts.items():
        check_labels(part, ids, name)
    if args.balance_classes:
        texts["train"] = balance(texts["train"], args.split_seed)
    splits = ClassificationSplits(texts, ids, copies)
    for name, part in texts.items():
        note = "" if name == "train" else f", {splits.also_in_train(name)} of them also in train"
        print(f"{name}: {len(part):,} texts, {', '.join(f'{n:,} {label}' for label, n in part.counts().items())}{note}")
    if copies:
        print(f"{copies:,} duplicate texts were removed before splitting")
    return splits


def make_model(
    args: ClassificationArguments, ids: dict[str, int], train: LabelledTexts, seed: int, resume: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Create the classifier, with a new head unless the checkpoint is a classifier, and its tokenizer, with the same pad token.

    Args:
        resume: the checkpoint to resume from. Its tokenizer is used instead of training a new one.

    Raises:
        UserError: a checkpoint or tokenizer that cannot be loaded, or invalid settings.
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
        overrides = new_model_settings(args)
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
        # Safe, since this model pools by attention_mask: an end-of-text token inside a text is not treated as padding.
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(model.config, name, getattr(tokenizer, name))
    return model, tokenizer


def new_model_settings(args: ClassificationArguments) -> dict[str, Any]:
    """`--config_overrides` of a new model, in addition to [`SMALL`] if they set no sizes.

    >>> new_model_settings(ClassificationArguments(config_overrides="n_positions=64"))["max_position_embeddings"]
    64
    """
    overrides = parse_config_overrides(args.config_overrides, GPTScratchConfig)
    names = {GPTScratchConfig.attribute_map.get(name, name): value for name, value in overrides.items()}
    if names.keys() & SIZES:
        return overrides
    if names.keys() & DROPOUTS:
        return {name: value for name, value in SMALL.items() if name != "drop_rate"} | names
    return SMALL | names


def choose_trainable(model: PreTrainedModel, args: ClassificationArguments) -> PreTrainedModel:
    """Freeze all parameters not selected by `args.trainable`; for "lora", return the model wrapped by peft.

    Raises:
        UserError: "lora" without peft installed, more blocks than the model has.
    """
    if args.trainable != "all" and not args.model_name_or_path:
        print(f"warning: --trainable {args.trainable} does not train most of these new, random weights: pass --trainable all")
    if args.trainable == "lora":
        assert args.lora_rank is not None and args.lora_alpha is not None  # resolve_trainable
        return add_lora(model, "SEQ_CLS", args.lora_rank, args.lora_alpha, modules_to_save=["score"])
    if args.trainable != "all":
        train_last_blocks(model, args.train_last_blocks or 0, head=model.score)
    return model


def trainable_scope(args: ClassificationArguments) -> str:
    """The name of the trainable parameters for `set_default_learning_rate`."""
    if not args.model_name_or_path:
        return "new"
    return {"head": "head", "all": "all"}.get(str(args.trainable), "some")


def encode_splits(
    args: ClassificationArguments, splits: ClassificationSplits, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> ClassificationData:
    """Token ids of every text, truncated to `max_length`; prints the number of truncated texts."""
    if written := describe_special_tokens((text for part in splits.texts.values() for text in part.texts), tokenizer):
        print(written)
    limit = model.config.max_position_embeddings
    max_length = min(args.max_length or limit, limit)
    data = ClassificationData(splits, {}, {})
    for name, part in splits.texts.items():
        data.rows[name], data.cut[name] = encode_texts(part, tokenizer, splits.ids, max_length)
        if data.cut[name]:
            print(f"{name}: {data.cut[name]} texts are longer than {max_length} tokens and were truncated")
    return data


def make_loss(args: ClassificationArguments, training_args: TrainingArguments, data: ClassificationData) -> dict[str, Any]:
    """Keyword arguments for Trainer: a loss with class weights and label smoothing, if requested."""
    if not args.class_weights and not training_args.label_smoothing_factor:
        return {}
    weights = balanced_class_weights(data.rows["train"]["labels"], len(data.splits.ids)) if args.class_weights else None
    return {"compute_loss_func": classification_loss(weights, training_args.label_smoothing_factor)}


def make_compute_metrics():
    """Trainer's `compute_metrics`: the package's own `evaluate` metric, loaded by path."""
    import evaluate

    metric = evaluate.load(METRIC_PATH)

    def compute(prediction: EvalPrediction) -> dict[str, Any]:
        return metric.compute(predictions=softmax(np.asarray(prediction.predictions)), references=prediction.label_ids)

    return compute


class ClassifierTrainer(ResumableTrainer):
    """[`ResumableTrainer`] that evaluates rows in order, even if training batches are grouped by length."""

    def _get_eval_sampler(self, eval_dataset: datasets.Dataset) -> torch.utils.data.Sampler | None:
        in_training = eval_dataset is self.eval_dataset
        return super()._get_eval_sampler(eval_dataset) if in_training else torch.utils.data.SequentialSampler(eval_dataset)


@dataclass
class Predictions:
    """Texts of a split, sorted by length, with scores (rows, L) and true class ids (rows,)."""

    texts: LabelledTexts
    scores: np.ndarray
    references: np.ndarray


def measure(trainer: ClassifierTrainer, data: ClassificationData) -> tuple[dict[str, Any], Predictions]:
    """Metrics of all three splits, and the predictions for the test split."""
    metrics: dict[str, Any] = {}
    for split in SPLITS:
        lengths = data.rows[split]["length"]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)  # reduces padding
        with named(f"measuring {split}"):
            prediction = trainer.predict(data.rows[split].select(order), metric_key_prefix=split)
        for name, value in prediction.metrics.items():
            if not name.endswith(("_runtime", "_per_second", "_preparation_time")):
                metrics[name] = value
    predictions = Predictions(data.splits.texts[split].take(order), softmax(prediction.predictions), prediction.label_ids)
    return metrics, predictions


def figures_of_run(
    trainer: Trainer, data: ClassificationData, measured: dict[str, Any], trainable: tuple[int, int], train_seconds: float
) -> dict[str, Any]:
    """The metrics of the run, with classes, sizes, speed and the loss curve."""
    return {
        "trainable_parameters": trainable[0],
        "all_parameters": trainable[1],
        **run_figures(trainer, train_seconds),
        "labels": data.splits.names,
        "data": data.description(),
        **measured,
        "curve": evaluation_curve(trainer.state.log_history, "eval_loss", "eval_accuracy"),
    }


def write_mistakes(path: Path, predictions: Predictions, names: list[str]) -> None:
    """Write the wrong predictions, the most confident first: confidence, predicted, true, row of the file, text."""
    texts, scores, references = predictions.texts, predictions.scores, predictions.references
    wrong = [i for i in np.argsort(-scores.max(-1)) if scores[i].argmax() != references[i]]
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["confidence", "predicted", "true", "row", "text"])
        for i in wrong:
            writer.writerow(
                [f"{scores[i].max():.4f}", names[scores[i].argmax()], names[references[i]], texts.rows[i], texts.texts[i]]
            )


def plot_curves(history: list[dict[str, Any]], train_rows: int, output: Path) -> None:
    """Plot `loss` and `accuracy` against examples seen, PNG and PDF."""
    examples = [{**entry, "examples": entry["epoch"] * train_rows} for entry in history if "epoch" in entry]
    save_lines(examples, {"loss": "training", "eval_loss": "validation"}, "examples", output / "loss", "examples seen", "loss")
    save_lines(examples, {"eval_accuracy": "validation"}, "examples", output / "accuracy", "examples seen", "accuracy")


def plot_confusion(matrix: list[list[int]], names: list[str], path: Path, title: str = "Test texts") -> None:
    """Plot the confusion matrix with counts, coloured by the share of each row, and precision and recall of each class; PNG and PDF."""
    figures = figures_by_class(matrix, names)
    wrapped = ["\n".join(textwrap.wrap(name, 24) or [name]) for name in names]
    longest = max(len(line) for name in wrapped for line in name.split("\n"))
    slanted = longest > 10
    lines = max(name.count("\n") for name in wrapped) + 3
    cell = max(0.9, 0.17 * lines)
    figure, axes = new_figure(
        size=(2.6 + 0.09 * longest + 1.25 * len(names), 2.1 + (0.07 * longest if slanted else 0) + cell * len(names))
    )
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            colour = "white" if shares[i][j] > 0.5 else "black"
            axes.text(j, i, f"{count:,}\n{shares[i][j]:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(
        range(len(names)),
        [f"{name}\nprecision {row.precision:.0%}" for name, row in zip(wrapped, figures)],
        rotation=40 if slanted else 0,
        ha="right" if slanted else "center",
        rotation_mode="anchor" if slanted else "default",
    )
    axes.set_yticks(
        range(len(names)),
        [f"{name}\n{row.texts:,} texts\nrecall {row.recall:.0%}, F1 {row.f1:.2f}" for name, row in zip(wrapped, figures)],
    )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{title}: counts, and shares of each true class")
    figure.colorbar(image, label="share of the row")
    save_figure(figure, path)


def warn_of_missed_classes(confusion: list[list[int]], names: list[str], args: ClassificationArguments) -> str | None:
    """A warning for classes with a recall of 0, with the flag that helps; `None` if there are none."""
    missing = [row for row in figures_by_class(confusion, names) if row.texts and not row.recall]
    if not missing:
        return None
    listed = ", ".join(
        f"{row.name!r} ({row.texts:,} texts, {f'predicted {row.predicted:,} times' if row.predicted else 'never predicted'})"
        for row in missing
    )
    if not args.class_weights:
        advice = "--class_weights gives rare classes more weight"
    elif not args.balance_classes:
        advice = "--balance_classes trains on the same number of texts of each class"
    else:
        advice = "give more texts of them, or a larger --num_train_epochs"
    return f"warning: recall is 0 for the class{'es' if len(missing) > 1 else ''} {listed}: {advice}"
