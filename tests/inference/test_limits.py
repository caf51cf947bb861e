"""What a request to the server may hold: tools, calls and their results. The other fields: test_serving.py."""

import json

import pytest

from gpt_scratch.inference.limits import CHAT, Limits, RequestReader
from gpt_scratch.inference.refusal import Refusal

TOOL = {"type": "function", "function": {"name": "weather", "description": "now", "parameters": {"type": "object"}}}

ASKED = {"role": "user", "content": "Rome?"}

CALLED = {
    "role": "assistant",
    "tool_calls": [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}],
}

RESULT = {"role": "tool", "content": "sunny", "tool_call_id": "a"}


def read(**fields):
    pytest.importorskip("pydantic")
    return RequestReader(Limits(), "m").read(CHAT, json.dumps({"model": "m", "messages": [ASKED], **fields}).encode())[0]


def test_a_request_with_tools_calls_and_results_is_read():
    body = read(tools=[TOOL], messages=[ASKED, CALLED, RESULT])
    assert body["tools"] == [TOOL] and body["messages"][2] == RESULT
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome"}


def call(**function):
    return {
        "role": "assistant",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"} | function}],
    }


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [TOOL] * 65}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "code", "function": {"name": "a"}}]}, "tools.0.type"),
        ({"tools": [{**TOOL, "code": "x"}]}, "tools.0.code"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"messages": [call(arguments="[" * 9999)]}, "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [call(arguments="[1]")]}, "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [call(arguments='{"a": 1e999}')]}, "messages.0.tool_calls.0.function.arguments"),
        ({"messages": [call(name="")]}, "messages.0.tool_calls.0.function.name"),
        ({"messages": [{**CALLED, "role": "user"}]}, "messages.0.tool_calls"),
        ({"messages": [{**CALLED, "content": "I look."}]}, "messages.0.content"),
        ({"messages": [{"role": "assistant"}]}, "messages.0.content"),
        ({"messages": [{**ASKED, "tool_call_id": "a"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
    ],
)
@pytest.mark.fault("tools, calls and results in a request that are out of bounds or of another form", seconds=2, mebibytes=300)
def test_tools_of_another_form_are_refused_by_name(fields, name):
    with pytest.raises(Refusal) as found:
        read(**fields)
    assert name in str(vars(found.value)), vars(found.value)
