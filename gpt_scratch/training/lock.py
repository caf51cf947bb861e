"""Allows only one run at a time in an output directory: flock(2) on a file, released by the system when the process ends."""

import os
import platform
import sys
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".run.lock"  # hidden, so that it is not uploaded
_held: list[int] = []  # file descriptors


def lock_output_directory(output_dir: str) -> None:
    """Lock an existing directory until this process ends; in a distributed run, the first process locks for all.

    Prints a warning if the file system does not support locks.

    Raises:
        UserError: another run has locked it (the message names its process), or the directory cannot be written to.
    """
    if os.environ.get("RANK", "0") != "0":  # set by torchrun and accelerate
        return
    try:
        # Links are not followed, since the file is written to.
        handle = os.open(Path(output_dir) / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise UserError(f"cannot write to --output_dir {output_dir}: {LOCK}: {error.strerror or error}") from error
    if any(os.path.samestat(os.fstat(handle), os.fstat(held)) for held in _held):
        os.close(handle)
    elif _lock(handle, output_dir):
        _held.append(handle)
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}\n".encode())
    else:
        os.close(handle)


def _lock(handle: int, output_dir: str) -> bool:
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError as error:
        owner = " ".join(os.read(handle, 200).decode(errors="replace").split()) or "another process"
        os.close(handle)
        raise UserError(
            f"--output_dir {output_dir} is in use by another run, {owner}: wait until it ends, or choose another --output_dir"
        ) from error
    except OSError as error:
        print(
            f"warning: {output_dir} cannot be locked ({error.strerror or error}): do not start a second run there",
            file=sys.stderr,
        )
        return False


def _release_in_child() -> None:
    """Close the lock in forked children: a worker that outlives a killed run would keep it."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
