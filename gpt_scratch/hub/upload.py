"""Uploads a checkpoint directory to the Hub in a single atomic commit, and verifies it by downloading and loading it.

Large files are sent first, each once: after an interruption, the same call sends only what the Hub does not have. Sources:
`huggingface_hub`'s `HfApi.create_commit` and the git-lfs batch API.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from safetensors.torch import load_file

from ..downloads import bound_downloads
from ..errors import NO_ROOM, UserError, one_line
from ..files import CODE_PATTERN
from ..verify_checkpoint import FILE as REFERENCE_OUTPUTS
from ..verify_checkpoint import verify_checkpoint
from .contents import Contents, shown

# Files that would be loaded instead of the uploaded ones, or together with them although they belong to other weights.
LOADED = ("*.safetensors", "*.safetensors.index.json", "adapter_config.json", REFERENCE_OUTPUTS)
LOGITS_TOLERANCE = 1e-5  # relative to the largest logit; processes may use different numbers of threads
LARGE = 10 * 2**20  # bytes; the Hub never stores larger files as git blobs
AGAIN = "run the same command again, what is on the Hub already is not sent twice"


@dataclass(frozen=True)
class Repository:
    """A model repository on the Hub, and the contents of its branch: git blob id of each file, or SHA-256 of a large one."""

    id: str
    revision: str
    present: dict[str, str]


@dataclass(frozen=True)
class Upload:
    """A commit that holds the files of a directory."""

    repository: str
    commit: str
    url: str
    deleted: list[str]


def open_repository(name: str, private: bool | None = None, revision: str = "main", token: str | None = None) -> Repository:
    """Find or create the repository and its branch, as the user who is logged in.

    Args:
        name: "user/name", or "name" for one of the user's own repositories.
        private: visibility of a new repository; `None` uses the account's default.

    Raises:
        UserError: not logged in, no permission, no network, or unexpected responses.
    """
    with _clear_errors(name):
        api = HfApi(token=token)
        user = api.whoami()["name"]
        name = name if "/" in name else f"{user}/{name}"
        try:
            api.model_info(name)
        except RepositoryNotFoundError:
            api.create_repo(name, private=private)
        if revision != "main":
            api.create_branch(name, branch=revision, exist_ok=True)
        tree = api.list_repo_tree(name, revision=revision, recursive=True)
        present = {entry.path: entry.lfs.sha256 if entry.lfs else entry.blob_id for entry in tree if isinstance(entry, RepoFile)}
        _refuse_paths(name, present)
    return Repository(name, revision, present)


def upload(contents: Contents, repository: Repository, message: str, token: str | None = None, update: bool = False) -> Upload:
    """Send the files that the Hub does not have and commit them. Weights of an earlier upload that would be loaded instead are deleted.

    Args:
        update: allow adding a commit to a repository with other contents.

    Raises:
        UserError: other contents without `update`, no permission, a card that the Hub refuses, or a network failure, after which a
            second call resumes.
    """
    there = repository.present
    finished = all(name in there and there[name] in _ids(contents.folder / name) for name in contents.files)
    if there.keys() - {".gitattributes"} and not finished and not update:
        raise UserError(
            f"{repository.id} exists and holds {len(there)} files: pass --update to add a commit to it, or choose another name"
        )
    stale = [
        name
        for name in there
        if any(fnmatch(name, pattern) for pattern in (*LOADED, CODE_PATTERN)) and name not in contents.files
    ]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=contents.folder / name) for name in contents.files
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in stale]
    with _clear_errors(repository.id):
        info = HfApi(token=token).create_commit(repository.id, operations, commit_message=message, revision=repository.revision)
    if not isinstance(info.oid, str) or not re.fullmatch(r"[0-9a-f]{40,64}", info.oid):
        raise UserError(f"{repository.id}: the Hub names no commit, but {one_line(repr(info.oid), 80)}: {AGAIN}")
    return Upload(repository.id, info.oid, info.commit_url, stale)


def verify_outputs(contents: Contents, downloaded: Path | None = None) -> bool:
    """Verify the directory, or its download, against its reference outputs, with its own code; return whether there are any.

    Raises:
        UserError: its outputs differ, or it cannot be loaded without this package.
    """
    if REFERENCE_OUTPUTS not in contents.files:
        return False
    verdict = verify_checkpoint(str(downloaded or contents.folder), trust_remote_code=True)
    if verdict.status:
        raise UserError(f"{contents.folder if downloaded is None else 'what was downloaded'} {verdict.line}")
    return True


def verify_upload(contents: Contents, uploaded: Upload, token: str | None = None) -> float | None:
    """Download the commit into an empty directory, compare every checksum, and load it in a process without this package.

    Returns:
        The largest difference between its logits and those of the directory, relative to the largest logit; `None` for an adapter,
        which has no logits of its own.

    Raises:
        UserError: a file, the logits or the reference outputs differ, or the download does not load.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "downloaded"
        with _clear_errors(uploaded.repository):
            snapshot_download(
                uploaded.repository, revision=uploaded.commit, local_dir=folder, cache_dir=Path(name) / "cache", token=token
            )
        for file in contents.files:
            if not (folder / file).is_file() or _sha256(folder / file) != _sha256(contents.folder / file):
                raise UserError(
                    f"{uploaded.repository}: {file} did not come back as it was sent; run the same command with --update"
                )
        if "config.json" not in contents.files:
            return None
        verify_outputs(contents, folder)
        ours, theirs = _logits_alone([contents.folder, folder], Path(name))
    difference = ((ours - theirs).abs().max() / ours.abs().max().clamp(min=1)).item()
    if not difference <= LOGITS_TOLERANCE:
        raise UserError(f"{uploaded.repository}: the logits of what was downloaded differ by {difference:.1e}")
    return difference


