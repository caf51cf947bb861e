"""Preference pairs: the messages that TRL gets, pairs without a preference, and what is refused."""

import json

import pytest

from gpt_scratch.data.instruction import Conversations, split_conversations
from gpt_scratch.data.preference import preference_rows, read_preferences
from gpt_scratch.errors import UserError


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
            "must both be texts, or both lists",
        ),
        (
            [
                {
                    "prompt": "a",
                    "chosen": [{"role": "assistant", "content": " "}],
                    "rejected": [{"role": "assistant", "content": "c"}],
                }
            ],
            "an empty reply is never learned",
        ),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"name": "x"}]}], "key 'tools' not understood"),
        ([{"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0.5}], "--ignore_keys margin"),
        ([{"text": "a"}], "row 0: key 'text' not understood"),
        ([{"chosen": "a", "rejected": "b"}], "row 0: 'prompt' is missing"),
    ],
)
def test_broken_pairs_are_refused_with_their_place(tmp_path, rows, message):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_preferences(str(path))


def test_the_published_file(shared_data):
    """1,100 pairs, of which 6 hold two equal replies."""
    data = read_preferences(str(shared_data / "instruction-data-with-preference.json"))
    parts = split_conversations(data, [0.85, 0.05, 0.1])
    rows = {name: preference_rows(part, "alpaca") for name, part in parts.items()}
    assert {name: len(part) for name, part in parts.items()} == {"train": 935, "validation": 55, "test": 110}
    assert sum(equal for _, equal in rows.values()) == 6
