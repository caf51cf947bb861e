"""`decoding.c` as a library: compiled at the first use on a machine, kept on disk, called through ctypes.

Compiled on the machine that runs it, since a processor's vector instructions are known there only. It takes about two seconds and a C
compiler (gcc or clang; CC names another), and the result is kept in the user's cache directory, under a name made of the source, the
compiler and the processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError

SOURCE = Path(__file__).with_name("decoding.c")
FORMATS = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.int8: 2,
    torch.uint8: 3,
}  # of a weight's tensor; uint8 holds two of four bits
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu": 2, "relu": 3}
GROUP = 32  # columns of a weight in four bits with a scale and a minimum of their own; every product's input is a multiple of it
# What one compiler calls by another name, or lacks: Apple's clang has no OpenMP, and clang on ARM no -march.
FLAGS = (["-march=native", "-fopenmp"], ["-mcpu=native", "-fopenmp"], ["-march=native"], [])

pointer, whole = ctypes.c_void_p, ctypes.c_int64


class Linear(ctypes.Structure):
    _fields_ = [("weight", pointer), ("scale", pointer), ("bias", pointer), ("in_", whole), ("out", whole), ("format", whole)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, pointer) for name in ("norm", "norm_bias", "mlp_norm", "mlp_norm_bias", "query_norm", "key_norm")),
        *((name, Linear) for name in ("qkv", "o", "up", "down")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *((name, whole) for name in ("count", "C", "I", "H", "K", "D", "gated", "activation", "rms", "window")),
        ("eps", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
    ]


class Cache(ctypes.Structure):
    _fields_ = [("keys", pointer), ("values", pointer)]


def address(tensor: torch.Tensor | None) -> int | None:
    """Of the first element of a contiguous tensor on the CPU."""
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def library() -> Any:
    """`decode` and `linear` of decoding.c.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    loaded = ctypes.CDLL(str(_compiled()))
    loaded.linear.argtypes = [ctypes.POINTER(Linear), pointer, pointer, whole, ctypes.c_int]
    loaded.linear.restype = None
    loaded.decode.argtypes = [
        *(ctypes.POINTER(Model), ctypes.POINTER(Cache), whole),
        *(pointer, whole, pointer, pointer, pointer, pointer, pointer, whole, ctypes.c_int),
    ]
    loaded.decode.restype = ctypes.c_int
    return loaded


def _compiled() -> Path:
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise UserError("--weights needs a C compiler, and none of cc, gcc, clang is found: install one, or leave out --weights")
    name = f"decoding-{hashlib.sha256(_identity(compiler)).hexdigest()[:16]}.so"
    for folder in (_cache_directory(), None):
        try:
            if folder is None:  # a home that cannot be written to
                folder = Path(tempfile.mkdtemp(prefix="gpt_scratch-"))
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / name).is_file():
                _compile(compiler, folder / name)
            return folder / name
        except OSError:
            continue
    raise UserError(
        f"--weights compiles {SOURCE.name}, and neither {_cache_directory()} nor {tempfile.gettempdir()} can be written to"
    )


def _cache_directory() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt_scratch"


def _identity(compiler: str) -> bytes:
    """What the library depends on."""
    processor = platform.processor() + platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"--weights needs a C compiler, and {compiler} does not answer to --version: {error}") from error
    return SOURCE.read_bytes() + version + processor.encode()


def _compile(compiler: str, path: Path) -> None:
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
    os.close(descriptor)
    try:
        for flags in FLAGS:
            command = [compiler, "-O3", *flags, "-shared", "-fPIC", str(SOURCE), "-o", unfinished, "-lm"]
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if finished.returncode == 0:
                os.replace(unfinished, path)
                return
        raise UserError(f"--weights compiles {SOURCE.name}, and {compiler} fails: {finished.stderr.strip().splitlines()[-1:]}")
    finally:
        Path(unfinished).unlink(missing_ok=True)
