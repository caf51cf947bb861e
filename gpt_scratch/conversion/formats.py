"""Which format a checkpoint is in: recognized by its files and the names of its tensors, with the reason."""

from pathlib import Path

from ..errors import UserError, one_line
from .checkpoint import Checkpoint, Options, join_tokenizer, open_tokenizer
from .hub_directories import open_gguf, open_hub_directory
from .openai import open_openai
from .sources import read_json
from .state_dicts import open_book, open_nanogpt, read_state_dict

OPENERS = {
    "openai": open_openai,
    "gpt2": open_hub_directory,
    "llama": open_hub_directory,
    "gguf": open_gguf,
    "book": open_book,
    "nanogpt": open_nanogpt,
    "gpt_scratch": open_hub_directory,
}
FORMATS = tuple(OPENERS)
MODEL_TYPES = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama", "gpt_scratch": "gpt_scratch"}
HUB_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]


def recognize(name: str, options: Options, wanted: str = "auto") -> Checkpoint:
    """Open a path or a Hub repository in the format that it is in.

    Raises:
        UserError: an unknown format, a broken file, or a setting that neither the file nor an option gives.
    """
    path = Path(name)
    if not path.exists() and not _index_of(path).is_file():
        path = _from_hub(name)
    if wanted == "auto":
        kind, reason = _kind(path)
    else:
        kind, reason = wanted, "as asked for"
        found = _model_type(path) if OPENERS[kind] is open_hub_directory else kind
        if found != kind:
            raise UserError(f"{path} is not in the format {kind}: its config.json says {found}")
    checkpoint = OPENERS[kind](path, options)
    checkpoint.format, checkpoint.reason = kind, reason
    if options.tokenizer:
        checkpoint.tokenizer = open_tokenizer(options.tokenizer, checkpoint.config)
    if checkpoint.tokenizer is not None:
        join_tokenizer(checkpoint, has_special_ids=kind in ("gpt2", "llama", "gguf", "gpt_scratch"))
    return checkpoint


def _from_hub(name: str) -> Path:
    """A snapshot of a repository; safetensors, or pickled weights where it has no others."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "*.safetensors"]))
        if not list(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # no such name, not found, no access, no network
        raise UserError(f"{name} is not a local path, and cannot be fetched from the Hub: {one_line(error, 150)}") from error
    return path


def _index_of(path: Path) -> Path:
    """The index file of a TensorFlow checkpoint's prefix."""
    return path.with_name(path.name + ".index")


def _model_type(path: Path) -> str:
    model_type = read_json(path / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{path / 'config.json'} says model_type {model_type!r}; {known} can be converted")
    return MODEL_TYPES[model_type]


def _kind(path: Path) -> tuple[str, str]:
    if path.suffix == ".gguf":
        return "gguf", "since its suffix is .gguf"
    if path.suffix == ".index" or _index_of(path).is_file() or (path.is_dir() and list(path.glob("*.index"))):
        return "openai", "since there is the index of a TensorFlow checkpoint"
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds neither config.json nor a TensorFlow index: name the file with the weights itself")
        return _model_type(path), "since its config.json says so"
    source, rest = read_state_dict(path)
    names = source.describe()
    if "model_args" in rest:
        return "nanogpt", "since it holds model_args"
    for start, kind in (("trf_blocks.", "book"), ("transformer.h.", "nanogpt")):
        found = next((name for name in names if name.startswith(start)), None)
        if found:
            return kind, f"since a tensor is called {found}"
    if any(name.startswith("transformer_blocks.") for name in names):
        raise UserError(
            f"{path} has transformer_blocks with norms after each part (post-norm), which this architecture does not have"
        )
    if "wte.weight" in names or "model.embed_tokens.weight" in names:
        raise UserError(f"{path} holds weights in a layout of transformers: name its directory, with the config.json")
    raise UserError(f"{path} is in no known format; its tensors are {', '.join(list(names)[:5])}")
