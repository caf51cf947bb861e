"""Renders chat templates, which are untrusted programs, in a separate process with limits on time and memory.

transformers' sandbox denies access to files and attributes, but a single expression such as `{{ (7**99999999) % 3 }}` blocks the
interpreter for minutes, and no thread or signal can interrupt it. A separate process can be killed, and its memory limited. It runs
transformers' own functions (`template_process.py`), so the result is that of `apply_chat_template`. Templates are not even compiled in this
process, since compiling evaluates constants.
"""

import atexit
import contextlib
import copy
import json
import marshal
import math
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import isfunction, ismethod
from pathlib import Path
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase, processing_utils, tokenization_utils_base
from transformers.utils import get_json_schema

from ..errors import UserError, one_line
from ..tokenization.special_tokens import encode_text, pattern_of, special_tokens

SECONDS = 10.0  # CPU time limit of one rendering, which usually takes a fraction of a millisecond
# Factor for the wall-clock limit: on a loaded machine, or while the process is suspended by Ctrl-Z, the clock runs without progress.
PATIENCE = 1 if sys.platform == "win32" else 6  # CPU time cannot be limited on Windows
MEBIBYTES = 512  # memory limit beyond the memory of the started process; not limited on Windows
MAX_CHARACTERS = 16 << 20  # maximum length of the rendered text
# The functions of transformers that compile or render a template.
TEMPLATE_FUNCTIONS = ("render_jinja_template", "_get_template_literal_text", "_get_template_variables")
REFUSED = "the tokenizer's chat template cannot be rendered"
GENERATION = re.compile(r"\{%-?\s*generation\b")
# Strings that open a turn in formats without a special token for it, so that message text could be mistaken for a turn.
TURN_MARKS = {
    "### Response:": ("\n\n### Instruction:\n", "\n\n### Response:\n", "\n\n### System:\n"),
    "<|assistant|>:": ("<|assistant|>:\n", "<|user|>\n", "<|system|>\n", "<|tool|>\n"),
}


def apply_chat_template(tokenizer: PreTrainedTokenizerBase, messages: list, **settings: Any) -> Any:
    """`tokenizer.apply_chat_template(messages, **settings)`, with the template rendered in a separate process.

    Raises:
        UserError: the template fails, or takes more than `SECONDS`, `MEBIBYTES` or `MAX_CHARACTERS`.
    """
    bound_chat_templates()
    return tokenizer.apply_chat_template(messages, **settings)


@dataclass
class EncodedChat:
    """A conversation as token ids.

    Attributes:
        ids: token ids.
        replies: for each token, the index of its reply (0 is the first), or -1; empty if the template has no `{% generation %}` markers,
            or for a prompt.
    """

    ids: list[int]
    replies: list[int]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Mapping],
    tools: list | None = None,
    add_generation_prompt: bool = False,
) -> EncodedChat:
    """Encode a conversation with the chat template; special tokens inside messages are encoded as characters.

    Without special tokens in messages, the ids are those of `tokenizer.apply_chat_template`. Otherwise each of them is replaced by a
    private-use character in the template's input and encoded as plain text in its output, so that a message can neither end the text nor
    open a turn.

    Raises:
        UserError: the template fails, or a message contains a string that opens a turn in a format without a special token for it.
    """
    bound_chat_templates()
    template = tokenizer.get_chat_template(None, tools)
    tokens = special_tokens(tokenizer, template)
    for number, message in enumerate(messages):
        if add_generation_prompt and message.get("role") == "assistant":
            continue  # the model's own messages are not restricted
        if mark := turn_mark(template, tokens, str(message.get("content") or "")):
            raise UserError(
                f"message {number} contains {mark!r}, which opens a turn in this prompt style and is not a special token: reword it"
            )
    given: dict[str, Any] = {"messages": list(messages), "tools": tools}
    written = "".join(_strings(given))
    placeholders: dict[str, str] = {}
    if any(token in written for token in tokens):
        placeholders = dict(zip(tokens, _unused_characters(written, len(tokens))))
        given = _replaced(given, pattern_of(tokens), placeholders)
    marked = GENERATION.search(template) is not None and not add_generation_prompt
    [text], found = tokenization_utils_base.render_jinja_template(
        conversations=[[{key: value for key, value in message.items() if value is not None} for message in given["messages"]]],
        tools=given["tools"],
        documents=None,
        chat_template=template,
        return_assistant_tokens_mask=marked,
        add_generation_prompt=add_generation_prompt,
        **tokenizer.special_tokens_map,
    )
    if placeholders:
        ids, offsets = _encode_around(tokenizer, text, tokens, {character: token for token, character in placeholders.items()})
    else:
        settings = {"add_special_tokens": False, "split_special_tokens": False, "return_offsets_mapping": marked}
        encoded = encode_text(tokenizer, text, **settings)
        ids, offsets = encoded["input_ids"], encoded.get("offset_mapping", [])
    if not marked:
        return EncodedChat(ids, [])
    replies = [
        next((i for i, (start, end) in enumerate(found[0]) if first < end and last > start), -1) for first, last in offsets
    ]
    return EncodedChat(ids, replies)


