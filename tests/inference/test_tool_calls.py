"""Replies with tool calls are parsed; what is not a call stays text."""

import json

import pytest

from gpt_scratch.inference.tool_calls import ReplyParser, as_openai, parse_reply

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def test_text_reasoning_and_calls_are_parsed():
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
def test_invalid_calls_stay_text(text):
    assert parse_reply(text) == {"role": "assistant", "content": text}


TEXTS = [
    "just text", f"I look.\n{CALL}", f"{CALL}\n{CALL}", f"<think>\nwhy\n</think>\n\nI look.\n{CALL}", "a\n<tool_call>\nno\n</tool_call>b",
    "a\n<tool_call>\nnever ended", "<think>never ended", "a <tool", "a\n", "", f"{CALL} and more", "<thinking aloud",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_a_streamed_reply_is_parsed_as_the_whole_reply(text, size):
    parser, whole = ReplyParser("<|endoftext|>"), text + "<|endoftext|>"
    events = [event for i in range(0, len(whole), size) for event in parser.feed(whole[i : i + size])] + parser.finalize()[1]
    found = {field: "".join(e["text"] for e in events if e["type"] == "region_chunk" and e["field"] == field)
             for field in ("content", "reasoning_content")}  # fmt: skip
    calls = [event["value"] for event in events if event["type"] == "region_close"]
    expected = parse_reply(text)
    assert found == {"content": expected["content"], "reasoning_content": expected.get("reasoning_content", "")}
    assert calls == expected.get("tool_calls", [])


def test_text_is_not_held_back_for_long():
    parser = ReplyParser("<|endoftext|>")
    assert "".join(event["text"] for event in parser.feed("It is warm today")) == "It is warm today"
    assert parser.feed(" <") == [{"type": "region_chunk", "field": "content", "text": " "}]


@pytest.mark.fault("a reply of 200,000 opened calls, or one nested 100,000 deep", seconds=10, mebibytes=300)
def test_hostile_replies_are_parsed_quickly():
    assert "tool_calls" not in parse_reply("<tool_call>" * 200_000)
    assert "tool_calls" not in parse_reply("<tool_call>" + "[" * 100_000 + "</tool_call>")


def test_openais_form_has_arguments_as_text_and_ids():
    message = as_openai(parse_reply(f"{CALL}\n{CALL}"), "call_ab")
    assert message["content"] is None
    assert [call["id"] for call in message["tool_calls"]] == ["call_ab_0", "call_ab_1"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {"city": "Rome"}
    assert as_openai(parse_reply("hi")) == {"role": "assistant", "content": "hi"}
