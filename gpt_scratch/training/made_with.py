"""Records what a training checkpoint was made with in `.made_with.json`, and compares it when a run is resumed.

A run resumes only with the same architecture, tokenizer, data, classes, trainable parameters and seed; otherwise an error is raised. Other
settings, such as the learning rate or the number of epochs, may be changed, and each change is printed.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, Trainer

from ..errors import UserError
from ..files import read_json_object, write_json
from ..progress import bar

FILE = ".made_with.json"  # hidden, so that it is not uploaded
ROWS = 4096  # evenly spaced rows of a data set whose content is compared; all rows of a smaller one. The number of rows is always compared
STREAMED_ROWS = 32  # the first ones of a stream
# Configuration settings that do not change the outputs, or are compared with the flags (dropout) or separately (classes).
NOT_ARCHITECTURE = {
    *(
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "gpt_scratch_version",
        "transformers_version",
        "use_cache",
    ),
    *(
        "id2label",
        "label2id",
        "problem_type",
        "embedding_dropout",
        "attention_dropout",
        "residual_dropout",
        "_attn_implementation",
    ),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
# Prefixes of flags that do not affect training, or whose effect is compared.
NOT_COMPARED = (
    *(
        "_",
        "allow_non_finite",
        "auto_find",
        "batch_eval",
        "bf16_full_eval",
        "data_seed",
        "dataloader_",
        "dataset_",
        "ddp_",
        "debug",
    ),
    *("disable_tqdm", "do_", "eval", "fp16_full_eval", "full_determinism", "gradient_accumulation_steps", "greater", "hub_"),
    *(
        "ignore_data_skip",
        "include",
        "jit",
        "label_names",
        "length_column",
        "load_best",
        "local_rank",
        "log",
        "max_steps",
        "metric_for",
    ),
    *(
        "model_name_or_path",
        "num_train_epochs",
        "output_dir",
        "overwrite",
        "parallelism",
        "past_index",
        "per_device_",
        "prediction",
    ),
    *(
        "preprocessing",
        "project",
        "push_",
        "remove_unused",
        "report_to",
        "restore",
        "resume",
        "run_name",
        "sample_",
        "save",
        "seed",
    ),
    *("skip_memory", "split_seed", "test_file", "text_column", "tokenizer_name", "torch_compile", "tpu", "trackio", "train_file"),
    *("use_cpu", "use_liger", "validation_file"),
)
REFUSED = {
    "model": "another architecture",
    "classes": "other classes",
    "trained": "other trained parameters",
    "tokenizer": "another tokenizer",
    "training data": "other training data",
    "validation data": "other validation data",
    "seed": "another seed",
}


def describe(trainer: Trainer, script_args: Any = None) -> dict[str, Any]:
    """Everything that is compared, in JSON form.

    Args:
        trainer: with model, data and tokenizer.
        script_args: dataclass with the script's own flags.
    """
    args, model = trainer.args, trainer.model
    config = model.config.to_dict() if hasattr(model, "config") else {}
    trained = [(name, list(parameter.shape)) for name, parameter in model.named_parameters() if parameter.requires_grad]
    flags = {**(dataclasses.asdict(script_args) if script_args is not None else {}), **args.to_dict()}
    made_with = {
        "model": {name: value for name, value in config.items() if name not in NOT_ARCHITECTURE},
        "classes": config.get("id2label") if "ForSequenceClassification" in type(model).__name__ else None,
        "trained": {"tensors": len(trained), "sha256": _sha256(json.dumps(trained))},
        "tokenizer": _tokenizer(trainer.processing_class),
        "training data": fingerprint(trainer.train_dataset, "hashing training data"),
        "validation data": fingerprint(trainer.eval_dataset, "hashing validation data"),
        "seed": {"seed": args.seed, "data_seed": args.data_seed},
        "rows a step": args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "length": {"max_steps": args.max_steps, "num_train_epochs": args.num_train_epochs},
        "dropout": {name: config[name] for name in sorted(NOT_ARCHITECTURE) if name.endswith("_dropout") and name in config},
        "flags": {name: value for name, value in sorted(flags.items()) if not name.startswith(NOT_COMPARED)},
    }
    return json.loads(json.dumps(made_with, default=str))


def write(made_with: dict[str, Any], checkpoint: Path) -> None:
    """Write the file into a checkpoint's directory."""
    write_json(checkpoint / FILE, made_with)


