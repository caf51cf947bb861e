"""Components of pretraining, used by `scripts/pretrain.py`: flags, data, model, optimizer, callbacks and final metrics."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    set_seed,
)

from ..configuration_gpt_scratch import GPTScratchConfig
from ..conflicts import check_pretraining
from ..data.blocks import StreamedBlocks, TokenBlocks
from ..data.language_modeling import SPLITS_BY, BlockSettings, Corpus, LanguageModelingData, Source
from ..data.opening import Reading, check_files, warn_of_shared_files
from ..errors import UserError, innermost, one_line
from ..evaluation.perplexity import bits_per_byte, evaluate_loss
from ..inference.loading import check_rows, load_config, load_model, load_tokenizer
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from ..tokenization.byte_pair import END_OF_TEXT, train_byte_level_bpe
from ..tokenization.gpt2 import load_gpt2_tokenizer
from .arguments import keep_best_checkpoint, parse_config_overrides
from .callbacks import CurveCallback, OverfittingCallback, PerplexityCallback, SamplesCallback, TrainingLossCallback
from .language_model_trainer import LanguageModelTrainer
from .optimizers import make_optimizers, muon_learning_rate_field, optimizer_field, set_default_learning_rate
from .run import evaluation_curve, run_figures


@dataclass
class PretrainingArguments(Reading):
    """The flags of `scripts/pretrain.py` besides TrainingArguments, named as transformers' `run_clm.py` names them."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text to train on: txt (a file is a document), jsonl, json, csv, tsv or parquet (a row is one), each also as .gz, "
            ".bz2, .xz or .zst; a folder of such files, or a glob in quotes."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "Text to validate on. Default: the last part of the training text."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "A `datasets` name or directory, instead of --train_file."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of --dataset_name."})
    text_column: str = field(default="text", metadata={"help": "Column that holds the text of a document."})
    validation_split_percentage: float = field(
        default=10, metadata={"help": "Without validation text: percentage of the characters to hold out, from the end."}
    )
    split_by: str = field(
        default="documents",
        metadata={
            "help": "Where the validation text begins: documents, at the nearest end of one; characters, at the exact character, as the "
            "book splits.",
            "choices": list(SPLITS_BY),
        },
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read and tokenize during training, in constant memory; needs --max_steps."}
    )
    validation_documents: int = field(
        default=100, metadata={"help": "With --streaming and no validation text: documents at the start to hold out."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "A tokenizer's directory or Hub name, or a directory with OpenAI's encoder.json and vocab.bpe. "
            "Default: a byte-level BPE trained on the training text."
        },
    )
    vocab_size: int = field(
        default=8000, metadata={"help": "Vocabulary size of the BPE that is trained without --tokenizer_name."}
    )
    block_size: int | None = field(
        default=None, metadata={"help": "Tokens per row. Default: the model's max_position_embeddings."}
    )
    stride: int | None = field(
        default=None,
        metadata={
            "help": "Tokens between the starts of training rows. Default: block_size - 1, so that each token is predicted once."
        },
    )
    append_eos: bool = field(default=True, metadata={"help": "End each document with the end-of-text token."})
    parse_special_tokens: bool = field(
        default=False,
        metadata={
            "help": "Encode special tokens written in the text as tokens, for corpora whose documents are separated by <|endoftext|>. "
            "Default: as characters. Their number is printed."
        },
    )
    isolate_documents: bool = field(default=False, metadata={"help": "Documents that share a row do not attend to each other."})
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Processes that tokenize. Default: the tokenizer's threads, on all cores."}
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A checkpoint to start from, with a fresh optimizer, and its tokenizer. Default: new weights."},
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Of a new model: n_embd=384,n_layer=6,... or a JSON object of GPTScratchConfig's fields."}
    )
    weight_decay_on: str = field(
        default="matrices",
        metadata={
            "help": "matrices: Trainer's rule, no decay on biases and norms. all: as the book.",
            "choices": ["matrices", "all"],
        },
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
    eval_train_blocks: int = field(
        default=0, metadata={"help": "Training rows whose loss is also measured at each evaluation, without dropout."}
    )
    sample_prompt: list[str] | None = field(
        default=None, metadata={"help": "Prompts continued after each evaluation. Default: the start of the validation text."}
    )
    sample_tokens: int = field(default=50, metadata={"help": "Tokens of each sample; 0 for none."})
    sample_temperature: float = field(default=0.0, metadata={"help": "Temperature of the samples (top-k 50); 0 is greedy."})


def check_arguments(args: PretrainingArguments, training_args: TrainingArguments) -> None:
    """Check the flags without reading data.

    Raises:
        UserError: names the flags.
    """
    check_pretraining(args, training_args)
    Reading.of(args)
    check_files([*(args.train_file or []), *(args.validation_file or [])])


def model_config(args: PretrainingArguments) -> GPTScratchConfig:
    """The configuration of the model, before the vocabulary is known.

    Raises:
        UserError: invalid settings, an unreadable checkpoint, a checkpoint of another architecture.
    """
    if args.model_name_or_path:
        config = load_config(args.model_name_or_path)
        if not isinstance(config, GPTScratchConfig):
            raise UserError(
                f"--model_name_or_path {args.model_name_or_path} is a {config.model_type} model: "
                "convert it first with scripts/convert_checkpoint.py"
            )
        return config
    overrides = parse_config_overrides(args.config_overrides, GPTScratchConfig)
    positions = {"max_position_embeddings", "context_length", "n_positions", "n_ctx"}
    if args.block_size and not positions & overrides.keys():
        overrides["max_position_embeddings"] = args.block_size
    try:
        return GPTScratchConfig(**overrides)
    except (ValueError, TypeError) as error:
        raise UserError(f"--config_overrides: {one_line(innermost(error))}") from error


def open_tokenizer(name: str, model_max_length: int) -> PreTrainedTokenizerBase:
    """Load a tokenizer by Hub name or directory, including OpenAI's two files.

    Raises:
        UserError: it cannot be loaded.
    """
    if (Path(name) / "encoder.json").is_file() and (Path(name) / "vocab.bpe").is_file():
        return load_gpt2_tokenizer(name, model_max_length=model_max_length)
    return load_tokenizer(name)


def prepare_data(
    args: PretrainingArguments, config: GPTScratchConfig, resume: str | None = None
) -> tuple[LanguageModelingData, PreTrainedTokenizerBase]:
    """Read, split and tokenize the text and create blocks; prints statistics of each split.

    Args:
        resume: the checkpoint to resume from. Its tokenizer is used instead of training a new one.

    Raises:
        UserError: data that cannot be read or is shorter than one block, a tokenizer that does not fit the model.
    """
    block_size = args.block_size or config.max_position_embeddings
    if block_size > config.max_position_embeddings and config.position_embedding_type == "learned":
        raise UserError(
            f"--block_size {block_size} is longer than the model's max_position_embeddings {config.max_position_embeddings}"
        )
    name = args.tokenizer_name or args.model_name_or_path or resume
    tokenizer = open_tokenizer(name, block_size) if name else None
    corpus = open_corpus(args, tokenizer.eos_token if tokenizer else END_OF_TEXT)
    if tokenizer is None:
        tokenizer = train_byte_level_bpe(corpus.training_texts(), vocab_size=args.vocab_size, model_max_length=block_size)
        print(f"tokenizer: byte-level BPE trained on the training text, {len(tokenizer):,} tokens")
    resolve_vocab_size(tokenizer, args, config)
    settings = BlockSettings(
        block_size,
        args.stride,
        args.append_eos,
        args.isolate_documents,
        args.parse_special_tokens,
        args.preprocessing_num_workers,
    )
    return corpus.blocks(tokenizer, settings), tokenizer


def open_corpus(args: PretrainingArguments, end_of_text: str | None) -> Corpus:
    """Open the documents given by the flags, and split them.

    Raises:
        UserError: data that cannot be read or split.
    """
    common: dict[str, Any] = {
        "text_column": args.text_column,
        "reading": Reading.of(args),
        "end_mark": end_of_text if args.parse_special_tokens else None,
    }
    table: dict[str, Any] = {"dataset_name": args.dataset_name, "config_name": args.dataset_config_name}
    source = Source(tuple(args.train_file or ()), **table, **common)
    validation = None
    if args.validation_file:
        warn_of_shared_files(args.train_file or (), args.validation_file)
        validation = Source(tuple(args.validation_file), **common)
    elif args.dataset_name and not args.streaming:
        validation = Source(**table, split="validation", **common)
    return Corpus.open(
        source, validation, args.validation_split_percentage, args.split_by, args.streaming, args.validation_documents
    )


def resolve_vocab_size(tokenizer: PreTrainedTokenizerBase, args: PretrainingArguments, config: GPTScratchConfig) -> None:
    """Set the `vocab_size` of a new model to that of the tokenizer, unless it is set by the user; before any text is tokenized.

    Raises:
        UserError: the tokenizer is larger than the vocabulary of the checkpoint, or the one set by the user.
    """
    chosen = parse_config_overrides(args.config_overrides, GPTScratchConfig).keys() & {"vocab_size", "n_vocab"}
    if args.model_name_or_path or chosen:
        check_rows(tokenizer, config, args.model_name_or_path or "the model of --config_overrides")
    else:
        config.vocab_size = len(tokenizer)


def make_model(args: PretrainingArguments, config: GPTScratchConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Create a new model (seed it first), or load the checkpoint of `model_name_or_path`; special tokens are those of the tokenizer."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    if args.model_name_or_path:
        return load_model(args.model_name_or_path, "lm", "float32", config=config)
    return GPTScratchForCausalLM(config)


def make_callbacks(
    args: PretrainingArguments, data: LanguageModelingData, tokenizer: PreTrainedTokenizerBase, title: str
) -> list[TrainerCallback]:
    """The callbacks of a run, in the order in which they must be called."""
    callbacks: list[TrainerCallback] = [PerplexityCallback()]
    if args.eval_train_blocks:
        callbacks.append(TrainingLossCallback(first_rows(data.train, args.eval_train_blocks)))
    callbacks += [OverfittingCallback(), CurveCallback(title)]
    if args.sample_tokens:
        beginning = data.validation.tokens(0, 8).tolist()
        prompts: list[Any] = args.sample_prompt or [(tokenizer.decode(beginning), beginning)]
        callbacks.append(SamplesCallback(tokenizer, prompts, args.sample_tokens, args.sample_temperature))
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    return callbacks


def make_trainer(
    trainer_class: type[LanguageModelTrainer],
    args: PretrainingArguments,
    training_args: TrainingArguments,
    config: GPTScratchConfig,
    data: LanguageModelingData,
    tokenizer: PreTrainedTokenizerBase,
    callbacks: Sequence[TrainerCallback],
) -> LanguageModelTrainer:
    """The model, initialized with `--seed` or loaded, and its trainer. `training_args` gets the default learning rate and, with early
    stopping, the settings that keep the best checkpoint.
    """
    set_seed(training_args.seed)
    model = make_model(args, config, tokenizer)
    print(describe_model(model))
    set_default_learning_rate(training_args, model.num_parameters(), "all" if args.model_name_or_path else "new")
    if args.early_stopping_patience is not None:
        keep_best_checkpoint(training_args)
    trainer = trainer_class(
        model=model,
        args=training_args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        processing_class=tokenizer,
        data_collator=default_data_collator,  # all rows have the same length: nothing to pad
        callbacks=list(callbacks),
        **make_optimizers(args, training_args, model),
    )
    trainer.script_args = args
    return trainer


def first_rows(rows: TokenBlocks | StreamedBlocks, count: int) -> list[dict]:
    """The first `count` rows of a data set or stream."""
    return list(islice(rows if isinstance(rows, StreamedBlocks) else (rows[i] for i in range(len(rows))), count))


def describe_model(model: PreTrainedModel) -> str:
    """Describe the number of parameters and the architecture in one line."""
    c = model.config
    tied = "tied" if c.tie_word_embeddings else "untied"
    return (
        f"model: {model.num_parameters():,} parameters ({tied} head), {c.num_hidden_layers} layers, {c.num_attention_heads} heads, "
        f"width {c.hidden_size}, {c.max_position_embeddings} positions ({c.position_embedding_type}), {c.norm_type}, "
        f"{c.mlp_type} MLP ({c.hidden_act}), vocabulary {c.vocab_size:,}"
    )


def measure(trainer, data: LanguageModelingData, train_seconds: float | None, eval_train_blocks: int) -> dict[str, Any]:
    """The final metrics: token-weighted losses, the best validation loss, speed, tokens seen."""
    history, batch_size = trainer.state.log_history, trainer.args.per_device_eval_batch_size
    if isinstance(data.train, StreamedBlocks) and (written := data.train.written()):
        print(f"training: {written}")
    speeds = [entry["train_tokens_per_second"] for entry in history if "train_tokens_per_second" in entry]
    validation = evaluate_loss(trainer.model, data.validation, batch_size, name="measuring the validation text")
    counts = data.description["validation"]  # of the whole text: the mean loss is used for the few tokens that no row predicts
    metrics = {
        "validation_loss": validation["loss"],
        "validation_perplexity": validation["perplexity"],
        "validation_predicted_tokens": validation["predicted_tokens"],
        "validation_bits_per_byte": bits_per_byte(validation["loss"], counts["tokens"], counts["bytes"]),
        **run_figures(trainer, train_seconds),
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "train_tokens_per_second": speeds[-1] if speeds else None,
        "data": data.description,
    }
    if eval_train_blocks:
        rows = first_rows(data.train, eval_train_blocks)
        metrics["train_loss"] = evaluate_loss(trainer.model, rows, batch_size, name="measuring training text")["loss"]
    curve = evaluation_curve(history, "eval_loss", "train_eval_loss", "num_input_tokens_seen")
    if curve:
        best = min(curve, key=lambda entry: entry["eval_loss"])
        metrics |= {"best_validation_loss": best["eval_loss"], "best_validation_step": best["step"], "curve": curve}
    return metrics
