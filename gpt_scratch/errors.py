"""Errors that the user can fix, and how a script ends on one: a single line and a non-zero exit status."""

import difflib
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


class UserError(ValueError):
    """Invalid input. The message is one line: what is wrong, where (file, row, key, value) and what to do."""


# Messages for exceptions that Python raises without one.
DEFAULT_MESSAGES = {
    MemoryError: "out of memory",
    RecursionError: "nested too deeply",
    EOFError: "unexpected end of file",
    TimeoutError: "timed out",
}
# Control characters except tab and newline, which a terminal would interpret; marks that change the text direction; lone surrogates,
# which cannot be printed. Joiners and wide spaces are kept, since scripts and emoji need them.
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str) -> str:
    r"""Make untrusted text safe to print in a terminal: control characters are replaced by Python escapes.

    >>> printable("a\x1b]0;title\x07b")
    'a\\x1b]0;title\\x07b'
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def one_line(error: object, length: int = 300) -> str:
    r"""The message of an error, or any untrusted text, on one line: printable, without colour codes, at most `length` characters.

    An error without a message gets a default one.

    >>> one_line(MemoryError()), one_line(ValueError("a\n  b"))
    ('out of memory', 'a b')
    """
    text = " ".join(printable(_COLOURS.sub("", str(error))).split())
    if not text and isinstance(error, BaseException):
        text = next((words for kind, words in DEFAULT_MESSAGES.items() if isinstance(error, kind)), type(error).__name__)
    return text[:length]


def check_unicode(text: str) -> None:
    """Refuse lone surrogates, which Python uses for argument bytes that are not UTF-8: no tokenizer can encode them.

    Raises:
        UserError: names the position.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode at character {error.start}: {text[error.start]!r}") from error


def unknown_name(name: str, known: Sequence[str], kind: str) -> str:
    """The message for an unknown name, with the closest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown {kind} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "; --help lists the flags")


def innermost(error: BaseException) -> BaseException:
    """The original cause of an error that a library has wrapped in its own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


PREEMPTED_STATUS = 143  # 128 + SIGTERM, the status of a program ended by SIGTERM; schedulers restart such jobs
# Not a bug: the file system is full, read-only, or access is denied.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
INTERRUPTED_STATUS = 130  # 128 + SIGINT, the status after Ctrl-C


class Preempted(Exception):
    """Training was stopped by a signal (SIGTERM, Ctrl-C) and everything is saved. The message is one line: where, and how to resume."""

    def __init__(self, message: str, status: int = PREEMPTED_STATUS):
        super().__init__(message)
        self.status = status


# Deprecations of these are not shown by the scripts: users cannot act on a library's use of another, or of itself.
LIBRARIES = r"(accelerate|datasets|huggingface_hub|peft|pyarrow|tokenizers|torch|transformers|trl)(\.|$)"


def run_script(main: Callable[[], Result]) -> Result:
    """Run a script's main function; a [`UserError`] prints as one line on standard error and exits with status 2.

    [`Preempted`] prints its line on standard output and exits with status 143, or 130 after Ctrl-C. A full or read-only file system and
    running out of memory also end in one line and status 2; a bug keeps its traceback. If the reader of a pipe has exited (`... | head`),
    the script ends silently with status 1.
    """
    transformers_logging: Any = sys.modules.get("transformers.utils.logging")
    if transformers_logging is not None:
        transformers_logging.disable_progress_bar()  # of loading and saving tensors; progress.py reports long-running work
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:  # -W or PYTHONWARNINGS
                for category in (FutureWarning, DeprecationWarning):
                    warnings.filterwarnings("ignore", category=category, module=LIBRARIES)
            return main()
    except UserError as error:
        print(f"error: {printable(str(error)).replace(chr(10), ' ')}", file=sys.stderr)
        sys.exit(2)
    except MemoryError as error:
        print(f"error: {one_line(error)}: free some memory, or give smaller files or sizes", file=sys.stderr)
        sys.exit(2)
    except Preempted as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except BrokenPipeError:
        # Python flushes standard output again at exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        # A Rust panic is not an `Exception`. The usual cause is a regular expression in tokenizer.json that does not terminate.
        print(f"error: a library failed, probably on a regular expression in tokenizer.json: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
