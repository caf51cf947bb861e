"""Recognizes the format of a checkpoint by its files and tensor names."""

import re
from pathlib import Path

from ..errors import UserError, one_line
from .checkpoint import Checkpoint, Options, drop_ids_outside, join_tokenizer, open_tokenizer
from .convert import generic
from .gguf_files import open_gguf
from .hub_directories import open_hub_directory
from .hub_files import is_hub_file, open_hub_file
from .karpathy import is_llama2c_bin, open_lecture, open_llama2c, open_nanogpt, refuse_nanochat
from .litgpt import open_litgpt
from .openai import open_openai
from .sources import PLAIN_WEIGHTS, read_json
from .state_dicts import STARTS, open_book, read_state_dict
from .tensorflow_bundle import is_v1_checkpoint

OPENERS = {
    "openai": open_openai,
    "gpt2": open_hub_directory,
    "llama": open_hub_directory,
    "mistral": open_hub_directory,
    "qwen2": open_hub_directory,
    "qwen3": open_hub_directory,
    "hub_file": open_hub_file,
    "gguf": open_gguf,
    "book": open_book,
    "nanogpt": open_nanogpt,
    "lecture": open_lecture,
    "llama2c": open_llama2c,
    "litgpt": open_litgpt,
    "gpt_scratch": open_hub_directory,
}
FORMATS = tuple(OPENERS)
MODEL_TYPES = tuple(kind for kind, opener in OPENERS.items() if opener is open_hub_directory)
# Files that are no model by themselves, by their tensor names, with what to do. And directories, by the files in them.
ADAPTER = (
    "is an adapter (LoRA), not a model: merge it into its model first, e.g. with peft's merge_and_unload() or litgpt merge_lora"
)
PARTS = {
    r"\.lora_(embedding_)?[AB]\b|\.(ia3_l|lora_magnitude_vector|oft_[rsR])\b": ADAPTER,
    r"(^|\.)_?flat_param(_\d+)?$": "is a part of a model sharded by FSDP: save the whole model, with StateDictType.FULL_STATE_DICT",
    r"\.(qweight|qzeros|absmax|quant_map|SCB|weight_scale|weight_scale_inv)$": f"has quantized weights. {PLAIN_WEIGHTS}",
}
DIRECTORIES = {
    "adapter_config.json": ADAPTER,
    "*.distcp": "is a checkpoint of torch.distributed.checkpoint: join it with python -m torch.distributed.checkpoint.format_utils "
    "dcp_to_torch DIRECTORY model.pt",
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed: join it with python zero_to_fp32.py DIRECTORY OUTPUT",
    "*_model_states.pt": "is a checkpoint of DeepSpeed: join it with zero_to_fp32.py in the directory above",
}
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf")
HUB_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model"]


def recognize(name: str, options: Options, wanted: str = "auto") -> Checkpoint:
    """Open a path or a Hub repository in its format.

    Raises:
        UserError: an unknown format, a broken file, or a required setting that neither the file nor an option contains.
    """
    path = Path(name)
    if not path.exists() and not _index_of(path).is_file():
        path = _from_hub(name)
    if wanted == "auto":
        kind, reason = _kind(path)
    else:
        kind, reason = wanted, "as requested"
        found = _model_type(path) if OPENERS[kind] is open_hub_directory else kind
        if found != kind:
            raise UserError(f"{path} is not in the format {kind}: its config.json says {found}")
    checkpoint = OPENERS[kind](path, options)
    checkpoint.format, checkpoint.reason = kind, reason
    if options.tokenizer:
        checkpoint.tokenizer = open_tokenizer(options.tokenizer, checkpoint.config)
    if checkpoint.tokenizer is not None:
        join_tokenizer(checkpoint, has_special_ids=kind in (*MODEL_TYPES, "gguf"))
    drop_ids_outside(checkpoint)
    return checkpoint


