"""Loads trained models and tokenizers from a directory or the Hub, with strict checks, for all scripts.

transformers initializes missing tensors randomly and ignores unexpected ones, with at most a warning. Here, loading fails with a one-line
error if a tensor is missing (except a new head), unexpected, has another shape than in the configuration or values that are not finite, or
if a token has no embedding. Sizes are compared with the weights files before memory is allocated.
"""

import contextlib
import ctypes
import gc
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from ..downloads import bound_downloads
from ..errors import UserError, innermost, one_line
from ..files import read_json_object
from ..progress import named
from ..tokenization import portable

AUTO = {"lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification}
KINDS = {"lm": "a language model", "classifier": "a classifier"}
NEW_HEADS = ("score.", "classifier.", "classification_head.", "pre_classifier.")  # names of classification heads in transformers
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
LARGEST = {
    "layer": 10_000,
    "label": 1_000_000,
    "expert": 100_000,
}  # limits of sizes, by a word in their names: each takes time and memory before any weight is read
COMPILED = "_orig_mod."
MASKS = (".attn.bias", ".attn.masked_bias")  # buffers that earlier releases of transformers saved with GPT-2's weights
PARAMETERS_A_BYTE = 8  # no format stores more than one parameter per bit


def return_memory() -> None:
    """Return the memory of deleted models to the system: glibc keeps that of matrices smaller than 32 MiB for later."""
    gc.collect()
    with contextlib.suppress(AttributeError, TypeError):  # only glibc has it, and Windows has no library without a name
        ctypes.CDLL(None).malloc_trim(0)


def load_language_model(name: str, dtype: str = "auto") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model (or an adapter) in eval mode and its tokenizer, on the GPU if there is one.

    Raises:
        UserError: as [`load_model`] and [`load_tokenizer`].
    """
    return _load_for_inference(name, "lm", dtype)


def load_classifier(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a classifier with a trained head, in eval mode, and its tokenizer, on the GPU if there is one.

    Raises:
        UserError: as [`load_model`] and [`load_tokenizer`].
    """
    return _load_for_inference(name, "classifier", "auto")


def _load_for_inference(name: str, head: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    adapter = _adapter_config(name)
    config = load_config(name if adapter is None else _base_of(name, adapter))
    tokenizer = load_tokenizer(name)
    check_rows(tokenizer, config, name)
    model = load_model(name, head, dtype)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory or Hub name exactly as its files define it, unlike some versions of transformers.

    Raises:
        UserError: it is missing or invalid.
    """
    bound_downloads()
    try:
        return portable.load_tokenizer(name)
    except BaseException as error:
        raise refusal(f"{name}: its tokenizer cannot be loaded", error) from error


def load_config(name: str, **overrides: Any) -> PreTrainedConfig:
    """Load the configuration of a directory or Hub name, and check its sizes.

    Raises:
        UserError: it is missing or invalid, or has an unreasonable size.
    """
    bound_downloads()
    try:
        path = cached_file(name, "config.json")
        if path is None:
            raise ValueError("it contains no config.json")
        check_sizes(read_json_object(Path(path)) | overrides)
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **overrides)
    except BaseException as error:
        raise refusal(f"{name} cannot be loaded", error) from error


def load_generation_config(name: str) -> GenerationConfig:
    """Load the `generation_config.json` of a directory or Hub name.

    Raises:
        UserError: it is missing or invalid.
    """
    try:
        return GenerationConfig.from_pretrained(name)
    except BaseException as error:
        raise refusal(f"{name}: its generation_config.json cannot be used", error) from error


def load_model(
    name: str,
    head: str,
    dtype: str | torch.dtype = "auto",
    new_head: bool = False,
    config: PreTrainedConfig | None = None,
    **overrides: Any,
) -> PreTrainedModel:
    """Load a model from a directory or the Hub, on the CPU, in eval mode.

    Args:
        name: with an `adapter_config.json` and no `config.json`, it is an adapter (peft), which is loaded on its base model.
        head: "lm" or "classifier".
        dtype: of the weights; "auto" for the saved one.
        new_head: initialize a missing classification head randomly, for training.
        config: replaces that of the checkpoint.
        overrides: settings of the configuration, as for `from_pretrained`.

    Raises:
        UserError: names the first problem: missing or unreadable files, missing, unexpected or mismatched tensors, values that are not
            finite, sizes that exceed the weights files or the memory.
    """
    adapter = _adapter_config(name)
    if adapter is not None:
        if head != "lm":
            raise UserError(f"{name} is an adapter: give the directory of the merged model")
        return _put_adapter(load_model(_base_of(name, adapter), head, dtype, config=config, **overrides), name)
    config = load_config(name, **overrides) if config is None else config
    _refuse_another_head(name, config, head, new_head)
    files = weight_files(name)
    refuse_beyond_files(name, config, head, files)
    verbosity = get_verbosity()
    set_verbosity_error()  # missing tensors are reported as an error below
    try:
        with named(f"loading {name}"):
            model, report = AUTO[head].from_pretrained(
                name, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except BaseException as error:
        raise refusal(f"{name} cannot be loaded as {KINDS[head]}", error) from error
    finally:
        set_verbosity(verbosity)
    lacks_head = all(key.startswith(NEW_HEADS) for key in report["missing_keys"])
    if head == "classifier" and not new_head and report["missing_keys"] and lacks_head:
        raise UserError(f"{name} has no trained classification head: finetune it with scripts/finetune_classifier.py")
    refuse_incomplete(
        name,
        {key for key in report["missing_keys"] if not (new_head and key.startswith(NEW_HEADS))},
        {key for key in report["unexpected_keys"] if not (new_head and key.startswith("lm_head.")) and not key.endswith(MASKS)},
        report["mismatched_keys"],
    )
    refuse_non_finite(name, model.named_parameters())
    return model.eval()


def check_rows(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Refuse a tokenizer with ids beyond the model's vocabulary.

    Raises:
        UserError: names both sizes.
    """
    highest = max(tokenizer.get_vocab().values(), default=0)
    if max(len(tokenizer), highest + 1) > config.vocab_size:
        what = f"has {len(tokenizer):,} tokens" if len(tokenizer) > config.vocab_size else f"has an id {highest:,}"
        raise UserError(
            f"{name}: the tokenizer {what}, but the model's vocab_size is {config.vocab_size:,}: "
            "give the tokenizer that belongs to the model"
        )


def refuse_non_finite(name: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Refuse tensors with NaN or infinite values, in one pass without a copy.

    Raises:
        UserError: names the tensor.
    """
    for key, tensor in tensors:
        if tensor.is_floating_point() and tensor.itemsize > 1 and tensor.numel() and not tensor.is_meta:
            low, high = torch.aminmax(tensor.detach())  # NaN if there is one
            if not (torch.isfinite(low) and torch.isfinite(high)):
                what = "NaN" if torch.isnan(low) else "infinite values"
                raise UserError(f"{name}: {key} contains {what}: the weights are damaged, or training diverged")


def check_sizes(config: dict[str, Any]) -> None:
    """Check the sizes of a raw configuration, before a class creates labels and layers from it.

    Raises:
        ValueError: names the size.
    """
    for key, value in config.items():
        for word, largest in LARGEST.items():
            if word in key and type(value) is int and value > largest:
                raise ValueError(f"{key} is {value:,}: more than {largest:,} is surely a mistake")
    if not isinstance(config.get("auto_map", {}), dict):
        raise ValueError(f"auto_map must be a JSON object, not a {type(config['auto_map']).__name__}")


def refusal(what: str, error: BaseException) -> BaseException:
    """Convert an error of a library to a [`UserError`]: many exception types are possible, and Rust panics are not `Exception`s."""
    if isinstance(error, UserError):
        return error
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error
    return UserError(f"{what}: {one_line(innermost(error))}")


def _adapter_config(name: str) -> dict[str, Any] | None:
    """The `adapter_config.json` of an adapter; `None` for a model."""
    optional: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
        "_raise_exceptions_for_gated_repo": False,
    }
    bound_downloads()
    try:
        if cached_file(name, "config.json", **optional) is not None:
            return None
        path = cached_file(name, "adapter_config.json", **optional)
        return None if path is None else read_json_object(Path(path))
    except BaseException as error:
        raise refusal(f"{name} cannot be loaded", error) from error


def _base_of(name: str, adapter: dict[str, Any]) -> str:
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{name}: adapter_config.json has no base model: base_model_name_or_path is {base!r}")
    return base


def _put_adapter(model: PreTrainedModel, name: str) -> PreTrainedModel:
    verbosity = get_verbosity()
    set_verbosity_error()
    try:
        import peft  # noqa: F401

        report = model.load_adapter(name, ignore_mismatched_sizes=True)
    except ImportError as error:
        raise UserError(f'{name} is an adapter, which needs peft: pip install "gpt_scratch[peft]"') from error
    except BaseException as error:
        raise refusal(f"{name} cannot be loaded as an adapter", error) from error
    finally:
        set_verbosity(verbosity)
    refuse_incomplete(name, report.missing_keys, report.unexpected_keys, report.mismatched_keys)
    refuse_non_finite(name, model.named_parameters())
    return model.eval()


def _refuse_another_head(name: str, config: PreTrainedConfig, head: str, new_head: bool) -> None:
    written = (getattr(config, "architectures", None) or [""])[0] or ""
    if head == "lm" and written.endswith("ForSequenceClassification"):
        raise UserError(f"{name} cannot be loaded as a language model: it is a classifier ({written})")
    if head == "classifier" and not new_head and written.endswith("ForCausalLM"):
        raise UserError(f"{name} has no trained classification head: finetune it with scripts/finetune_classifier.py")


def weight_files(name: str) -> list[Path]:
    """The files with the weights, downloaded if `name` is on the Hub.

    Raises:
        UserError: there are none, or an index lists files outside of the directory.
    """
    for wanted in WEIGHTS:
        try:
            found = cached_file(name, wanted, _raise_exceptions_for_missing_entries=False)
            if found is None:
                continue
            if not wanted.endswith(".json"):
                return [_regular(Path(found))]
            shards = read_json_object(Path(found)).get("weight_map")
            if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
                raise ValueError(f"{wanted} has no weight_map of tensors to files")
            names = sorted(set(shards.values()))
            if outside := [shard for shard in names if Path(shard).name != shard or shard in (".", "..")]:
                raise ValueError(f"{wanted} lists {outside[0]!r}, which is not a file in the same directory")
            return [_regular(Path(cached_file(name, shard))) for shard in names]
        except BaseException as error:
            raise refusal(f"{name} cannot be loaded", error) from error
    raise UserError(f"{name} cannot be loaded: it contains no weights ({', '.join(WEIGHTS[::2])} or an index of shards)")


def _regular(path: Path) -> Path:
    if not path.is_file():  # reading a device may never end
        raise ValueError(f"{path.name} is not a regular file")
    return path


def refuse_beyond_files(name: str, config: PreTrainedConfig, head: str, files: Sequence[Path]) -> None:
    """Refuse files without tensors, and sizes that exceed the files or the memory, before memory is allocated."""
    try:
        if files[0].suffix == ".safetensors":
            count = 0
            for file in files:
                with safe_open(file, framework="pt") as opened:
                    count += len(opened.keys())
            if not count:
                raise ValueError(f"{', '.join(file.name for file in files[:3])} contains no tensors")
            layers = getattr(config, "num_hidden_layers", 0)
            if isinstance(layers, int) and layers > count:  # building each takes time, before the parameters can be counted
                raise ValueError(f"config.json has {layers:,} layers, but the weights have only {count:,} tensors")
        with torch.device("meta"):
            model = AUTO[head].from_config(config, trust_remote_code=False)
        parameters = sum(parameter.numel() for parameter in set(model.parameters()))
        held = sum(file.stat().st_size for file in files)
        new_head = getattr(config, "num_labels", 0) * getattr(config, "hidden_size", 0)
        if parameters > PARAMETERS_A_BYTE * held + new_head:
            raise ValueError(f"config.json has {parameters:,} parameters, but the weights have only {held:,} bytes")
        free = psutil.virtual_memory().available
        if parameters > free:  # at one byte each
            raise ValueError(f"it has {parameters:,} parameters, but only {free:,} bytes of memory are free")
    except BaseException as error:
        raise refusal(f"{name} cannot be loaded", error) from error


def refuse_incomplete(
    name: str, missing: Iterable[str], unexpected: Iterable[str], mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]
) -> None:
    """Refuse missing, unexpected and mismatched tensors.

    Raises:
        UserError: names up to three tensors.
    """
    for key, there, wanted in sorted(mismatched, key=lambda entry: entry[0]):
        raise UserError(f"{name}: {key} has the shape {tuple(there)} in the weights file, but {tuple(wanted)} by config.json")
    if any(key.startswith(COMPILED) for key in unexpected):
        raise UserError(
            f"{name}: the tensor names begin with {COMPILED!r}: save the original model, not the result of torch.compile"
        )
    for keys, what in (
        (missing, "missing tensors in the weights files:"),
        (unexpected, "unexpected tensors in the weights files:"),
    ):
        if listed := sorted(keys):
            more = f" and {len(listed) - 3:,} more" if len(listed) > 3 else ""
            raise UserError(f"{name}: {what} {', '.join(listed[:3])}{more}: the checkpoint is damaged or of another kind")
