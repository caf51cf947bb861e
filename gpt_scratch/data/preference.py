"""Preference pairs in TRL's format: a prompt, a chosen and a rejected reply, as chat messages."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .opening import Faults, Reading
from .readers import kind_of
from .records import (
    Conversations,
    Message,
    check_context,
    checked_messages,
    empty_replies,
    opening_messages,
    read_records,
    refuse_unknown,
    to_messages,
)

if TYPE_CHECKING:  # files are read before these are imported
    import datasets
    from transformers import PreTrainedTokenizerBase

KEYS = {"instruction", "input", "prompt", "system", "history", "tools", "chosen", "rejected"}


def read_preferences(
    name: str,
    split: str = "train",
    reading: Reading | None = None,
    ignore_keys: Sequence[str] = (),
    max_rows: int | None = None,
) -> Conversations:
    """Read records of `instruction` (and `input`) or `prompt`, with `chosen` and `rejected`, from a file or a `datasets` name.

    The replies are strings, or messages as in TRL, with or without the prompt's messages before the reply. `output`, the reference of
    Alpaca records, is ignored. `max_rows` limits the rows that are read, to inspect a file.

    Raises:
        UserError: names file, rows and keys.
    """
    return read_records(name, _checked, split, reading, [*ignore_keys, "output"], max_rows=max_rows)


def _checked(record: dict[str, Any]) -> dict[str, Any]:
    messages = record.pop("messages", None)
    record = _of_other_forms(record)
    check_context(record)
    refuse_unknown(record, KEYS - ({"prompt"} if "instruction" in record else {"input"}))  # of two prompts one would be lost
    if not isinstance(record.get("input", ""), str):
        raise UserError(f"'input' is {kind_of(record['input'])}, not text")
    for key in ("chosen", "rejected"):
        value = record.get(key)
        if isinstance(value, list):
            record[key] = checked_messages(value, key)
            if record[key][-1]["role"] != "assistant":
                raise UserError(f"the last message of {key!r} is of {record[key][-1]['role']!r}, not a reply")
        elif not isinstance(value, str) or not value.strip():
            kind = "empty" if isinstance(value, str) else kind_of(value) + (", not a text" if value is not None else "")
            raise UserError(f"{key!r} is {kind}; instruction or prompt, chosen and rejected are required")
    if isinstance(record["chosen"], list) != isinstance(record["rejected"], list):
        raise UserError("'chosen' and 'rejected' must both be strings, or both lists of messages")
    if isinstance(record["chosen"], list):
        record = _with_prompt_apart(record)
    prompt = "instruction" if "instruction" in record else "prompt"
    value = record.get(prompt)
    if isinstance(value, list):
        record[prompt] = checked_messages(value, prompt)
    elif not isinstance(value, str) or not value.strip():
        kind = "empty" if isinstance(value, str) else kind_of(value) + (", not a text" if value is not None else "")
        raise UserError(f"{prompt!r} is {kind}; instruction or prompt, chosen and rejected are required")
    if messages is not None and checked_messages(messages, "messages") != [
        *prompt_of(record, "alpaca"),
        *replies_of(record)["chosen"],
    ]:
        raise UserError("key 'messages' is not supported together with chosen and rejected: pass --ignore_keys messages")
    if any(empty_replies(reply) for reply in replies_of(record).values()):
        raise UserError("'chosen' or 'rejected' is empty: empty replies are not supported")
    if any("weight" in message for reply in replies_of(record).values() for message in reply):
        raise UserError("a message of 'chosen' or 'rejected' has the weight 0, but pairs are trained as a whole: remove the pair")
    return record


def _of_other_forms(record: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's pairs (`input` of messages, `preferred_output`, `non_preferred_output`) and LLaMA-Factory's (`conversations`, each reply an
    object) under the names that are read here."""
    given = record.get("input")
    if isinstance(given, dict) and "preferred_output" in record:
        others = {key: value for key, value in record.items() if key not in ("input", "preferred_output", "non_preferred_output")}
        described = {key: value for key, value in given.items() if key not in ("messages", "parallel_tool_calls")}
        replies = {"chosen": record["preferred_output"], "rejected": record.get("non_preferred_output")}
        record = {"prompt": given.get("messages"), **described, **others, **replies}
    if "conversations" in record and not {"prompt", "instruction"} & record.keys():
        record = {("prompt" if key == "conversations" else key): value for key, value in record.items()}
    return {key: [value] if key in ("chosen", "rejected") and isinstance(value, dict) else value for key, value in record.items()}


