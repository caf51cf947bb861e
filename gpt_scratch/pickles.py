"""Pickles that would never end: tuples nested so deeply that hashing one, as the key of a dictionary, takes hours.

A tuple that holds the one before twice, sixty times over, fits in 200 bytes; its hash visits 2^60 tuples. Neither pickle nor torch's
reader of weights bounds this. The instructions are followed here without running them.
"""

import contextlib
import pickletools
from collections.abc import Iterator
from typing import Any, BinaryIO

MAX_DEPTH = 20  # of tuples in tuples; those of torch.save are four deep
TUPLES = {"EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
MARK = -1


def refuse_deep_tuples(file: BinaryIO) -> None:
    """Follow one pickle, from the position of `file` to its end; damaged instructions, which any reader refuses, end it, too.

    Raises:
        ValueError: tuples nested more than 20 deep.
    """
    stack: list[int] = []  # the depth of each value, and MARK
    memo: dict[int, int] = {}
    with contextlib.suppress(IndexError, KeyError):  # nothing on the stack, or nothing stored
        for code, argument in _instructions(file):
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if code.name == "MEMOIZE" else argument] = stack[-1]
            elif code.name == "MARK":
                stack.append(MARK)
            else:
                popped = _pop(stack, code.stack_before)
                depth = memo[argument] if code.name.endswith("GET") else max([0, *popped])
                if code.name in TUPLES and (depth := depth + 1) > MAX_DEPTH:
                    raise ValueError(f"it holds tuples nested more than {MAX_DEPTH} deep")
                stack += [depth] * len(code.stack_after)


def _instructions(file: BinaryIO) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    with contextlib.suppress(ValueError):  # pickletools raises it for unknown or incomplete instructions
        for code, argument, _ in pickletools.genops(file):
            yield code, argument


def _pop(stack: list[int], before: list) -> list[int]:
    """Remove what an instruction takes from the stack: a fixed number of values, or all above the last mark and some below it."""
    popped, fixed = [], len(before)
    if pickletools.markobject in before:
        fixed = before.index(pickletools.markobject)
        while (value := stack.pop()) != MARK:
            popped.append(value)
    return popped + [stack.pop() for _ in range(fixed)]
