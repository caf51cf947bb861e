"""Selects the files of a directory to upload, without training state, links, and files that are useless to others.

A directory is complete when whoever downloads it can load it with transformers alone: `config.json`, safetensors, and each code file that
the config's `auto_map` names. Pickles of a run (`training_args.bin`, which also holds this machine's paths) never go up.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import UserError

# Never uploaded: pickles, and leftovers that are useless to others. `.*` includes the metadata of git and huggingface_hub.
NEVER = ("training_args.bin", ".*", "__pycache__", "*.pyc", "events.out.tfevents.*", "README.proposed.md")
# Needed only for resuming: two to three times the size of the weights, and pickled.
TRAINING_STATE = ("checkpoint-*", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "random_states_*.pkl")

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*", "spiece.model", "*.tiktoken")


@dataclass(frozen=True)
class Contents:
    """The files of a directory to upload, by relative path, and those left out, each with the reason."""

    folder: Path
    files: list[str]
    left_out: dict[str, str]

    def size(self, name: str) -> int:
        """Size of a file in bytes."""
        return (self.folder / name).stat().st_size


def list_contents(folder: str | os.PathLike, with_training_state: bool = False, exclude: tuple[str, ...] = ()) -> Contents:
    """Select the files of `folder` to upload; `exclude` holds further patterns of relative paths to leave out.

    Raises:
        UserError: an incomplete checkpoint (names what is missing), or a link, which may point to a file that was not meant to be
            published.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    files, left_out = [], {}
    for path in sorted(_entries(folder)):
        name = path.relative_to(folder).as_posix()
        if not name.isprintable() and any(unicodedata.category(letter) in ("Cc", "Cs") for letter in name):
            raise UserError(f"{str(path)!r}: the Hub takes no name with control characters, or that is not UTF-8: rename it")
        reason = _exclusion_reason(folder, name, with_training_state, exclude)
        if reason is None and path.is_symlink():
            raise UserError(
                f"{str(path)!r} is a link to {os.readlink(path)!r}: put the file itself there, or leave it out by --exclude {name!r}"
            )
        if reason is None and not path.is_file():
            reason = "neither a file nor a directory"
        if reason:
            left_out[name] = reason
        else:
            files.append(name)
    _refuse_incomplete(folder, files)
    return Contents(folder, files, left_out)


def missing_parts(contents: Contents) -> list[str]:
    """One line for each missing part without which the model loads but is of little use."""
    notes = []
    if not any(fnmatch(name, pattern) for name in contents.files for pattern in TOKENIZERS):
        notes.append(
            "there is no tokenizer, and whoever loads the model cannot give it text: save one beside it (save_pretrained)"
        )
    if "config.json" in contents.files and "generation_config.json" not in contents.files:
        architectures = _read_settings(contents.folder / "config.json").get("architectures") or []
        if any("ForCausalLM" in str(name) or "LMHead" in str(name) for name in architectures):
            notes.append(
                "there is no generation_config.json: without the end-of-text token in it, generation may not end by itself"
            )
    return notes


def shown(name: str) -> str:
    """A name that is safe to print: characters that would end the line, move the cursor or reverse the text direction are escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def _entries(folder: Path) -> Iterator[Path]:
    """Files and links at any depth; links are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in (*files, *links))


def _exclusion_reason(folder: Path, name: str, with_training_state: bool, exclude: tuple[str, ...]) -> str | None:
    parts = name.split("/")
    if any(fnmatch(part, pattern) for part in parts for pattern in NEVER):
        return "of no use to others"
    if not with_training_state and any(fnmatch(part, pattern) for part in parts for pattern in TRAINING_STATE):
        return "training state"
    if any(fnmatch(name, pattern) for pattern in exclude):
        return "excluded"
    adapter = folder / parts[0] / "adapter_config.json"
    if len(parts) > 1 and adapter.is_file():
        base = str(_read_settings(adapter).get("base_model_name_or_path") or "")
        if os.path.isabs(base) or Path(base).exists():
            return "an adapter of a model that only this machine has"
    return None


def _refuse_incomplete(folder: Path, files: list[str]) -> None:
    if "adapter_config.json" in files:
        needed = ["adapter_model.safetensors"]
    elif "config.json" in files:
        auto_map = _read_settings(folder / "config.json").get("auto_map") or {}
        if not isinstance(auto_map, dict) or not all(isinstance(target, str) for target in auto_map.values()):
            raise UserError(
                f"{folder / 'config.json'}: auto_map does not name a class for each kind of model: save the model again"
            )
        foreign = [target for target in auto_map.values() if "--" in target]
        if foreign:
            raise UserError(
                f"{folder / 'config.json'}: auto_map points to another repository, {foreign[0]!r}: save the model again"
            )
        needed = sorted({target.split(".")[0] + ".py" for target in auto_map.values()})
        for name in needed:  # grows during iteration: modules that the code files import relatively
            text = (folder / name).read_text(encoding="utf-8") if name in files else ""
            needed += [
                other for module in re.findall(r"^from \.(\w+) import", text, re.M) if (other := f"{module}.py") not in needed
            ]
        index = folder / "model.safetensors.index.json"
        shards: Any = ["model.safetensors"]
        if index.is_file():
            weight_map = _read_settings(index).get("weight_map")
            shards = weight_map.values() if isinstance(weight_map, dict) else [None]
        if not all(isinstance(name, str) for name in shards):
            raise UserError(f"{index}: weight_map does not name a file for each tensor: save the model again")
        needed += sorted(set(shards))
    else:
        raise UserError(f"{folder} holds no config.json: push a directory that save_pretrained or a training script wrote")
    for name in needed:
        if name not in files:
            raise UserError(f"{folder} is not complete, {shown(name)} is missing: save the model again")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no settings, but {type(settings).__name__}: save the model again")
    return settings
