"""Records in every common form: each key that carries content is used, or refused by name."""

import json

import pytest

from gpt_scratch.data.instruction import (
    read_conversations,
    to_messages,
)
from gpt_scratch.data.opening import Reading
from gpt_scratch.errors import UserError

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}

SYSTEM = {"role": "system", "content": "Be brief."}

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}


def read(path, *rows, **settings):
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_conversations(str(path), **settings)


def messages_of(path, row) -> list[dict]:
    return to_messages(read(path, row).records[0], "phi3")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Hi", "output": "Hello", "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "system": "", "history": [], "input": None}, [USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]], "system": "Be brief."}, [SYSTEM, USER, REPLY, USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "history": '[["Hi", "Hello"]]'}, [USER, REPLY, USER, REPLY]),
        ({"Instruction": "Hi", " Output ": "Hello"}, [USER, REPLY]),
        ({"prompt": "Hi", "completion": "Hello", "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"prompt": [SYSTEM, USER], "completion": [REPLY]}, [SYSTEM, USER, REPLY]),
        ({"messages": [USER, REPLY], "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"messages": [USER, REPLY, SYSTEM, USER, REPLY]}, [USER, REPLY, SYSTEM, USER, REPLY]),
        ({"messages": json.dumps([USER, REPLY])}, [USER, REPLY]),
        ({"messages": [{**USER, "name": None, "tool_calls": None}, {**REPLY, "tool_calls": []}], "tools": None}, [USER, REPLY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, REPLY]}, [USER, REPLY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}, REPLY]}, [USER, REPLY]),
        ({"messages": [{"role": "developer", "content": "Be brief."}, USER, REPLY]}, [SYSTEM, USER, REPLY]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [USER, REPLY]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]}, [SYSTEM, USER, REPLY]),
        ({"conversations": [USER, REPLY], "system": "Be brief.", "id": 7}, [SYSTEM, USER, REPLY]),
        ({"conversations": json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])}, [USER, REPLY]),
        ({"conversations": [{"from": "human", "value": "Hi", "weight": None}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'}, {"from": "observation", "value": "sunny"}, {"from": "gpt", "value": "Hello"}]},
         [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}, REPLY]),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]}, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, REPLY]},
         [USER, {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]}, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, REPLY]),
        ({"messages": [USER, {**REPLY, "reasoning": "well"}]}, [USER, {**REPLY, "reasoning_content": "well"}]),
        ({"messages": [USER, {**REPLY, "weight": 0}, USER, {**REPLY, "weight": 1}]}, [USER, {**REPLY, "weight": 0}, USER, REPLY]),
    ],
)  # fmt: skip
def test_every_form_becomes_messages(tmp_path, row, expected):
    assert messages_of(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Hi", "output": "Hello", "note": "x"}, "unknown key 'note', which would be lost: rename, or pass --ignore_keys note"),
        ({"instruction": "Hi", "output": "Hello", "a": 1, "b": 2}, "unknown keys 'a', 'b'.*--ignore_keys a b"),
        ({"instruction": "Hi", "output": "Hello", "chosen": "x", "rejected": "y"}, "keys 'chosen', 'rejected'"),
        ({"instruction": "Hi", "output": "Hello", "weight": 0.5}, "'weight' is 0.5"),
        ({"instruction": "Hi", "output": "Hello", "history": "Hi"}, "'history' is a string that is not valid JSON"),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi"]]}, r"'history' must be a list of \[question, answer\]"),
        ({"instruction": "Hi", "output": "Hello", "system": 3}, "'system' is int"),
        ({"messages": [SYSTEM, USER, REPLY], "system": "Be long."}, "the record has both 'system' and a first message"),
        ({"messages": [USER, REPLY], "conversations": [USER, REPLY]}, "both 'messages' and 'conversations'"),
        ({"messages": [USER, {**REPLY, "mood": "glad"}]}, "messages: message 1: unknown key 'mood'"),
        ({"messages": [USER, {**REPLY, "function_call": "x"}]}, "message 1: unknown key 'function_call'"),
        ({"messages": [USER, {**REPLY, "weight": 0.5}]}, "message 1 has the weight 0.5"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, REPLY]}, "message 0 has a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": "x"}]}, REPLY]}, "message 0 has a part"),
        ({"messages": [{"role": "user", "content": None}, REPLY]}, "message 0 needs the strings role and content"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": 3}]}]}, "a tool call needs a function with a name"),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "the arguments of 'f' are not valid JSON"),
        ({"messages": "Hi"}, "'messages' is a string that is not valid JSON"),
        ({"messages": []}, "must be a non-empty list of messages"),
        ({"messages": [USER, REPLY], "tools": [3]}, "'tools' must be a list of objects"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "martian", "value": "x"}]}, "the role 'martian'"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 0]}, "'attention_mask' masks tokens"),
        ({"input_ids": [1, 2], "labels": [1, 2], "position_ids": [0, 0]}, "key 'position_ids'"),
        ({"prompt": "Ho", "completion": "Bye", "messages": [USER, REPLY]}, "unknown keys 'prompt', 'completion'"),
    ],
)  # fmt: skip
def test_unknown_content_is_refused_by_name(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, row)
    assert "rows.jsonl row 0: " in str(caught.value) and "\n" not in str(caught.value)


def test_all_faults_of_a_file_in_one_report(tmp_path):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": 3, "output": "b"},
        {"body": "a"},
        {"instruction": "a", "output": None},
    ]
    with pytest.raises(UserError) as caught:
        read(tmp_path, *rows)
    told = str(caught.value)
    assert (
        "row 1: 'instruction' is int, not text" in told
        and "row 2: the keys are body" in told
        and "row 3: 'output' is missing" in told
    )


def test_metadata_is_kept_reported_and_not_trained_on(tmp_path, capsys):
    row = {"id": 3, "category": "greeting", "instruction": "Hi", "output": "Hello", "text": "### Hi\n### Hello", "note": "x"}
    data = read(tmp_path, row, ignore_keys=["note"])
    assert data.records == [
        {"id": 3, "category": "greeting", "instruction": "Hi", "output": "Hello", "text": "### Hi\n### Hello"}
    ]
    assert "unused keys: 'id', 'category', 'text', 'note'" in capsys.readouterr().err
    kept = read(tmp_path, {"instruction": "Hi", "output": "Hello", "answer": "x"}, kept_keys=["answer"])
    assert kept.records[0]["answer"] == "x"


def test_empty_rows_of_a_spreadsheet_are_skipped_if_requested(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output\nHi;Hello\n;\n\n;\n", encoding="utf-8")
    assert len(read_conversations(str(path), reading=Reading(skip_empty=True))) == 1
    assert "2 empty rows were skipped" in capsys.readouterr().err
