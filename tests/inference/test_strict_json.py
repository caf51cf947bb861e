"""Untrusted JSON: what is accepted is one object as `json.loads` reads it; everything else is refused with a reason."""

import json

import pytest

from gpt_scratch.inference.strict_json import parse_object

GOOD = [
    "{}",
    '{"a": [1, -2.5e3, true, null, "\\ud83d\\ude42 \u00fc"], "b": {"c": ""}}',
    '{"n": 18446744073709551615, "m": -18446744073709551615}',
    '{"a": ' * 15 + "1" + "}" * 15,
]


@pytest.mark.parametrize("text", GOOD)
def test_an_object_is_read_as_json_does(text):
    assert parse_object(text.encode()) == json.loads(text)


BAD = {
    b"": "not JSON: Expecting value at character 0",
    b'{"a": 1} x': "not JSON: Extra data at character 9",
    b"[1]": "not a JSON object",
    b"null": "not a JSON object",
    b'{"a": "\xff"}': "not UTF-8 at byte 7",
    b'{"a": 1, "b": {"c": 1, "c": 2}}': "duplicate key 'c'",
    b'{"a": NaN}': "NaN is not JSON",
    b'{"a": -Infinity}': "-Infinity is not JSON",
    b'{"a": 1e999}': "the number 1e999 is too large",
    b'{"a": 123456789012345678901}': "an integer of 21 digits",
    b'{"a": ["\\ud83d"]}': "a string contains a lone surrogate",
    b'{"\\ude42": 1}': "a string contains a lone surrogate",
    b'{"a": ' * 16 + b"1" + b"}" * 16: "nested deeper than 16 levels",
    b'{"a": ' + b"[" * 200_000: "nested deeper than 16 levels",
}


@pytest.mark.parametrize("data", BAD, ids=range(len(BAD)))
@pytest.mark.fault(
    "JSON to the server that is no object, repeats a key, or holds NaN, long numbers or half a character",
    seconds=2,
    mebibytes=100,
)
def test_anything_else_is_refused_with_the_reason(data):
    with pytest.raises(ValueError, match=BAD[data]):
        parse_object(data)
