"""Computed rewards: functions of a question, a reply and a reference.

For GRPO (`training/preferences.py`) and for best-of-n selection (`accuracy.py`). A reward is one of [`REWARDS`] or a function in a
user's file. A reply that does not end with the end-of-text token is truncated and gets 0 from each.
"""

import importlib.util
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..conflicts import check_rewards
from ..errors import UserError, one_line
from .replies import exact_match

# (messages before the reply, reply, reference) -> reward
RewardFunction = Callable[[list[dict[str, Any]], str, str], float]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
MOST = 1e6  # largest absolute reward: beyond it, advantages lose precision


def last_number(text: str) -> float | None:
    """The last number in a text; commas between digits are ignored.

    >>> last_number("7 - 9 = -2."), last_number("It is 1,024."), last_number("none")
    (-2.0, 1024.0, None)
    """
    found = NUMBER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def _exact(prompt: list[dict[str, Any]], reply: str, reference: str) -> float:
    return float(exact_match(reply, reference))


def _arithmetic(prompt: list[dict[str, Any]], reply: str, reference: str) -> float:
    number = last_number(reply)
    return float(number is not None and number == last_number(reference))


def _form(text: str) -> str:
    return NUMBER.sub("0", re.sub(r"\s+", " ", text.strip().lower()))


def _format(prompt: list[dict[str, Any]], reply: str, reference: str) -> float:
    return float(_form(reply) == _form(reference))


def _length(prompt: list[dict[str, Any]], reply: str, reference: str) -> float:
    lengths = sorted((len(reply.strip()), len(reference.strip())))
    return lengths[0] / lengths[1] if lengths[1] else 1.0


REWARDS: dict[str, RewardFunction] = {
    "exact_match": _exact,  # 1 if equal to the reference, ignoring case and surrounding white space
    "arithmetic": _arithmetic,  # 1 if the last number is that of the reference
    "format": _format,  # 1 if equal to the reference, ignoring the values of numbers
    "length": _length,  # ratio of the shorter to the longer length of reply and reference, in characters
}


@dataclass
class Reward:
    """A function of prompt, reply and reference, and its name in logs."""

    name: str
    function: RewardFunction

    def __call__(self, prompt: list[dict[str, Any]], reply: str, reference: str, ended: bool = True) -> float:
        """The reward of a reply.

        Raises:
            UserError: the user's function fails, or does not return a finite number.
        """
        if not ended:
            return 0.0
        try:
            value = self.function(prompt, reply, reference)
        except Exception as error:  # the user's function may raise anything
            raise UserError(
                f"--reward {self.name}: {type(error).__name__}: {one_line(error)}; it was called with the reply {one_line(reply, 60)!r} "
                f"and the reference {one_line(reference, 60)!r}"
            ) from error
        if not isinstance(value, (bool, int, float)) or not math.isfinite(value) or abs(value) > MOST:
            raise UserError(
                f"--reward {self.name} returned {one_line(repr(value), 60)} for the reply {one_line(reply, 60)!r}: a finite number within "
                f"{MOST:,.0f} is needed"
            )
        return float(value)


def load_rewards(names: Sequence[str]) -> list[Reward]:
    """Look rewards up by name, or load them from `path/to/file.py:function`, which runs the file.

    A function takes three arguments (the messages before the reply, the reply, the reference) and returns a number.

    Raises:
        UserError: an unknown or repeated name, or a file that cannot be run or lacks the function.
    """
    check_rewards(names)
    return [Reward(name, REWARDS[name]) if name in REWARDS else _from_file(name) for name in names]


def _from_file(name: str) -> Reward:
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"reward_{Path(path).stem}", path)
    assert spec is not None and spec.loader is not None  # it ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        raise UserError(f"--reward {name}: {path} cannot be run: {type(error).__name__}: {one_line(error)}") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"--reward {name}: {path} has no function {function!r}")
    return Reward(f"{Path(path).name}:{function}", found)


def check_references(rewards: Sequence[Reward], references: Sequence[str], places: Sequence[str]) -> None:
    """Check that the rewards can be computed from the references.

    Raises:
        UserError: a reference that no reply could satisfy; names its place.
    """
    for reward in rewards:
        if reward.function is _arithmetic:
            for reference, place in zip(references, places):
                if last_number(reference) is None:
                    raise UserError(
                        f"{place}: its reply {one_line(reference, 60)!r} holds no number, which --reward arithmetic compares: leave such "
                        "records out, or use exact_match"
                    )


def total(values: Mapping[str, float], weights: Sequence[float] | None) -> float:
    """The weighted sum of the rewards of one reply.

    >>> total({"exact_match": 1.0, "length": 0.5}, [1.0, 0.1])
    1.05
    """
    return sum(value * weight for value, weight in zip(values.values(), weights or [1.0] * len(values)))
