"""What of a directory goes to the Hub, and what in it must not: secrets, paths of this machine, the state of a training run.

A directory is complete when whoever downloads it can load it with transformers alone: `config.json`, safetensors, and each code file that
the config's `auto_map` names. Pickles of a run (`training_args.bin`, which also holds this machine's paths) never go up.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from ..errors import UserError

# Never: pickles and leavings that are of no use to others. `.*` includes what git and huggingface_hub keep for themselves.
NEVER = ("training_args.bin", ".*", "__pycache__", "*.pyc", "events.out.tfevents.*")
# What only training needs to go on: two to three times the size of the weights, and pickled.
TRAINING_STATE = ("checkpoint-*", "optimizer.*", "scheduler.pt", "scaler.pt", "rng_state*.pth", "random_states_*.pkl")

TOKENS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|github_pat_\w{20,}|gh[opsu]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    rb"|xox[baprs]-[\w-]{10,}|glpat-[\w-]{20,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
SECRET_VARIABLES = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
# Folders that machines keep users' files in; /usr or /dev in a text say nothing about anybody.
PATHS = re.compile(
    rb"(?<![\w:/.~])/(?:home|Users|root|tmp|mnt|media|srv|opt|var|private|Volumes|work|workspace|scratch|content|kaggle|gpfs|lustre|nfs)"
    rb"/[\w.-]+|[A-Za-z]:(?:\\\\?|/)Users(?:\\\\?|/)[\w.-]+"
)


@dataclass(frozen=True)
class Contents:
    """The files of a directory that go up, by path relative to it, and those that stay with the reason."""

    folder: Path
    files: list[str]
    left_out: dict[str, str]

    def size(self, name: str) -> int:
        """Bytes."""
        return (self.folder / name).stat().st_size


@dataclass(frozen=True)
class Finding:
    """Something that should not be published."""

    file: str
    line: int
    kind: str  # "token" or "path"
    text: str

    def __str__(self) -> str:
        what = "an access token or key" if self.kind == "token" else "an absolute path"
        return f"{self.file}:{self.line}: {what}: {self.text}"


def list_contents(folder: str | os.PathLike, with_training_state: bool = False, exclude: tuple[str, ...] = ()) -> Contents:
    """Sort the files of `folder`; `exclude` holds further patterns of relative paths to leave out.

    Raises:
        UserError: not a complete checkpoint (names what is missing), or a link, which may lead to a file that was never meant to go up.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such directory")
    files, left_out = [], {}
    for path in sorted(_entries(folder)):
        name = path.relative_to(folder).as_posix()
        reason = _reason_to_stay(folder, name, with_training_state, exclude)
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


def _entries(folder: Path) -> Iterator[Path]:
    """Files and links at any depth; links are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if (Path(root) / name).is_symlink()]
        yield from (Path(root) / name for name in (*files, *links))


def _reason_to_stay(folder: Path, name: str, with_training_state: bool, exclude: tuple[str, ...]) -> str | None:
    parts = name.split("/")
    if any(fnmatch(part, pattern) for part in parts for pattern in NEVER):
        return "of no use to others"
    if not with_training_state and any(fnmatch(part, pattern) for part in parts for pattern in TRAINING_STATE):
        return "training state"
    if any(fnmatch(name, pattern) for pattern in exclude):
        return "excluded"
    adapter = folder / parts[0] / "adapter_config.json"
    if len(parts) > 1 and adapter.is_file():
        base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        if os.path.isabs(base) or Path(base).exists():
            return "an adapter of a model that only this machine has"
    return None


def _refuse_incomplete(folder: Path, files: list[str]) -> None:
    if "adapter_config.json" in files:
        needed = ["adapter_model.safetensors"]
    elif "config.json" in files:
        try:
            auto_map = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("auto_map", {})
        except ValueError as error:
            raise UserError(f"{folder / 'config.json'} is not JSON: {error}") from error
        foreign = [target for target in auto_map.values() if "--" in target]
        if foreign:
            raise UserError(
                f"{folder / 'config.json'}: auto_map points to another repository, {foreign[0]}: save the model again"
            )
        needed = sorted({target.split(".")[0] + ".py" for target in auto_map.values()})
        for name in needed:  # grows while it is read: what the code files import from their neighbours
            text = (folder / name).read_text(encoding="utf-8") if name in files else ""
            needed += [
                other for module in re.findall(r"^from \.(\w+) import", text, re.M) if (other := f"{module}.py") not in needed
            ]
        index = folder / "model.safetensors.index.json"
        shards = (
            json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ["model.safetensors"]
        )
        needed += sorted(set(shards))
    else:
        raise UserError(f"{folder} holds no config.json: push a directory that save_pretrained or a training script wrote")
    for name in needed:
        if name not in files:
            raise UserError(f"{folder} is not complete, {name} is missing: save the model again")


def find_secrets(contents: Contents) -> list[Finding]:
    """Tokens, the values of this environment's secrets, and paths of this machine, in every file that goes up.

    Of safetensors only the header is text. A vocabulary may hold anything, so that paths do not count in `tokenizer.json`.
    """
    secrets = [value.encode() for name, value in os.environ.items() if SECRET_VARIABLES.search(name) and len(value) >= 12]
    folders = {str(folder.resolve()) for folder in (Path.home(), Path.cwd(), contents.folder, Path(tempfile.gettempdir()))}
    here = [folder.encode() for folder in folders if folder.count("/") > 1 or "\\" in folder]
    findings = []
    for name in contents.files:
        for number, line in enumerate(_lines(contents.folder / name), 1):
            found = [("token", match[:6] + b"...") for match in TOKENS.findall(line)]
            found += [("token", secret[:4] + b"...") for secret in secrets if secret in line]
            if not name.endswith("tokenizer.json"):
                found += [("path", match) for match in PATHS.findall(line) or [folder for folder in here if folder in line]]
            findings += [Finding(name, number, kind, text.decode(errors="replace")) for kind, text in dict.fromkeys(found)]
    return findings


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            yield file.read(int.from_bytes(file.read(8), "little"))
        elif path.suffix not in (".pt", ".pth"):
            yield from file
