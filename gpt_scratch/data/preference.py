"""Preference pairs in the form that TRL trains on: a prompt and two replies, of which the first is preferred, as chat messages."""

from collections.abc import Mapping
from typing import Any

import datasets

from ..errors import UserError
from .instruction import Conversations, to_messages
from .readers import read_table


def read_preferences(name: str, split: str = "train") -> Conversations:
    """Records of `instruction` (and `input`) or `prompt`, with `chosen` and `rejected`, from a file or a `datasets` name.

    Raises:
        UserError: names file, row and key.
    """
    records, places = [], []
    for number, row in enumerate(read_table(name, split)):
        place = f"{name} row {number}"
        prompt = "instruction" if "instruction" in row else "prompt"
        for key in (prompt, "chosen", "rejected"):
            if not isinstance(row.get(key), str) or not row[key].strip():
                kind = (
                    "missing" if row.get(key) is None else "empty" if row[key] == "" else f"{type(row[key]).__name__}, not a text"
                )
                raise UserError(f"{place}: {key!r} is {kind}; instruction or prompt, chosen and rejected are needed")
        records.append(dict(row))
        places.append(place)
    if not records:
        raise UserError(f"{name} holds no records")
    return Conversations(records, places)


def preference_rows(data: Conversations, style: str) -> tuple[datasets.Dataset, int]:
    """Rows of `prompt`, `chosen` and `rejected`, each a list of messages, and how many pairs of equal replies were left out.

    >>> pair = {"instruction": "Greet.", "input": "", "chosen": "Hello.", "rejected": "What?"}
    >>> preference_rows(Conversations([pair], ["row 0"]), "alpaca")[0][0]["rejected"]
    [{'role': 'assistant', 'content': 'What?'}]
    """
    table: dict[str, list[list[dict[str, str]]]] = {"prompt": [], "chosen": [], "rejected": []}
    for record in data.records:
        if record["chosen"].strip() == record["rejected"].strip():
            continue
        table["prompt"].append(prompt_of(record, style))
        for key in ("chosen", "rejected"):
            table[key].append([{"role": "assistant", "content": record[key]}])
    return datasets.Dataset.from_dict(table), len(data) - len(table["prompt"])


def prompt_of(record: Mapping[str, Any], style: str) -> list[dict[str, str]]:
    """The prompt of a pair as messages."""
    if "instruction" in record:
        return to_messages({**record, "output": record["chosen"]}, style)[:1]
    return [{"role": "user", "content": record["prompt"]}]
