"""Parses replies of the chatml style into reasoning, text and OpenAI tool calls.

The inverse is the chat template (`data/instruction.py`), which uses the format of Qwen 2.5 and 3:

    <think>
    why
    </think>

    text
    <tool_call>
    {"name": "weather", "arguments": {"city": "Rome"}}
    </tool_call>
"""

import json
import re
from collections.abc import Sequence
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINKING = re.compile(r"\A<think>\n?(.*?)\n?</think>\n{0,2}", re.DOTALL)


def parse_reply(text: str) -> dict[str, Any]:
    """Parse a reply into an assistant message: `content`, and optionally `reasoning_content` and `tool_calls`.

    A call that is not a JSON object with a name and arguments remains text. Arguments are objects, as chat templates expect; in OpenAI's
    format they are strings, see [`as_openai`].

    >>> parse_reply('<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>')["tool_calls"]
    [{'type': 'function', 'function': {'name': 'now', 'arguments': {}}}]
    """
    message: dict[str, Any] = {"role": "assistant"}
    if found := THINKING.match(text):
        message["reasoning_content"], text = found[1], text[found.end() :]
    calls: list[dict[str, Any]] = []
    kept, place = [], 0
    # No regular expression: it would search for the end of each opened call, which is quadratic.
    while (start := text.find(OPEN, place)) >= 0 and (end := text.find(CLOSE, start)) >= 0:
        call = _call(text[start + len(OPEN) : end])
        if call is None:
            kept.append(text[place : end + len(CLOSE)])
        else:
            kept.append(text[place:start].removesuffix("\n"))  # the line break of the template before a call
            calls.append(call)
        place = end + len(CLOSE)
    message["content"] = "".join([*kept, text[place:]])
    if calls:
        message["tool_calls"] = calls
    return message


def _call(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {"name", "arguments"}:
        return None
    if not isinstance(found["name"], str) or not isinstance(found["arguments"], dict):
        return None
    return {"type": "function", "function": {"name": found["name"], "arguments": found["arguments"]}}


class ReplyParser:
    """Streaming version of [`parse_reply`], with the interface of parsers in transformers' server.

    Args:
        end: the end-of-text token, which the server does not remove from the last piece.
    """

    def __init__(self, end: str):
        self.end, self.buffer, self.inside, self.begun, self.line = end, "", False, False, ""
        self.initial_events: list[dict[str, Any]] = []

    def feed(self, text: str) -> list[dict[str, Any]]:
        """The parts that are complete so far: content, reasoning, calls."""
        self.buffer += text
        return self._drain(last=False)

    def finalize(self) -> tuple[None, list[dict[str, Any]]]:
        """The remaining parts; an unfinished call is text."""
        self.buffer = self.buffer.removesuffix(self.end) if self.end else self.buffer
        return None, self._drain(last=True)

    def _drain(self, last: bool) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []

        def emit(text: str, field: str = "content") -> None:
            if text:
                events.append({"type": "region_chunk", "field": field, "text": text})

        if not self.begun:
            if not last and "<think>".startswith(self.buffer[:7]) and "</think>" not in self.buffer:
                return events
            found = THINKING.match(self.buffer)
            if found and not last and found.end() == len(self.buffer) and not found[0].endswith("\n\n"):
                return events  # line breaks may follow
            self.begun = True
            if found:
                emit(found[1], "reasoning_content")
                self.buffer = self.buffer[found.end() :]
        while True:
            if not self.inside:
                start = self.buffer.find(OPEN)
                if start < 0:
                    held = 0 if last else _beginning(self.buffer, ("\n" + OPEN, OPEN, self.end))
                    emit(self.buffer[: len(self.buffer) - held])
                    self.buffer = self.buffer[len(self.buffer) - held :]
                    return events
                self.line = "\n" if self.buffer[:start].endswith("\n") else ""
                emit(self.buffer[:start].removesuffix("\n"))
                self.buffer, self.inside = self.buffer[start + len(OPEN) :], True
            end = self.buffer.find(CLOSE)
            if end < 0:
                if last:
                    emit(self.line + OPEN + self.buffer)
                    self.buffer = ""
                return events
            call = _call(self.buffer[:end])
            if call is None:
                emit(self.line + OPEN + self.buffer[:end] + CLOSE)
            else:
                events.append({"type": "region_close", "field": "tool_calls", "value": call})
            self.buffer, self.inside = self.buffer[end + len(CLOSE) :], False


def _beginning(text: str, marks: Sequence[str]) -> int:
    """Length of the longest suffix of `text` that is a prefix of one of the marks."""
    return max((n for mark in marks for n in range(1, len(mark) + 1) if text.endswith(mark[:n])), default=0)


def as_openai(message: dict[str, Any], identifier: str = "call") -> dict[str, Any]:
    """Convert a message to the OpenAI API's format: arguments as JSON strings, an id for each call, null for empty content.

    >>> call = {"type": "function", "function": {"name": "now", "arguments": {}}}
    >>> as_openai({"role": "assistant", "content": "", "tool_calls": [call]})["tool_calls"][0]
    {'id': 'call_0', 'type': 'function', 'function': {'name': 'now', 'arguments': '{}'}}
    """
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            "id": f"{identifier}_{number}",
            "type": "function",
            "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False)},
        }
        for number, call in enumerate(message["tool_calls"])
    ]
    return {**message, "content": message["content"] or None, "tool_calls": calls}
