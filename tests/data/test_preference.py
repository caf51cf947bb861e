"""Preference pairs: the messages that TRL gets, pairs without a preference, and what is refused."""

import json

import pytest

from gpt_scratch.data.instruction import Conversations, set_prompt_style, split_conversations
from gpt_scratch.data.preference import preference_rows, prompt_of, read_preferences, refuse_omissions_in_pairs, replies_of
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


def new_tokenizer(style: str):
    tokenizer = train_byte_level_bpe(["Pairs of replies. " * 5], vocab_size=270)
    tokenizer.pad_token = tokenizer.eos_token
    set_prompt_style(tokenizer, style)
    return tokenizer


def test_pairs_become_messages_and_equal_replies_are_left_out():
    records = [
        {"instruction": "Add.", "input": "1 2", "output": "3", "chosen": "3", "rejected": "4"},
        {"prompt": "Greet.", "chosen": "Hi", "rejected": " Hi"},
        {"prompt": "Greet.", "chosen": "Hi", "rejected": "What?"},
    ]
    rows, equal = preference_rows(Conversations(records, ["a", "b", "c"]), "alpaca")
    assert equal == 1 and len(rows) == 2
    assert rows[0]["prompt"] == [{"role": "user", "content": "Add.\n\n### Input:\n1 2"}]
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "3"}]
    assert rows[1]["rejected"] == [{"role": "assistant", "content": "What?"}]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"instruction": "a", "chosen": "b"}], "row 0: 'rejected' is missing"),
        ([{"instruction": "a", "chosen": "b", "rejected": ""}], "row 0: 'rejected' is empty"),
        ([{"prompt": ["a"], "chosen": "b", "rejected": "c"}], "row 0: prompt: message 0 is str, not an object"),
        (
            [{"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": [{"role": "user", "content": "c"}]}],
            "'chosen' is of 'user', not a reply",
        ),
        (
            [{"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"}],
            "must both be strings, or both lists",
        ),
        (
            [
                {
                    "prompt": "a",
                    "chosen": [{"role": "assistant", "content": " "}],
                    "rejected": [{"role": "assistant", "content": "c"}],
                }
            ],
            "empty replies are not supported",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "tools": ["x"]}], "'tools' must be a list of objects"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}], "--ignore_keys margin"),
        ([{"text": "a"}], "row 0: unknown key 'text'"),
        ([{"chosen": "a", "rejected": "b"}], "row 0: 'prompt' is missing"),
    ],
)
def test_broken_pairs_are_refused_with_their_place(tmp_path, rows, message):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_preferences(str(path))


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def call(name: str, arguments: dict) -> list[dict]:
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    return [{"role": "assistant", "content": "", "tool_calls": calls}]


def test_tools_reach_the_template_and_calls_keep_their_own_arguments(tmp_path):
    """Arrow's structs would give each call the arguments of the other, as null."""
    path = tmp_path / "pairs.jsonl"
    pairs = [
        {"prompt": "Rome?", "chosen": call("weather", {"city": "Rome"}), "rejected": call("clock", {"n": 1}), "tools": [WEATHER]},
        {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
    ]
    path.write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
    rows, _ = preference_rows(read_preferences(str(path)), "tokenizer")
    assert rows[0]["tools"] == [WEATHER] and rows[1]["tools"] is None
    assert rows[0]["chosen"] == call("weather", {"city": "Rome"}) and rows[0]["rejected"] == call("clock", {"n": 1})
    assert rows[1]["chosen"] == [{"role": "assistant", "content": "Hello."}]
    tokenizer = new_tokenizer("alpaca")
    with pytest.raises(UserError, match="train split pair 0: the chat template of --prompt_style alpaca omits .*tools"):
        refuse_omissions_in_pairs({"train": rows}, tokenizer, "alpaca")
    tokenizer.chat_template = (
        "{{ tools | tojson if tools }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}\n"
        "{% endfor %}"
    )
    refuse_omissions_in_pairs({"train": rows}, tokenizer, "tokenizer")


def test_the_published_file(shared_data):
    """1,100 pairs, of which 6 hold two equal replies."""
    data = read_preferences(str(shared_data / "instruction-data-with-preference.json"))
    parts = split_conversations(data, [0.85, 0.05, 0.1])
    rows = {name: preference_rows(part, "alpaca") for name, part in parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 935, "validation": 55, "test": 110}
    assert sum(equal for _, equal in rows.values()) == 6


USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def test_the_pairs_of_trl(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good, bad = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "What?"}
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
        {"prompt": [USER], "chosen": [good], "rejected": [bad]},
        {"chosen": [USER, good], "rejected": [USER, bad]},
        {
            "prompt": "Hi",
            "chosen": [USER, good],
            "rejected": [USER, bad],
            "messages": [USER, good],
            "score_chosen": 8.0,
            "prompt_id": "x",
        },
        {"prompt": [USER], "chosen": json.dumps([good]), "rejected": json.dumps([bad])},
        {"instruction": "Hi", "chosen": [good], "rejected": [bad], "output": "Hello"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = read_preferences(str(path))
    for record in data.records:
        assert prompt_of(record, "alpaca") == [USER] and replies_of(record) == {"chosen": [good], "rejected": [bad]}, record
    table, equal = preference_rows(data, "alpaca")
    assert len(table) == 6 and equal == 0
    path.write_text(json.dumps({"prompt": "Other", "chosen": [USER, good], "rejected": [USER, bad]}), encoding="utf-8")
    with pytest.raises(UserError, match="begin with messages other than those of 'prompt'"):
        read_preferences(str(path))
    path.write_text(
        json.dumps({"system": "Be brief.", "history": [["a", "b"]], "prompt": "Hi", "chosen": "x", "rejected": "y"}),
        encoding="utf-8",
    )
    assert [m["content"] for m in prompt_of(read_preferences(str(path)).records[0], "alpaca")] == ["Be brief.", "a", "b", "Hi"]
