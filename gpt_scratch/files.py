"""Atomic writes of files and directories: written to a temporary path beside the target, then renamed.

A directory is replaced only if this package wrote it: its `.gpt_scratch.json` lists the files that were written, and any other file in it
belongs to the user. The old directory is renamed, and deleted only when the new one is in place.
"""

import glob
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from itertools import count, islice
from pathlib import Path
from typing import Any

from .errors import UserError

JSON_BYTES = 64 * 2**20  # maximum size of a configuration or an index of shards
MARK = ".gpt_scratch.json"
UNFINISHED, REPLACED = "-unfinished", "-replaced"  # suffixes of the hidden temporary directories
CODE_PATTERN = "*_gpt_scratch.py"  # model code, copied into every checkpoint
# Release 0.1.0 wrote no .gpt_scratch.json; its conversions contain conversion.json and only these files.
UNMARKED = ("conversion.json", "config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
            CODE_PATTERN, "README.md", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
            "chat_template.jinja")  # fmt: skip


def read_json_object(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of at most `limit` bytes.

    Raises:
        ValueError: not a JSON object, or too long; OSError: it cannot be read.
    """
    with path.open("rb") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise ValueError(f"{path.name} has more than {limit:,} bytes")
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold a JSON object, not a {type(content).__name__}")
    return content


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path`, with the same suffix, that replaces `path` when the block succeeds.

    After an exception, the temporary file is removed and an existing `path` is unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp creates files that only the owner can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(
    path: str | os.PathLike, overwrite: bool = False, sources: Sequence[str | os.PathLike | None] = ()
) -> Iterator[Path]:
    """A temporary directory beside `path` that replaces `path` when the block succeeds.

    After an exception, `path` is unchanged.

    Args:
        overwrite: replace a directory that this package wrote. An empty directory is always replaced.
        sources: inputs of the block, which must not be replaced; names on the Hub are ignored.

    Raises:
        UserError: before the block runs, see [`check_target`]; after it, if `path` has changed meanwhile or cannot be renamed.
    """
    target, found = check_target(path, overwrite, sources)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=UNFINISHED))
    except OSError as error:
        raise UserError(f"cannot write to {Path(path).parent}: {error.strerror or error}") from error
    try:
        yield temporary
        (temporary / MARK).write_text(
            json.dumps({"files": sorted({MARK, *_entries(temporary)})}, indent=2) + "\n", encoding="utf-8"
        )
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        _put_in_place(temporary, target, found)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def swapped_directory(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary directory beside `path` that replaces `path` when the block succeeds, without checks: for subdirectories of a run.

    The previous directory is removed afterwards; if it contains files that the new one lacks, it is kept under another name.
    """
    target = Path(os.path.realpath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    _restore_after_kill(target)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-", suffix=UNFINISHED))
    aside = temporary.with_name(temporary.name.removesuffix(UNFINISHED) + REPLACED)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if os.path.lexists(target):
            os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            if os.path.lexists(aside):
                os.rename(aside, target)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if not os.path.lexists(aside):
        return
    if aside.is_dir() and set(_entries(aside)) <= set(_entries(target)):
        shutil.rmtree(aside, ignore_errors=True)
        return
    kept = next(name for i in count(1) if not os.path.lexists(name := target.with_name(f"{target.name}-before-{i}")))
    os.rename(aside, kept)
    print(f"note: the previous {target} contains other files, too: it was renamed to {kept}", file=sys.stderr)


def check_target(
    path: str | os.PathLike, overwrite: bool = False, sources: Sequence[str | os.PathLike | None] = ()
) -> tuple[Path, os.stat_result | None]:
    """The absolute path of `path`, without links and `..`, and the existing directory, if any.

    Raises:
        UserError: `path` exists and must not be replaced; names the reason.
    """
    given = Path(os.path.expanduser(path))
    if "\0" in str(given):
        raise UserError(f"cannot write to {str(path)!r}: a path cannot contain a null byte")
    try:
        if given.name != given.name.strip() and not os.path.lexists(given):  # "$NAME " in a script, or a trailing newline
            raise UserError(
                f"{str(path)!r} begins or ends with white space, probably by mistake: choose another output directory"
            )
        if given.is_symlink():
            raise UserError(
                f"{path} is a link to {os.readlink(given)}: name the directory itself, or choose another output directory"
            )
        target = Path(os.path.realpath(given))
        _restore_after_kill(target)
        found = target.lstat()
        if not target.is_dir():
            raise UserError(f"{path} exists and is not a directory: choose another output directory")
        if reason := _why_not_replaced(target, sources):
            raise UserError(f"{path} {reason}, which is never replaced: choose another output directory")
        if foreign := list(islice(_foreign_entries(target), 4)):
            names = ", ".join(map(repr, foreign[:3])) + (", ..." if len(foreign) > 3 else "")
            raise UserError(
                f"{path} exists and is not empty: it contains {names}, which this package did not write: "
                "choose another output directory, or move these files"
            )
        if any(target.iterdir()) and not overwrite:
            raise UserError(f"{path} exists and is not empty: choose another output directory, or pass --overwrite")
    except FileNotFoundError:
        return target, None
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from error
    return target, found


def refuse_existing_run(path: Path) -> None:
    """Refuse an output directory that contains a run.

    Raises:
        UserError: the directory contains a run, or other files with names that a run writes.
    """
    if any(path.glob("checkpoint-*")) or any(path.glob("*.safetensors")):
        raise UserError(
            f"{path} already contains a run: choose another --output_dir, or resume it with --resume_from_checkpoint latest"
        )
    for name in ("README.md", "config.json", "metrics.json", "tokenizer.json"):
        if os.path.lexists(path / name):
            raise UserError(f"{path} contains {name}, which the run would overwrite: choose another --output_dir")


def _why_not_replaced(target: Path, sources: Sequence[str | os.PathLike | None]) -> str | None:
    """Why a directory must not be replaced, or `None`. Paths are compared by device and inode, independent of case, links and spelling."""
    if _is_mount(target):  # includes the root
        return "is a mount point"
    read = [Path(os.path.abspath(os.path.expanduser(source))) for source in sources if source]
    for name, place in (("current", Path.cwd()), ("home", Path.home()), *(("source", place) for place in read)):
        for spelling in {place, Path(os.path.realpath(place)), *_linked(place if name == "source" else None)}:
            if _same(target, spelling):
                return f"is the {name}{'' if name == 'source' else ' directory'}"
            if any(_same(target, parent) for parent in spelling.parents):
                return f"contains the {name}{'' if name == 'source' else ' directory'} {place}"
    for place in read:
        if any(_same(place, parent) for parent in target.parents):
            return f"is inside the source {place}"
    return None


def _linked(source: Path | None) -> list[Path]:
    """The targets of the links in a source, since its files may be in another directory."""
    if source is None or not source.is_dir():
        return []
    return [Path(os.path.realpath(entry)) for entry in source.iterdir() if entry.is_symlink()]


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:  # one of the two does not exist
        return False


def _is_mount(path: Path) -> bool:
    """Like `os.path.ismount`, but on Linux also detects bind mounts of the same file system."""
    if os.path.ismount(path):
        return True
    with suppress(OSError):
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
        # proc(5): the fifth field, with spaces written as \040
        points = (line.split(" ")[4] for line in mounts.split("\n")[:-1])
        return any(re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point) == str(path) for point in points)
    return False


def _entries(folder: Path) -> Iterator[str]:
    """Files, folders and links below `folder`, relative to it. Links and mount points are listed but not entered."""
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield (Path(root) / name).relative_to(folder).as_posix()
        folders[:] = [name for name in folders if not _is_mount(Path(root) / name)]


def _foreign_entries(folder: Path) -> Iterator[str]:
    """The files in `folder` that this package did not write."""
    try:
        ours = set(json.loads((folder / MARK).read_text(encoding="utf-8"))["files"])
        return (name for name in _entries(folder) if name not in ours or _is_mount(folder / name))
    except (
        OSError,
        ValueError,
        TypeError,
        KeyError,
        RecursionError,
    ):  # no .gpt_scratch.json, or which this package did not write
        pass
    if _was_converted_by_first_release(folder):
        return (name for name in _entries(folder) if not any(fnmatch(name, pattern) for pattern in UNMARKED))
    return iter(sorted(os.listdir(folder)))


def _was_converted_by_first_release(folder: Path) -> bool:
    try:
        return {"format", "head", "proof"} <= json.loads((folder / "conversion.json").read_text(encoding="utf-8")).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _put_in_place(temporary: Path, target: Path, found: os.stat_result | None) -> None:
    """Rename `temporary` to `target`; `found` is the directory that existed at the start, and is removed last."""
    aside = temporary.with_name(temporary.name.removesuffix(UNFINISHED) + REPLACED)
    changed = f"{target} was changed by another process meanwhile and was not replaced: choose another output directory"
    try:
        if found is not None:
            os.rename(target, aside)
            if not os.path.samestat(found, aside.lstat()) or any(_foreign_entries(aside)):
                raise UserError(changed)
        os.rename(temporary, target)
    except BaseException as error:
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.rename(aside, target)
        if isinstance(error, OSError):
            raise UserError(changed if target.exists() else f"cannot write {target}: {error.strerror or error}") from error
        raise
    if found is not None:
        shutil.rmtree(aside, ignore_errors=True)
        if aside.exists():
            print(f"warning: the replaced directory {aside} could not be removed", file=sys.stderr)


def _restore_after_kill(target: Path) -> None:
    """Restore a directory that a process killed between the two renames has left under its hidden name."""
    if os.path.lexists(target):
        return
    # mkdtemp inserts eight characters
    left = sorted(target.parent.glob(f".{glob.escape(target.name)}-????????{REPLACED}"), key=lambda path: path.stat().st_ctime)
    if left:
        os.rename(left[-1], target)
        print(f"note: restored {target}, which a killed process had renamed to {left[-1].name}", file=sys.stderr)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