def compare(made_with: dict[str, Any], checkpoint: str) -> list[str]:
    """The allowed differences between a run and the checkpoint that it resumes from, one line each.

    Raises:
        UserError: differences that are not allowed; names each one and what to do.
    """
    path = Path(checkpoint) / FILE
    if not path.exists():
        return [f"{path.parent.name} contains no {FILE}: check that data, tokenizer and seed are the same"]
    try:
        before = read_json_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{checkpoint} cannot be resumed: {error}") from error
    advice = (
        f"resume with the original settings, or start a new run from its weights (--model_name_or_path {checkpoint}, "
        "another --output_dir)"
    )
    wrong = [
        f"{what} ({_difference(before.get(key), made_with[key])})"
        for key, what in REFUSED.items()
        if before.get(key) != made_with[key]
    ]
    if wrong:
        raise UserError(f"{checkpoint} was made with {'; '.join(wrong)}: {advice}")
    rows, now = before.get("rows a step"), made_with["rows a step"]
    if rows != now and made_with["length"]["max_steps"] <= 0:
        raise UserError(
            f"{checkpoint} was made with {rows} rows per step, now it would be {now}: the position in the data is counted in steps, so "
            f"keep the product of batch size, accumulation steps and processes, or {advice}"
        )
    changes = [f"rows per step: {rows} before, {now} now"] if rows != now else []
    for key in ("length", "dropout", "flags"):
        then = before.get(key)
        then = then if isinstance(then, dict) else {}
        for name in sorted(then.keys() | made_with[key].keys()):
            if then.get(name) != made_with[key].get(name):
                changes.append(f"{name}: {_short(then.get(name))} before, {_short(made_with[key].get(name))} now")
    return changes


def fingerprint(rows: Any, name: str = "hashing data") -> dict[str, Any] | None:
    """The number of rows and a checksum of their content; for a stream, of its first rows and the sizes of its files.

    Args:
        name: description for the progress bar.
    """
    if rows is None:
        return None
    if isinstance(rows, dict):
        return {key: fingerprint(part, name) for key, part in rows.items()}
    if isinstance(rows, torch.utils.data.IterableDataset):
        source = getattr(rows, "source", None)
        files = [file for file in source if os.path.isfile(file)] if isinstance(source, (list, tuple)) else []
        return {
            "sha256": _sha256(*map(_as_text, islice(rows, STREAMED_ROWS))),
            "bytes": [os.path.getsize(file) for file in files],
        }
    if not hasattr(rows, "__len__"):  # a stream of another library, which may be readable only once
        return None
    return {"rows": len(rows), "sha256": _sha256(*map(_as_text, bar(_spread(rows), name, "rows", min(len(rows), ROWS))))}


def _spread(rows: Any) -> Iterator[Any]:
    count = min(len(rows), ROWS)
    return (rows[i * len(rows) // count] for i in range(count))


def _as_text(row: Any) -> str:
    if isinstance(row, dict):
        row = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}
    return json.dumps(row, sort_keys=True, default=str)


def tokenizer_checksum(tokenizer: PreTrainedTokenizerBase) -> str:
    """Checksum of the pipeline and special tokens, without the chat template: equal for tokenizers that give equal ids."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return _sha256(json.dumps([_pipeline(tokenizer), special], sort_keys=True, default=str))


def _pipeline(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    pipeline: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    pipeline.pop("truncation", None)  # these two depend on the last call
    pipeline.pop("padding", None)
    return pipeline


def _tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.chat_template]
    return {"tokens": len(tokenizer), "sha256": _sha256(json.dumps([_pipeline(tokenizer), special], sort_keys=True, default=str))}


def _sha256(*texts: str) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _difference(before: Any, now: Any) -> str:
    """Describe the first difference."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(now.keys() | before.keys(), key=lambda name: (name == "sha256", name)):
            if before.get(name) != now.get(name):
                if name == "sha256":
                    return "the same number, but different content"
                return f"{name} {_short(before.get(name))} before, {_short(now.get(name))} now"
    return f"{_short(before)} before, {_short(now)} now"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) < 80 else f"{text[:77]}..."