def _logits_alone(folders: list[Path], scratch: Path) -> list[torch.Tensor]:
    """Logits of each folder, computed by load_alone.py in a fresh process, offline."""
    output = scratch / "logits.safetensors"
    command = [sys.executable, Path(__file__).with_name("load_alone.py"), output, *(folder.resolve() for folder in folders)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(scratch / "home")}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(
            f"what was uploaded does not load where this package is not installed: {done.stderr.strip().splitlines()[-1]}"
        )
    logits = load_file(output)
    return [logits[str(i)] for i in range(len(folders))]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(2**20):
            digest.update(part)
        return digest.hexdigest()


def _ids(path: Path) -> tuple[str, ...]:
    """The ids that the Hub may give this content: SHA-256 for a large file, git blob id for a small one."""
    if path.stat().st_size >= LARGE:
        return (_sha256(path),)
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _refuse_paths(name: str, paths: Iterable[str]) -> None:
    """Refuse listed paths that lead out of the download folder, since the Hub's list of files is not trusted."""
    for path in paths:
        if "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
            raise UserError(f"{name}: the Hub lists a file that lies outside of the repository, {shown(path)[:200]}")


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """Turn the client's errors into one line each that says what to do. The token is sent to the Hub only."""
    bound_downloads()
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise UserError("not logged in to the Hub: run `hf auth login`, or set HF_TOKEN to a token with write access") from error
    except OfflineModeIsEnabled as error:
        raise UserError("the Hub cannot be reached while HF_HUB_OFFLINE is set: unset it") from error
    except HFValidationError as error:
        raise UserError(f"{name!r} is not a repository's name: {error}") from error
    except HfHubHTTPError as error:
        raise UserError(_explain(name, error)) from error
    except (UserError, MemoryError):
        raise
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:  # HTML from a captive portal
        raise UserError(_not_understood(name, error)) from error
    except ValueError as error:  # invalid metadata in README.md
        raise UserError(f"{name}: {one_line(error)}") from error
    except KeyboardInterrupt as error:
        raise UserError(f"interrupted: {AGAIN}") from error
    except (HTTPError, RuntimeError) as error:
        raise UserError(_explain(name, error)) from error
    except OSError as error:  # a download of the wrong length, or a missing file
        if error.errno in NO_ROOM:
            raise
        raise UserError(f"{name}: the download failed: {one_line(error)}") from error
    except Exception as error:  # the client does not validate responses: malformed ones raise various exceptions
        raise UserError(_not_understood(name, error)) from error


def _not_understood(name: str, error: Exception) -> str:
    return f"{name}: {constants.ENDPOINT} does not answer as a Hub does ({type(error).__name__}: {one_line(error, 120)})"


def _explain(name: str, error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HTTPError):  # uploads wrap the original error
        cause = cause.__cause__
    if not isinstance(cause, HfHubHTTPError) or cause.response.status_code >= 500:
        return f"the connection to the Hub broke off ({_first_line(cause or error)}): {AGAIN}"
    status, said = cause.response.status_code, cause.server_message or _first_line(cause)
    if status == 401:
        return "the Hub does not accept the token: run `hf auth login` again, or set HF_TOKEN to a token that is valid"
    if status == 403:
        return f"no permission to write to {name}: {said}; use a token with write access, or a repository of your own"
    return f"{name}: the Hub refused: {said}"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