def keep_content_text(tokenizer: PreTrainedTokenizerBase) -> None:
    """Patch `tokenizer.apply_chat_template(..., tokenize=True)` to encode special tokens inside messages as characters, like
    [`encode_chat`], for libraries that call it."""
    tokenizer.apply_chat_template = _ContentIsText(tokenizer)  # type: ignore[method-assign]


class _ContentIsText:
    """Replacement for a tokenizer's `apply_chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = copy.copy(tokenizer)  # keeps the original method

    def __call__(self, conversation: list, tools: list | None = None, chat_template: str | None = None, **settings: Any) -> Any:
        batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        conversations = conversation if batch else [conversation]
        template = self.tokenizer.get_chat_template(chat_template, tools)
        tokens = special_tokens(self.tokenizer, template)
        plain = not any(token in text for text in _strings([conversations, tools]) for token in tokens)
        if plain or not settings.get("tokenize", True):
            return self.tokenizer.apply_chat_template(conversation, tools=tools, chat_template=chat_template, **settings)
        known = {"tokenize", "return_dict", "add_generation_prompt"}
        if refused := [name for name, value in settings.items() if name not in known and value]:
            raise UserError(
                f"a message contains a special token, which cannot be encoded as text with the setting {refused[0]}: reword it"
            )
        tokenizer = copy.copy(self.tokenizer)
        tokenizer.chat_template = template
        prompt = settings.get("add_generation_prompt", False)
        ids = [encode_chat(tokenizer, one, tools, add_generation_prompt=prompt).ids for one in conversations]
        rows = {"input_ids": ids if batch else ids[0]}
        rows["attention_mask"] = [[1] * len(row) for row in ids] if batch else [1] * len(ids[0])
        return BatchEncoding(rows) if settings.get("return_dict", True) else rows["input_ids"]


def turn_mark(template: str, tokens: Sequence[str], content: str) -> str | None:
    """The string in `content` that would open a turn, in a format that opens turns with plain text; `None` if there is none."""
    for style, marks in TURN_MARKS.items():
        if style in template:
            return next((mark for mark in marks if mark in content + "\n" and not any(token in mark for token in tokens)), None)
    return None


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else []
    return [string for part in parts for string in _strings(part)]


def _unused_characters(text: str, count: int) -> list[str]:
    """Private-use characters that do not occur in `text`."""
    found = [character for code in range(0xF0000, 0xF0000 + count + len(text)) if (character := chr(code)) not in text]
    return found[:count]


def _replaced(value: Any, pattern: re.Pattern[str], placeholders: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return pattern.sub(lambda found: placeholders[found[0]], value)
    if isinstance(value, Mapping):
        return {key: part if key == "role" else _replaced(part, pattern, placeholders) for key, part in value.items()}
    return [_replaced(part, pattern, placeholders) for part in value] if isinstance(value, (list, tuple)) else value


def _encode_around(
    tokenizer: PreTrainedTokenizerBase, text: str, tokens: Sequence[str], token_of: Mapping[str, str]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Encode a rendered text: special tokens of the template as tokens, replaced special tokens of messages as plain text.

    Returns:
        The ids, and for each the start and end of its characters in `text`.
    """
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    special = set(special_tokens(tokenizer))

    def add(start: int, end: int) -> None:
        """Encode the plain text from `start` to `end`; added tokens that are not special are split, to be encoded as characters."""
        part = ""
        places: list[int] = []

        def flush() -> None:
            nonlocal part, places
            if part:
                encoded = encode_text(tokenizer, part, add_special_tokens=False, return_offsets_mapping=True)
                ids.extend(encoded["input_ids"])
                offsets.extend(
                    (places[a], places[b - 1] + 1) if b > a else (places[min(a, len(places) - 1)],) * 2
                    for a, b in encoded["offset_mapping"]
                )
            part, places = "", []

        for place in range(start, end):
            written = token_of.get(text[place], text[place])
            for number, character in enumerate(written):
                if number == 1 and written not in special:
                    flush()
                part += character
                places.append(place)
        flush()

    start = 0
    for found in pattern_of(tuple(tokens)).finditer(text):
        add(start, found.start())
        ids.append(tokenizer.convert_tokens_to_ids(found[0]))
        offsets.append(found.span())
        start = found.end()
    add(start, len(text))
    return ids, offsets


_OMITTED: dict[tuple, list[str]] = {}


