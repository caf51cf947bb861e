"""One run at a time in an output directory: flock(2) on a file in it, which the system frees when the process ends, however it ends."""

import os
import platform
import sys
from pathlib import Path

from ..errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".run.lock"  # hidden: it does not go to the Hub
_held: list[int] = []  # file descriptors


def lock_output_directory(output_dir: str) -> None:
    """Keep other runs out of an existing directory until this process ends; of the processes of one run the first locks for all.

    Where the file system knows no locks, a warning.

    Raises:
        UserError: another run holds it (the message names its process), or the directory cannot be written to.
    """
    if os.environ.get("RANK", "0") != "0":  # set by torchrun and accelerate
        return
    try:
        # A link is not followed, since the file is written.
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
        print(f"warning: {output_dir} cannot be locked ({error.strerror or error}): start no second run there", file=sys.stderr)
        return False


def _release_in_child() -> None:
    """A worker that outlives a killed run would hold on to its lock."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