def _with_prompt_apart(record: dict[str, Any]) -> dict[str, Any]:
    """Remove the prompt's messages from the start of both replies (TRL's "implicit prompts")."""
    chosen, rejected = record["chosen"], record["rejected"]
    common = next((i for i, (one, other) in enumerate(zip(chosen, rejected)) if one != other), min(len(chosen), len(rejected)))
    common = min(common, len(chosen) - 1, len(rejected) - 1)
    if not common:
        return record
    given, shared = record.get("prompt"), chosen[:common]
    text = shared[-1]["content"] if shared[-1]["role"] == "user" else None
    if (isinstance(given, list) and checked_messages(given, "prompt") != shared) or (isinstance(given, str) and given != text):
        raise UserError("'chosen' and 'rejected' begin with messages other than those of 'prompt'")
    if "instruction" in record:
        raise UserError("'chosen' and 'rejected' contain the prompt's messages in addition to 'instruction': remove one of them")
    return {**record, "prompt": shared, "chosen": chosen[common:], "rejected": rejected[common:]}


def preference_rows(data: Conversations, style: str) -> tuple["datasets.Dataset", int]:
    """Rows of `prompt`, `chosen` and `rejected`, each a list of messages, and the number of removed pairs of equal replies.

    `tools` are stored in a fourth column, as in TRL. Columns are JSON: as structs, Arrow would add the keys of all messages to each message
    and the arguments of all tool calls to each call, which templates would render as null.

    >>> pair = {"instruction": "Greet.", "input": "", "chosen": "Hello.", "rejected": "What?"}
    >>> preference_rows(Conversations([pair], ["row 0"]), "alpaca")[0][0]["rejected"]
    [{'role': 'assistant', 'content': 'What?'}]
    """
    import datasets

    table: dict[str, list[Any]] = {"prompt": [], "chosen": [], "rejected": []}
    if any("tools" in record for record in data.records):
        table["tools"] = []
    for record in data.records:
        replies = replies_of(record)
        if _stripped(replies["chosen"]) == _stripped(replies["rejected"]):
            continue
        table["prompt"].append(prompt_of(record, style))
        for key, reply in replies.items():
            table[key].append(reply)
        if "tools" in table:
            table["tools"].append(record.get("tools"))
    features = datasets.Features(dict.fromkeys(table, datasets.Json()))
    return datasets.Dataset.from_dict(table, features), len(data) - len(table["prompt"])


def _stripped(messages: Sequence[Message]) -> list[Message]:
    return [{**message, "content": message["content"].strip()} for message in messages]


def replies_of(record: Mapping[str, Any]) -> dict[str, list[Message]]:
    """Both replies of a pair as messages."""
    return {
        key: [{"role": "assistant", "content": record[key]}] if isinstance(record[key], str) else record[key]
        for key in ("chosen", "rejected")
    }


def prompt_of(record: Mapping[str, Any], style: str) -> list[Message]:
    """The prompt of a pair as messages, with its system prompt and earlier turns."""
    if "instruction" in record:
        return to_messages({**record, "output": "-"}, style)[:-1]
    prompt = record["prompt"]
    return [*opening_messages(record), *([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)]


def refuse_omissions_in_pairs(rows: Mapping[str, "datasets.Dataset"], tokenizer: "PreTrainedTokenizerBase", style: str) -> None:
    """Refuse pairs of which the chat template omits a part.

    Raises:
        UserError: names splits, pairs and the omitted parts.
    """
    from ..inference.chat_template import omitted_parts

    faults = Faults()
    for split, part in rows.items():
        for number, row in enumerate(part):
            parts = [omitted_parts(tokenizer, [*row["prompt"], *row[key]], row.get("tools")) for key in ("chosen", "rejected")]
            if left_out := dict.fromkeys(parts[0] + parts[1]):
                faults.add(
                    f"{split} split",
                    "pair",
                    number,
                    f"the chat template of --prompt_style {style} omits {', '.join(left_out)}: choose one that includes it, such as the "
                    "model's own (tokenizer)",
                )
    faults.check()
