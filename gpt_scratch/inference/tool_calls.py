"""What a model of the chatml style wrote, taken apart: reasoning, text, and calls of tools in OpenAI's form.

The other way round is the chat template (`data/instruction.py`), which writes these as Qwen 2.5 and 3 do:

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
from typing import Any

OPEN, CLOSE = "<tool_call>", "</tool_call>"
THINKING = re.compile(r"\A<think>\n?(.*?)\n?</think>\n{0,2}", re.DOTALL)


def parse_reply(text: str) -> dict[str, Any]:
    """A message of the role assistant: `content`, and where the reply has them `reasoning_content` and `tool_calls`.

    A call that is no JSON object with a name and arguments stays in the text, as the model wrote it. Arguments are an object, as chat
    templates take them; OpenAI's form has them as a text, see [`as_openai`].

    >>> parse_reply('<tool_call>\\n{"name": "now", "arguments": {}}\\n</tool_call>')["tool_calls"]
    [{'type': 'function', 'function': {'name': 'now', 'arguments': {}}}]
    """
    message: dict[str, Any] = {"role": "assistant"}
    if found := THINKING.match(text):
        message["reasoning_content"], text = found[1], text[found.end() :]
    calls: list[dict[str, Any]] = []
    kept, place = [], 0
    # Not by an expression: it would look for the end of each call that is opened, as often as one is.
    while (start := text.find(OPEN, place)) >= 0 and (end := text.find(CLOSE, start)) >= 0:
        call = _call(text[start + len(OPEN) : end])
        if call is None:
            kept.append(text[place : end + len(CLOSE)])
        else:
            kept.append(text[place:start].removesuffix("\n"))  # the template's line break before a call
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


def as_openai(message: dict[str, Any], identifier: str = "call") -> dict[str, Any]:
    """The message as the OpenAI API answers it: arguments as a text of JSON, an id for each call, content null where there is none.

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
