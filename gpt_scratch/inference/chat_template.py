"""Chat templates are programs written by a model's publisher: rendered in a process of their own, within limits of time and memory.

transformers' sandbox keeps a template from files and attributes; but one expression, `{{ (7**99999999) % 3 }}`, keeps the interpreter
busy for minutes, and nothing in its process can end that: it is one operation, which no thread or signal interrupts. Another process can
be killed, and its memory limited. transformers' own functions run there (`template_process.py`), so what comes out is what
`apply_chat_template` gives anywhere else; the template is not even compiled here, since compiling evaluates its constants.
"""

import atexit
import contextlib
import json
import marshal
import math
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import wraps
from inspect import isfunction, ismethod
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase, processing_utils, tokenization_utils_base
from transformers.utils import get_json_schema

from ..errors import UserError, one_line

SECONDS = 10.0  # of one rendering, which takes a fraction of a millisecond
MEBIBYTES = 512  # of memory, beside what the process has when it starts; not limited on Windows
MAX_CHARACTERS = 16 << 20  # of what a template writes
# The functions of transformers that compile or run a template.
TEMPLATE_FUNCTIONS = ("render_jinja_template", "_get_template_literal_text", "_get_template_variables")
REFUSED = "the tokenizer's chat template cannot be rendered"


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list, **settings: Any) -> Any:
    """`tokenizer.apply_chat_template(messages, **settings)`, with the template rendered in a process of its own.

    Raises:
        UserError: the template fails, or takes more than `SECONDS`, `MEBIBYTES` or `MAX_CHARACTERS`.
    """
    bound_chat_templates()
    return tokenizer.apply_chat_template(messages, **settings)


def bound_chat_templates() -> None:
    """Let every `apply_chat_template` in this process render within the limits: for libraries that call it themselves.

    A failure raises [`UserError`] there. Calling it again changes nothing.
    """
    for module in (tokenization_utils_base, processing_utils):
        for name in TEMPLATE_FUNCTIONS:
            function = getattr(module, name, None)
            if function is not None and not hasattr(function, "bounded"):
                setattr(module, name, _bounded(name, function))


def _bounded(name: str, function: Callable) -> Callable:
    @wraps(function)
    def bounded(*args, **kwargs):
        if callable(kwargs.get("tools")) or any(map(_is_function, kwargs.get("tools") or [])):
            kwargs["tools"] = [get_json_schema(tool) if _is_function(tool) else tool for tool in kwargs["tools"]]
        result = RENDERER.call(name, args, kwargs)
        if name == "render_jinja_template":
            chats, spans = result
            for chat in chats:
                _check_unicode(chat)
            return chats, [[tuple(span) for span in chat] for chat in spans]
        return frozenset(result) if name == "_get_template_variables" else result

    bounded.bounded = True  # type: ignore[attr-defined]
    return bounded


def _is_function(tool: Any) -> bool:
    return isfunction(tool) or ismethod(tool)


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{REFUSED}: what it writes is not valid Unicode at character {error.start}") from error


class Renderer:
    """The process in which templates are rendered: started when it is needed, kept between renderings, killed when one exceeds a limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a fork has its parent's pipes, but needs a process of its own
        self._deadline = math.inf  # of the current rendering, by the monotonic clock

    def call(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The result of a function of transformers' `chat_template_utils`.

        Args:
            args, kwargs: strings, numbers, None, and lists, tuples and dictionaries of these.

        Raises:
            UserError: the function fails or exceeds a limit.
        """
        try:
            request = marshal.dumps((name, args, kwargs, SECONDS, MEBIBYTES, MAX_CHARACTERS))
        except ValueError as error:
            raise UserError(
                f"{REFUSED}: messages, tools and documents must be strings, numbers, lists and dictionaries"
            ) from error
        with self._lock:
            answer = self._exchange(request)
        if "error" in answer:
            raise UserError(f"{REFUSED}: {one_line(answer['error'])}")
        return answer["result"]

    def _exchange(self, request: bytes) -> dict[str, Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        self._deadline = deadline = time.monotonic() + SECONDS
        try:
            process.stdin.write(struct.pack("<Q", len(request)) + request)
            process.stdin.flush()
            header = process.stdout.read(8)
            answer = process.stdout.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""
            return json.loads(answer)
        except (OSError, ValueError):  # it was killed, or ended by itself
            self.stop()
            late = time.monotonic() >= deadline
            return {"error": f"it did not finish within {SECONDS:g} seconds" if late else "it ended the process that rendered it"}
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for the next one's
            self.stop()
            raise
        finally:
            self._deadline = math.inf

    def _watch(self, process: subprocess.Popen) -> None:
        """End a process at its deadline. One thread for all of its renderings: to start one takes longer than to render."""
        while process.poll() is None:
            if time.monotonic() >= self._deadline:
                process.kill()
            time.sleep(0.1)

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._owner == os.getpid() and self._process.returncode is None:
            return self._process
        # -P: the folder of the file, which holds modules of common names, must not come first where modules are looked for.
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
        # Threads of a numerical library would take address space, which is limited.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._owner = os.getpid()
        ready = self._process.stdout.read(1) if self._process.stdout else b""  # what it takes to start is not the template's time
        if ready != b"\n":
            self.stop()
            raise UserError(f"{REFUSED}: the process for it does not start; try: {' '.join(command)}")
        threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        return self._process

    def stop(self) -> None:
        """End the process; the next call starts another one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # what was not written yet
                    pipe.close()  # type: ignore[union-attr]


RENDERER = Renderer()
atexit.register(RENDERER.stop)
