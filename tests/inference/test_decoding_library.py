"""The compiled decoding.c: one file per source, flags and processor, in a private directory; nothing else is loaded. PyTorch without it."""

import ctypes
import os
import shutil
import stat
from importlib import resources
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model, token_ids
from torch import nn

from gpt_scratch.inference import decoding_library
from gpt_scratch.inference.decoding import generation_settings, prepare_for_decoding

COMPILER = next(filter(shutil.which, decoding_library.COMPILERS), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="decoding.c needs a C compiler")
as_root = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give files to another user")
SIZES = [ctypes.sizeof(getattr(decoding_library, name)) for name in ("Linear", "Layer", "Model", "Cache")]
# As decoding.c from outside, compiled in a moment; `value` is what gpt_scratch_decode returns.
SOURCE = """
const long long gpt_scratch_sizes[4] = {%s};
void gpt_scratch_linear(void) {}
int gpt_scratch_decode(void) { return %d; }
"""
HOSTILE = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


def source(value: int, sizes=SIZES) -> bytes:
    return (SOURCE % (", ".join(map(str, sizes)), value)).encode()


def value() -> int | None:
    """What the loaded library returns; `None` for PyTorch."""
    decoding_library.library.cache_clear()
    loaded = decoding_library.library()
    return None if loaded is None else loaded.gpt_scratch_decode(None, None, 0, None, 0, None, None, None, None, None, 0, 1)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """The directory of the cache, which does not exist yet."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(decoding_library, "_source", lambda: source(7))
    yield tmp_path / "cache" / "gpt_scratch" / "decoding"
    decoding_library.library.cache_clear()


@pytest.fixture
def compiled(folder, monkeypatch) -> Path:
    """The library, compiled but not loaded: what a process has once loaded from a path it does not read again."""
    with monkeypatch.context() as patched:
        patched.setattr(decoding_library, "_declared", lambda path: None)
        assert value() is None
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def hostile(tmp_path) -> tuple[Path, Path]:
    """A library with the right functions, and the file that it writes when it is loaded."""
    path, mark = tmp_path / "hostile.so", tmp_path / "was-loaded"
    code = source(666) + (HOSTILE % mark).encode()
    decoding_library._call([COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)], code)
    return path, mark


def compilations(monkeypatch) -> list[list[str]]:
    """The commands that compile, from now on."""
    commands, call = [], decoding_library._call

    def counted(command, code):
        if "-o" in command:
            commands.append(command)
        return call(command, code)

    monkeypatch.setattr(decoding_library, "_call", counted)
    return commands


@needs_compiler
def test_it_is_compiled_once(compiled, monkeypatch, capfd):
    commands = compilations(monkeypatch)
    assert value() == 7 and not commands and capfd.readouterr().err == ""


@needs_compiler
def test_it_is_private_whatever_the_umask(folder):
    umask = os.umask(0)
    try:
        assert value() == 7
    finally:
        os.umask(umask)
    (path,) = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == stat.S_IMODE(path.stat().st_mode) == 0o700


@needs_compiler
def test_another_source_processor_or_compiler_is_another_file(compiled, folder, monkeypatch):
    monkeypatch.setattr(decoding_library, "_source", lambda: source(8))
    assert value() == 8
    monkeypatch.setattr(decoding_library, "FLAGS", (("-DPROCESSOR=2", "-pthread"),))
    assert value() == 8
    monkeypatch.setenv("CC", f"{COMPILER} -g")
    assert value() == 8
    call = decoding_library._call
    monkeypatch.setattr(decoding_library, "_call", lambda command, code: call(command, code) + b"#define __AVX512F__ 1\n")
    assert value() == 8
    assert len(list(folder.glob("*.so"))) == len(list(folder.iterdir())) == 5


@needs_compiler
@pytest.mark.fault("a cached library that another user could have written: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("how", ["group", "others", "symlink", pytest.param("owner", marks=as_root)])
def test_a_file_of_others_is_not_loaded_but_replaced(compiled, hostile, how):
    library, mark = hostile
    compiled.unlink()
    if how == "symlink":
        compiled.symlink_to(library)
    else:
        shutil.copyfile(library, compiled)
        compiled.chmod({"group": 0o720, "others": 0o702, "owner": 0o700}[how])
        if how == "owner":
            os.chown(compiled, 12345, 12345)
    assert value() == 7 and not mark.exists()
    assert compiled.is_file() and not compiled.is_symlink() and compiled.stat().st_uid == os.getuid() and library.is_file()


@needs_compiler
@pytest.mark.fault("a cache directory that others can write to, with a library: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("how", ["group", "others", "symlink", pytest.param("owner", marks=as_root)])
def test_a_directory_of_others_is_not_used(compiled, hostile, folder, how, capfd):
    library, mark = hostile
    shutil.copyfile(library, compiled)
    if how == "symlink":
        folder.rename(folder.with_name("elsewhere"))
        folder.symlink_to(folder.with_name("elsewhere"))
    elif how == "owner":
        os.chown(folder, 12345, 12345)
    else:
        folder.chmod({"group": 0o770, "others": 0o707}[how])
    before = sorted(folder.iterdir())
    assert value() == 7 and not mark.exists() and sorted(folder.iterdir()) == before
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"note: decoding.c is compiled on every start: {folder} ")


@needs_compiler
def test_a_private_file_is_loaded(compiled, hostile):
    """Otherwise the two tests above would pass for a library that cannot be loaded at all."""
    library, mark = hostile
    compiled.unlink()
    shutil.copyfile(library, compiled)
    compiled.chmod(0o700)
    assert value() == 666 and mark.exists()


@needs_compiler
@pytest.mark.fault("a damaged cached library: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("what", ["empty", "text", "another library"])
def test_a_damaged_file_is_replaced(folder, tmp_path, monkeypatch, what):
    commands = compilations(monkeypatch)
    assert value() == 7
    (path,) = folder.iterdir()
    other = tmp_path / "other.so"
    decoding_library._call([COMPILER, "-shared", "-fPIC", "-x", "c", "-", "-o", str(other)], b"int other;")
    commands.clear()
    damaged = folder / "damaged.so"  # under a name that this process has not loaded
    damaged.write_bytes({"empty": b"", "text": b"not a library\n", "another library": other.read_bytes()}[what])
    damaged.chmod(0o700)
    compile_to = lambda output: shutil.copyfile(path, output)  # noqa: E731
    if what == "another library":  # the loader returns what it has loaded from a path, even if the file has been replaced
        with pytest.raises(OSError, match="is not decoding.c"):
            decoding_library._open(damaged, compile_to)
    else:
        assert decoding_library._open(damaged, compile_to).gpt_scratch_decode
    assert damaged.read_bytes() == path.read_bytes()


@needs_compiler
@pytest.mark.fault("no place for the compiled library: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("cache", ["a file", "unknown home"])
def test_without_a_cache_it_is_compiled_for_this_process(cache, folder, monkeypatch, tmp_path, capfd):
    if cache == "a file":
        folder.parent.parent.write_text("not a directory")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "relative")
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # raises KeyError
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path))
        assert value() == 7 and not list(tmp_path.glob("gpt_scratch-*"))
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("note: decoding.c is compiled on every start: ")
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
        assert value() is None


def compiler_script(path: Path, body: str) -> str:
    path.write_text(f'#!/bin/sh\n{body}\nexec {COMPILER} "$@"\n')
    path.chmod(0o700)
    return str(path)


CASES = {
    "no compiler": (None, "no C compiler is installed: cc, gcc, clang, or set CC to another"),
    "missing": ("no-such-compiler", "no-such-compiler"),
    "fails": ("false", "false fails: exit status 1"),
    "quotes": ("cc '", "No closing quotation"),
    "shell": ("cc;touch was-run", "cc;touch"),
    "hangs": ("HANG", "timed out after 0.5 seconds"),
    "wrong source": (COMPILER, "error: "),
    "structures": (COMPILER, "its structures have [1, 2, 3, 4] bytes"),
}


@needs_compiler
@pytest.mark.fault("a C compiler that does not work: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("case", CASES)
def test_without_a_library_the_model_is_unchanged_and_one_line_says_why(case, monkeypatch, tmp_path, folder, capfd):
    compiler, reason = CASES[case]
    monkeypatch.chdir(tmp_path)
    if compiler is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    elif compiler == "HANG":
        monkeypatch.setattr(decoding_library, "SECONDS", 0.5)
        monkeypatch.setattr(decoding_library, "FLAGS", decoding_library.FLAGS[:1])
        monkeypatch.setenv("CC", compiler_script(tmp_path / "slow-cc", "exec sleep 60"))
    else:
        monkeypatch.setenv("CC", compiler)
    if case == "wrong source":
        monkeypatch.setattr(decoding_library, "_source", lambda: b"not C")
    elif case == "structures":
        monkeypatch.setattr(decoding_library, "_source", lambda: source(7, sizes=[1, 2, 3, 4]))
    decoding_library.library.cache_clear()
    model, ids = tiny_model(), token_ids(1, 4)
    expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert prepare_for_decoding(model, "int8") is model and generation_settings(model) == {}
    assert any(type(module) is nn.Linear for module in model.modules())
    assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), expected)
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("note: decoding.c cannot be used (") and line.endswith("as loaded, which is slower") and reason in line
    assert not (tmp_path / "was-run").exists() and not list(folder.glob("*.part"))


@needs_compiler
def test_a_compiler_without_threads_is_used_and_asked_once(monkeypatch, tmp_path, capfd):
    body = 'case "$*" in *-pthread*-o*) echo "error: no libpthread" >&2; exit 1;; esac'  # as gcc without its library: the linker fails
    monkeypatch.setenv("CC", compiler_script(tmp_path / "cc-without", body))
    commands = compilations(monkeypatch)
    assert value() == 7 and len(commands) > 1
    assert capfd.readouterr().err == f"note: generating on one core: {tmp_path / 'cc-without'} has no POSIX threads\n"
    commands.clear()
    assert value() == 7 and not commands


def test_the_source_is_installed():
    assert resources.files("gpt_scratch.inference").joinpath("decoding.c").is_file()


@needs_compiler
@pytest.mark.thorough
@pytest.mark.parametrize("flags", ["-pthread", "-DONE_THREAD"])
@pytest.mark.parametrize("processor", ["x86-64", "sandybridge", "haswell", "skylake-avx512"])
def test_it_compiles_for_other_processors_without_a_warning(processor, flags, tmp_path):
    command = [COMPILER, "-O1", f"-march={processor}", flags, "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-x", "c", "-"]
    code = resources.files("gpt_scratch.inference").joinpath("decoding.c").read_bytes()
    try:
        decoding_library._call([*command, "-o", str(tmp_path / "x.so"), "-lm"], code)
    except decoding_library.Unusable as error:
        if "march" in str(error):
            pytest.skip("the compiler is not for x86")
        raise
