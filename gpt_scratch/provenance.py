"""Provenance of a result: the command, commit, versions and hardware that produced it."""

import os
import platform
import re
import shlex
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .configuration_gpt_scratch import VERSION

PROJECT_PAGE = ""  # URL of the project; empty while there is none, so that no dead links are written
# Versions are read from the packages' metadata: importing them would take 90 MB.
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate")


def describe_environment() -> dict[str, Any]:
    """Versions, hardware and command of this run, so that results can be traced to it. Contains no path of this machine."""
    cuda = torch.cuda.is_available()
    return {
        "command": shlex.join([os.path.basename(sys.argv[0]), *(_without_folder(word) for word in sys.argv[1:])]),
        "commit": _commit(),
        "versions": {"gpt_scratch": VERSION} | {package: version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU, {torch.get_num_threads()} threads",
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_bytes(pid: int | str = "self") -> int | None:
    """Peak resident memory of a running process in bytes; `None` where there is no /proc, and for a process that has ended.

    Not getrusage's, which begins with the memory of the process that started it: the child has it between fork and exec.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _without_folder(word: str) -> str:
    flag, separator, value = ("", "", word) if os.path.isabs(word) or "=" not in word else word.partition("=")
    return flag + separator + (os.path.basename(value.rstrip("/")) if os.path.isabs(value) else value)


def without_folders(value: Any) -> Any:
    """A setting, or a list of settings, with absolute paths replaced by their last component."""
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    return _without_folder(value) if isinstance(value, str) else value


def _commit() -> str | None:
    """The commit of the checkout that the package runs from; `None` if it is installed from a wheel."""
    folder = Path(__file__).resolve().parent
    found = subprocess.run(
        ["git", "-C", str(folder), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    tracked = subprocess.run(
        ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__], capture_output=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 and tracked.returncode == 0 else None