def without_tokenizer(vocab_size: int) -> str:
    """Advice for a source without a tokenizer. It is printed before the weights are written, so that no work is repeated.

    >>> without_tokenizer(65)
    'the source has no tokenizer: --tokenizer adds one to the directory'
    """
    gpt2 = "; the vocabulary of 50,257 is GPT-2's: --tokenizer gpt2, or a directory with OpenAI's encoder.json and vocab.bpe"
    return "the source has no tokenizer: --tokenizer adds one to the directory" + (gpt2 if vocab_size == 50257 else "")


def _from_hub(name: str) -> Path:
    """Download a repository: safetensors, or pickled weights if there are no others."""
    from huggingface_hub import snapshot_download

    try:
        path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "*.safetensors"]))
        if not list(path.glob("*.safetensors")):
            path = Path(snapshot_download(name, allow_patterns=[*HUB_FILES, "pytorch_model*.bin"]))
    except Exception as error:  # no such name, not found, no access, no network
        raise UserError(f"{name} is not a local path and cannot be downloaded from the Hub: {one_line(error, 150)}") from error
    return path


def _index_of(path: Path) -> Path:
    """The index file of a TensorFlow checkpoint, given its prefix."""
    return path.with_name(path.name + ".index")


def _model_type(path: Path) -> str:
    model_type = read_json(path / "config.json").get("model_type")
    if model_type not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise UserError(f"{path / 'config.json'} says model_type {model_type!r}; {known} can be converted")
    return model_type


def _kind(path: Path) -> tuple[str, str]:
    if path.suffix == ".gguf":
        return "gguf", "its suffix is .gguf"
    if path.suffix == ".index" or _index_of(path).is_file() or (path.is_dir() and list(path.glob("*.index"))):
        return "openai", "it has the index of a TensorFlow checkpoint"
    if path.is_dir():
        if (path / "config.json").is_file():
            return _model_type(path), "model_type of its config.json"
        if (path / "lit_model.pth").is_file():
            return "litgpt", "it contains lit_model.pth"
        if found := next((what for name, what in DIRECTORIES.items() if list(path.glob(name))), None):
            raise UserError(f"{path} {found}")
        files = sorted(file.name for file in path.iterdir() if file.suffix in WEIGHT_FILES)
        example = f", e.g. {one_line(str(path / files[0]), 200)}" if files else ""
        raise UserError(f"{path} contains neither config.json nor a TensorFlow index: give the file with the weights{example}")
    if path.name == "lit_model.pth":
        return "litgpt", "its name is lit_model.pth"
    if is_v1_checkpoint(path):
        raise UserError(
            f"{path} is a TensorFlow checkpoint of the old V1 format, one file without an index: in TensorFlow, restore it and save it "
            "with tf.compat.v1.train.Saver(write_version=tf.compat.v1.train.SaverDef.V2)"
        )
    if is_llama2c_bin(path):
        return "llama2c", "it is a .bin that was not written by torch.save"
    source, _ = read_state_dict(path)
    names = source.describe()
    for pattern, what in PARTS.items():
        if found := next((name for name in names if re.search(pattern, name)), None):
            raise UserError(f"{path} {what} (it contains {one_line(found, 150)})")
    if any(".attn.c_q." in name for name in names):
        refuse_nanochat(path, names)
    if is_hub_file({name: tuple(tensor.shape) for name, tensor in names.items()}):
        return "hub_file", "its tensors have the names of transformers, and there is no config.json"
    for start, kind in STARTS.items():
        found = next((name for name in names if name.startswith(start)), None)
        if found:
            return kind, f"it has a tensor {found}"
    if any(re.match(r"transformer_blocks\.0\.attention\.heads\.\d+\.w_query\.", name) for name in names):
        raise UserError(f"{path} has the tensor names of a GPT with post-norm, which this architecture does not have")
    listed = ", ".join(sorted(names, key=lambda name: (generic(name)[0] != name, "0" not in name))[:8])
    raise UserError(
        f"{path} has an unknown format; its tensors are {listed}{', ...' if len(names) > 8 else ''}: if the model "
        "computes the same as a known one (pre-norm), rename its tensors to the names of that format: see scripts/README.md, Other names"
    )
