"""Rows of JSON files in every common form; nothing of a row is lost silently."""

import json

import pytest

from gpt_scratch.errors import UserError

TWO = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "note"),
    [
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in TWO), ""),
        ("a.jsonl", json.dumps(TWO), "read as one list of rows"),
        ("a.jsonl", json.dumps(TWO, indent=2), "read as one list of rows"),
        ("a.json", json.dumps(TWO), ""),
        ("a.json", "".join(json.dumps(row) + "\n" for row in TWO), "read as one object per line"),
        ("a.json", json.dumps({"data": TWO}), "the rows under 'data'"),
        ("a.json", json.dumps({"version": 1, "rows": TWO}, indent=1), "the rows under 'rows'"),
        ("a.json", "\ufeff" + json.dumps(TWO), ""),
    ],
)
def test_shapes_that_are_recognized(rows_of, capsys, name, content, note):
    assert rows_of(name, content) == TWO
    printed = capsys.readouterr().err
    assert note in printed and (note or not printed)


def test_one_record_is_a_row_and_not_rows_under_a_key(rows_of):
    one = {"messages": [{"role": "user", "content": "a"}]}
    assert rows_of("a.json", json.dumps(one)) == rows_of("b.jsonl", json.dumps(one)) == [one]
    assert rows_of("c.json", json.dumps(one, indent=2)) == [one]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n[1]\n{"text": "b", "text": "c"}\n', "line 2: not valid JSON.*line 3: a list, expected a JSON object.*line 4: not valid JSON: the key 'text' occurs twice"),
        ("a.json", '[{"text": "a"}, 3, "b"]', "row 1: it is int, not an object; row 2: it is str"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "lists of rows under 'train', 'test'"),
        ("a.json", '[{"text": "a"}', "a.json is not valid JSON"),
    ],
)  # fmt: skip
def test_unreadable_rows_are_reported_with_their_places(rows_of, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows_of(name, content)
    assert "\n" not in str(caught.value)
