"""How a script ends on each kind of error: one line and its status, or, for a bug, the traceback."""

import errno
import os
import sys
import warnings
from pathlib import Path

import pytest
import warm

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


def test_untrusted_text_is_one_printable_line():
    assert printable("a\x1b]0;t\x07\tb\n\u202ec\ud800") == "a\\x1b]0;t\\x07\tb\n\\u202ec\\ud800"
    assert one_line(ValueError("a\n  \x1b[31mb\x1b[0m")) == "a b" and one_line(MemoryError()) == "out of memory"
    assert one_line("x" * 400) == "x" * 300


def test_a_user_error_is_one_line_and_status_2():
    code = "from gpt_scratch.errors import UserError, run_script\ndef main(): raise UserError('a.txt: no such file')\nrun_script(main)"
    done = warm.run([sys.executable, "-c", code])
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: a.txt: no such file\n", "")


def test_control_characters_are_printed_as_escapes():
    assert printable("a\x1b]0;title\x07\x9b2J\r\u202eb\ud83d") == "a\\x1b]0;title\\x07\\x9b2J\\r\\u202eb\\ud83d"
    for kept in ("tab\tand\nnewline", "wide\u3000space", "👩\u200d👩\u200d👧", "ن\u200cم", "Grüße"):
        assert printable(kept) == kept


def test_every_error_has_a_message_on_one_line():
    for error, words in ((MemoryError(), "out of memory"), (RecursionError(), "nested too deeply"), (KeyError("x"), "'x'"), (OSError(), "OSError"),
                         (ValueError("\x1b[1ma\n b\x1b[0m\x1b[2J"), "a b\\x1b[2J")):  # fmt: skip
        assert one_line(error) == words
    assert len(one_line("x" * 1000)) == 300


@pytest.mark.parametrize(
    "error, line", [("MemoryError", "error: out of memory: "), ("UserError('a\\x1b[2J\\nb')", "error: a\\x1b[2J b\n")]
)
def test_a_script_ends_on_one_printable_line(error, line):
    code = f"from gpt_scratch.errors import UserError, run_script\ndef main(): raise {error}\nrun_script(main)"
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1


def test_deprecations_of_libraries_are_not_shown(recwarn):
    def main():
        for module in ("transformers.training_args", "torch", "transformers_plugin", "gpt_scratch.errors"):
            warnings.warn_explicit("old", FutureWarning, f"{module}.py", 1, module=module)
        warnings.warn_explicit("slow", UserWarning, "torch.py", 1, module="torch")

    run_script(main)
    assert [Path(w.filename).stem for w in recwarn] == ["transformers_plugin", "gpt_scratch.errors", "torch"]
