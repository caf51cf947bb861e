"""Chat templates are programs by whoever published a model: rendered in transformers' sandbox, and here within a time.

The sandbox keeps a template from files and attributes and a range from being long, but nested loops would still run for years.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerBase

from .errors import UserError

SECONDS = 10.0  # a template takes a millisecond


class _OutOfTime(BaseException):  # so that no `except Exception` on the way takes it for its own
    pass


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list, **settings: Any) -> Any:
    """`tokenizer.apply_chat_template(messages, **settings)`, which is given up after `SECONDS`.

    Raises:
        UserError: the template takes longer, or cannot be rendered.
    """
    from jinja2 import TemplateError

    try:
        with _given_up_after(SECONDS):
            return tokenizer.apply_chat_template(messages, **settings)
    except _OutOfTime:
        raise UserError(f"the tokenizer's chat template was not done after {SECONDS:g} seconds: it loops") from None
    except (TemplateError, OverflowError, MemoryError, RecursionError) as error:
        raise UserError(f"the tokenizer's chat template cannot be rendered: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _given_up_after(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTime` in this thread, whichever it is, between two of its bytecodes (signals reach the main thread alone)."""
    thread, lock, done = ctypes.c_ulong(threading.get_ident()), threading.Lock(), False

    def interrupt() -> None:
        with lock:
            if not done:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_OutOfTime))

    timer = threading.Timer(seconds, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:  # from here on nothing is raised any more
            done = True
