"""Pickles whose tuples would be hashed for ages are refused before they are read; all others pass."""

import io
import pickle
from collections import OrderedDict

import pytest
import torch

from gpt_scratch.pickles import refuse_deep_tuples


def key_of(depth: int, again: bytes) -> bytes:
    """{tuple: 1} of nested tuples, each of which holds the one before twice."""
    return b"\x80\x02})" + again * depth + b"K\x01s."


@pytest.mark.parametrize("again", [b"2\x86", b"q\0h\0\x86", b"p0\ng0\n\x86"], ids=["DUP", "BINGET", "GET"])
def test_deep_tuples_are_refused(again):
    with pytest.raises(ValueError, match="tuples nested more than 20 deep"):
        refuse_deep_tuples(io.BytesIO(key_of(60, again)))
    refuse_deep_tuples(io.BytesIO(key_of(10, again)))


@pytest.mark.parametrize("protocol", range(6))
def test_other_pickles_pass(protocol):
    values = [None, True, 1.5, 2**70, "ü", b"bytes", {1, 2}, frozenset([3]), OrderedDict(a=1), (1, (2, [3, (4,)])), torch.ones(2)]
    whole = pickle.dumps({"list": values, "itself": values}, protocol)
    file = io.BytesIO(whole + b"rest")
    refuse_deep_tuples(file)
    assert file.tell() == len(whole)  # the next pickle begins here


@pytest.mark.parametrize("damaged", [b"", b"junk", b"\x80\x02(((", b"h\x05.", b"0000.", b"\x86."])
def test_damaged_instructions_are_left_to_the_reader(damaged):
    refuse_deep_tuples(io.BytesIO(damaged))
