"""How a script ends on each kind of error: one line and its status, or, for a bug, the traceback."""

import errno
import os

import pytest

from gpt_scratch.errors import Preempted, UserError, one_line, printable, run_script


class PanicException(BaseException):
    """As pyo3 raises it for a panic of a library in Rust: no `Exception`."""


def stop(error: BaseException):
    raise error


ENDS = {
    "bad input": (UserError("row 3:\n no text\x1b[2J"), 2, "error: row 3:  no text\\x1b[2J"),
    "a full disk": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/x"), 2, "error: No space left on device: run/x"),
    "a read-only file system": (OSError(errno.EROFS, os.strerror(errno.EROFS)), 2, "error: Read-only file system"),
    "a folder of others": (PermissionError(errno.EACCES, "Permission denied", "run"), 2, "error: Permission denied: run"),
    "no memory": (MemoryError(), 2, "error: out of memory: free some memory, or give smaller files or sizes"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "stopped by Ctrl-C"),
    "a panic in Rust": (PanicException("too big"), 2, "error: a library failed, probably on a regular expression in tokenizer.json: too big"),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_a_script_ends_in_one_line(capsys, name):
    error, status, line = ENDS[name]
    with pytest.raises(SystemExit) as end:
        run_script(lambda: stop(error))
    assert end.value.code == status and capsys.readouterr().err == f"{line}\n"


def test_a_run_that_was_stopped_says_so_on_standard_output(capsys):
    with pytest.raises(SystemExit) as end:
        run_script(lambda: stop(Preempted("saved in run/checkpoint-3", 143)))
    assert end.value.code == 143 and capsys.readouterr().out == "saved in run/checkpoint-3\n"


@pytest.mark.parametrize("error", [KeyError("a"), FileNotFoundError(errno.ENOENT, "No such file"), GeneratorExit()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run_script(lambda: stop(error))


def test_texts_of_others_are_one_printable_line():
    assert printable("a\x1b]0;t\x07\tb\n\u202ec\ud800") == "a\\x1b]0;t\\x07\tb\n\\u202ec\\ud800"
    assert one_line(ValueError("a\n  \x1b[31mb\x1b[0m")) == "a b" and one_line(MemoryError()) == "out of memory"
    assert one_line("x" * 400) == "x" * 300
