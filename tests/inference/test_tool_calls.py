"""Replies with calls of tools, taken apart; what is no call stays text."""

import json

import pytest

from gpt_scratch.inference.tool_calls import as_openai, parse_reply

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_text_reasoning_and_calls_are_taken_apart():
    found = parse_reply(f"<think>\nwhy\n</think>\n\nI look.\n{CALL}\n{CALL}")
    assert found["reasoning_content"] == "why" and found["content"] == "I look."
    assert [call["function"] for call in found["tool_calls"]] == [{"name": "weather", "arguments": {"city": "Rome"}}] * 2
    assert parse_reply("just text") == {"role": "assistant", "content": "just text"}


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot json\n</tool_call>",
        "<tool_call>[1]</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": 1, "arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": "x"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {}}',
        "text <think>later</think>",
    ],
)
def test_what_is_no_call_stays_text(text):
    assert parse_reply(text) == {"role": "assistant", "content": text}


@pytest.mark.fault("a reply of 200,000 opened calls, or one nested 100,000 deep", seconds=10, mebibytes=300)
def test_hostile_replies_take_no_time():
    assert "tool_calls" not in parse_reply("<tool_call>" * 200_000)
    assert "tool_calls" not in parse_reply("<tool_call>" + "[" * 100_000 + "</tool_call>")


def test_openais_form_has_arguments_as_text_and_ids():
    message = as_openai(parse_reply(f"{CALL}\n{CALL}"), "call_ab")
    assert message["content"] is None
    assert [call["id"] for call in message["tool_calls"]] == ["call_ab_0", "call_ab_1"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}
    assert as_openai(parse_reply("hi")) == {"role": "assistant", "content": "hi"}
