"""Errors that the user can mend, and how a script ends on one: a single line and a non-zero exit status."""

import errno
import os
import sys
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where (file, row, key, value) and what to do."""


PREEMPTED_STATUS = 143  # 128 + SIGTERM, what a shell reports of a program that SIGTERM ends: schedulers take it as "start again"
# Nobody's bug: a file system that is full, read-only or forbidden.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
INTERRUPTED_STATUS = 130  # 128 + SIGINT, likewise of Ctrl-C


class Preempted(Exception):
    """Training was stopped from outside (SIGTERM, Ctrl-C) and everything is saved. The message is one line: where, and how to go on."""

    def __init__(self, message: str, status: int = PREEMPTED_STATUS):
        super().__init__(message)
        self.status = status


def run_script(main: Callable[[], Result]) -> Result:
    """Run a script's main function; a [`UserError`] prints as one line on standard error and exits with status 2.

    [`Preempted`] prints its line on standard output and exits with status 143, or 130 after Ctrl-C. A full or read-only file system is one
    line and status 2, too; a bug keeps its traceback. A reader of a pipe that goes away (`... | head`) ends the script quietly, with
    status 1.
    """
    try:
        return main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Preempted as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"error: {error.strerror}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(2)