def omitted_parts(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping], tools: list | None = None) -> list[str]:
    """The parts of a conversation that the chat template silently omits: names of messages and their keys.

    Found by rendering a conversation of the same structure with a unique word for each part, once per structure.
    """
    template = tokenizer.get_chat_template(None, tools)
    shape = tuple(
        (
            message["role"],
            bool(str(message.get("content") or "").strip()),
            len(message.get("tool_calls") or []),
            bool(message.get("reasoning_content")),
            bool(message.get("name")) and message["role"] != "tool",  # the name of a tool is part of the call
        )
        for message in messages
    )
    key = (template, bool(tools), shape)
    if key not in _OMITTED:
        _OMITTED[key] = _probe(tokenizer, shape, bool(tools))
    return _OMITTED[key]


def _probe(tokenizer: PreTrainedTokenizerBase, shape: tuple, with_tools: bool) -> list[str]:
    messages, expected = [], {}
    for i, (role, content, calls, reasoning, name) in enumerate(shape):
        message: dict[str, Any] = {"role": role, "content": f"zq{i}content" if content else ""}
        if content:
            expected[f"zq{i}content"] = f"message {i} ({role})"
        if reasoning:
            message["reasoning_content"] = f"zq{i}reasoning"
            expected[f"zq{i}reasoning"] = f"reasoning_content of message {i}"
        if name:
            message["name"] = f"zq{i}name"
            expected[f"zq{i}name"] = f"name of message {i}"
        if calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": f"zq{i}call{j}", "arguments": {"key": f"zq{i}argument{j}"}}}
                for j in range(calls)
            ]
            for j in range(calls):
                expected |= dict.fromkeys((f"zq{i}call{j}", f"zq{i}argument{j}"), f"tool_calls of message {i}")
        messages.append(message)
    tools = None
    if with_tools:
        parameters = {"type": "object", "properties": {}}
        tools = [{"type": "function", "function": {"name": "zqtool", "description": "zqtool", "parameters": parameters}}]
        expected["zqtool"] = "tools"
    try:
        text = apply_chat_template(tokenizer, messages, tools=tools, tokenize=False)
    except UserError:  # the same error is raised for the conversation itself
        return []
    return list(dict.fromkeys(name for mark, name in expected.items() if mark not in text))


def bound_chat_templates() -> None:
    """Patch transformers so that every `apply_chat_template` in this process renders within the limits, also when called by libraries.

    Failures raise [`UserError`]. Calling it again has no effect.
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
        raise UserError(f"{REFUSED}: its output is not valid Unicode at character {error.start}") from error


class Renderer:
    """The process that renders templates: started on demand, reused, and killed if it exceeds a limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._owner = 0  # a fork inherits the pipes of its parent, but needs its own process
        self._deadline = math.inf  # of the current rendering, on the monotonic clock

    def call(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Call a function of transformers' `chat_template_utils`.

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
        self._deadline = deadline = time.monotonic() + PATIENCE * SECONDS
        try:
            process.stdin.write(struct.pack("<Q", len(request)) + request)
            process.stdin.flush()
            header = process.stdout.read(8)
            answer = process.stdout.read(struct.unpack("<Q", header)[0]) if len(header) == 8 else b""
            return json.loads(answer)
        except (OSError, ValueError):  # the process was killed or exited
            self.stop()
            late = time.monotonic() >= deadline or process.returncode == -getattr(signal, "SIGXCPU", 0)
            return {
                "error": f"it did not finish within {SECONDS:g} seconds" if late else "it crashed the process that rendered it"
            }
        except BaseException:  # Ctrl-C: a late response would be taken for that of the next request
            self.stop()
            raise
        finally:
            self._deadline = math.inf

    def _watch(self, process: subprocess.Popen) -> None:
        """Kill a process at its deadline. One thread for all renderings: starting a thread takes longer than rendering."""
        while process.poll() is None:
            if time.monotonic() >= self._deadline:
                process.kill()
            time.sleep(0.1)

    def _running(self) -> subprocess.Popen:
        if self._process is not None and self._owner == os.getpid() and self._process.returncode is None:
            return self._process
        # -P: do not add the folder of the file to the module search path; it contains modules with common names.
        command = [sys.executable, "-P", str(Path(__file__).with_name("template_process.py"))]
        # Threads of numerical libraries would use address space, which is limited.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self._owner = os.getpid()
        ready = self._process.stdout.read(1) if self._process.stdout else b""  # startup does not count towards the time limit
        if ready != b"\n":
            self.stop()
            raise UserError(f"{REFUSED}: its process does not start; try: {' '.join(command)}")
        threading.Thread(target=self._watch, args=(self._process,), daemon=True).start()
        return self._process

    def stop(self) -> None:
        """Stop the process; the next call starts a new one."""
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):  # unwritten data
                    pipe.close()  # type: ignore[union-attr]


RENDERER = Renderer()
atexit.register(RENDERER.stop)
