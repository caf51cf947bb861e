"""`decoding.c` as a shared library: compiled on first use, kept in the user's cache directory, called through ctypes.

It is compiled on the machine that runs it, because only there the vector instructions of the processor are known. This takes a few seconds
and a C compiler: `CC`, or the first of cc, gcc and clang. Without one, [`library`] returns `None`, and PyTorch is used instead.

A shared library is code, so the cache is private: `gpt_scratch/decoding` in the user's cache directory, with mode 0700. A library is loaded
only if no other user owns or can write to it or its directory. Its name is a hash of the source, the compiler's flags and the macros that
it predefines with them: its version and the processor's instructions. It is written to a temporary file and then renamed.
"""

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch

from ..errors import one_line

COMPILERS = ("cc", "gcc", "clang")
# Tried in this order: clang on ARM has no -march=native.
ALWAYS = ("-O3", "-fno-fast-math", "-shared", "-fPIC")
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
FLAGS = tuple((*processor, threads) for threads in ("-pthread", "-DONE_THREAD") for processor in PROCESSOR)
SECONDS = 120  # limit of a call of the compiler

# The format of a weight, by the type of its tensor; a uint8 holds two int4 values.
FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
ACTIVATIONS = {"silu": 0, "swish": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu": 2, "relu": 3}
GROUP = 32  # columns of an int4 weight that share a scale; the input size of every product is a multiple of it

pointer, int64 = ctypes.c_void_p, ctypes.c_int64


class Linear(ctypes.Structure):
    _fields_ = [("weight", pointer), ("scale", pointer), ("bias", pointer), ("in_", int64), ("out", int64), ("format", int64)]


class Layer(ctypes.Structure):
    _fields_ = [
        *((name, pointer) for name in ("norm", "norm_bias", "mlp_norm", "mlp_norm_bias", "query_norm", "key_norm")),
        *((name, Linear) for name in ("qkv", "o", "up", "down")),
    ]


class Model(ctypes.Structure):
    _fields_ = [
        ("layers", ctypes.POINTER(Layer)),
        *((name, int64) for name in ("count", "C", "I", "H", "K", "D", "gated", "activation", "rms", "window")),
        ("eps", ctypes.c_float),
        ("attention_scale", ctypes.c_float),
    ]


class Cache(ctypes.Structure):
    _fields_ = [("keys", pointer), ("values", pointer)]


def address(tensor: torch.Tensor | None) -> int | None:
    """Address of the first element of a contiguous tensor on the CPU; `None` (NULL in C) for `None`."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


class Unusable(Exception):
    """The library cannot be compiled or loaded; the message says why."""


def has_compiler() -> bool:
    """Whether [`library`] can be expected to work."""
    try:
        return hasattr(os, "getuid") and bool(_compiler())
    except Unusable:
        return False


@functools.cache
def library() -> Any | None:
    """The functions of decoding.c; `None`, with one line on standard error, if it cannot be compiled or loaded."""
    try:
        if not hasattr(os, "getuid"):
            raise Unusable("it needs Linux or macOS")
        try:
            return _load(_cache_directory())
        except OSError as error:
            print(f"note: decoding.c is compiled on every start: {one_line(error, 1000)}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="gpt_scratch-") as folder:  # a loaded library no longer needs its file
            return _load(Path(folder))
    except (OSError, Unusable) as error:
        print(
            f"note: decoding.c cannot be used ({one_line(error, 1000)}): "
            "generating with PyTorch and the weights as loaded, which is slower",
            file=sys.stderr,
        )
        return None


def _cache_directory() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "")
    cache = cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")
    if not os.path.isabs(cache):
        raise OSError("the home directory is unknown")
    return Path(cache, "gpt_scratch", "decoding")


def _load(folder: Path) -> Any:
    """The library, from `folder` if it is there, else compiled into it.

    Raises:
        OSError: `folder` cannot be used, or is not private.
        Unusable: there is no compiler, or it fails.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_shared(folder, stat.S_ISDIR)
    compiler = _compiler()
    source = _source()
    errors, to_compile = ["it supports none of the flags"], []
    for flags in FLAGS:
        command = [*compiler, *ALWAYS, *flags, "-x", "c", "-"]
        try:
            macros = _call([*command, "-dM", "-E"], b"")
        except Unusable as error:
            errors.append(str(error))
            continue
        path = folder / f"{hashlib.sha256(repr((source, command, macros)).encode()).hexdigest()}.so"
        if path.exists():  # compiled before: with other flags the compiler may have failed
            to_compile = [(flags, command, path)]
            break
        to_compile.append((flags, command, path))
    for flags, command, path in to_compile:
        try:
            loaded = _open(path, lambda output: _call([*command, "-lm", "-o", output], source))  # noqa: B023  called at once
        except Unusable as error:
            errors.append(str(error))
            continue
        if "-DONE_THREAD" in flags:
            print(f"note: generating on one core: {compiler[0]} has no POSIX threads", file=sys.stderr)
        return loaded
    raise Unusable(f"{compiler[0]} fails: {errors[-1]}")


def _source() -> bytes:
    return resources.files(__package__).joinpath("decoding.c").read_bytes()  # also if the package is in a zip file


def _compiler() -> list[str]:
    """The command of the C compiler."""
    try:
        named = shlex.split(os.environ.get("CC", ""))
    except ValueError as error:
        raise Unusable(f"CC is {os.environ['CC']!r}: {error}") from error
    compiler = named or [name for name in COMPILERS if shutil.which(name)][:1]
    if not compiler:
        raise Unusable(f"no C compiler is installed: {', '.join(COMPILERS)}, or set CC to another")
    return compiler


def _call(command: list[str], source: bytes) -> bytes:
    """Output of the compiler, without a shell; `source` is its standard input."""
    try:
        return subprocess.run(command, input=source, capture_output=True, check=True, timeout=SECONDS).stdout
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        first = next((line for line in lines if "error" in line), lines[-1] if lines else f"exit status {error.returncode}")
        raise Unusable(first) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unusable(str(error)) from error


def _open(path: Path, compile_to: Callable[[str], object]) -> Any:
    """Load `path`, after compiling it if it is missing, damaged or not private."""
    try:
        _refuse_shared(path, stat.S_ISREG)
        return _declared(path)
    except OSError:  # of all three
        _write(path, compile_to)
    _refuse_shared(path, stat.S_ISREG)  # on some file systems, modes have no effect
    return _declared(path)


def _write(path: Path, compile_to: Callable[[str], object]) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem[:16], suffix=".part")
    os.close(descriptor)
    try:
        compile_to(temporary)
        os.chmod(temporary, 0o700)  # the linker may have created the file anew, with the user's umask
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _refuse_shared(path: Path, is_kind: Callable[[int], bool]) -> None:
    """Raise `PermissionError` if another user could have written the contents of `path`: symbolic links are not followed."""
    status = os.lstat(path)
    if not is_kind(status.st_mode):
        raise PermissionError(f"{path} is not a regular {'directory' if is_kind is stat.S_ISDIR else 'file'}")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{path} can be written to by other users")


def _declared(path: Path) -> Any:
    """The loaded library, with the types of its functions."""
    loaded = ctypes.CDLL(str(path))
    try:
        linear, decode = loaded.gpt_scratch_linear, loaded.gpt_scratch_decode
        sizes = list((ctypes.c_int64 * 4).in_dll(loaded, "gpt_scratch_sizes"))
    except (AttributeError, ValueError) as error:
        raise OSError(f"{path} is not decoding.c: {error}") from error
    if sizes != [ctypes.sizeof(kind) for kind in (Linear, Layer, Model, Cache)]:
        raise Unusable(f"its structures have {sizes} bytes, not those of decoding_library.py")
    linear.argtypes = [ctypes.POINTER(Linear), pointer, pointer, int64, ctypes.c_int]
    linear.restype = None
    decode.argtypes = [
        *(ctypes.POINTER(Model), ctypes.POINTER(Cache), int64),
        *(pointer, int64, pointer, pointer, pointer, pointer, pointer, int64, ctypes.c_int),
    ]
    decode.restype = ctypes.c_int
    return loaded
