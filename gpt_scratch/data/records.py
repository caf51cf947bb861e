"""Conversation records in all common formats, normalized to lists of messages with optional tools.

Alpaca (`instruction`, `input`, `output`, with `system` and `history`), OpenAI messages, ShareGPT (`conversations` of `from` and `value`),
prompt and completion, and token ids. A key with content is used or refused by name; metadata keys are listed once as unused.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ..errors import UserError
from .columns import RECORD_COLUMNS
from .examples import Examples
from .opening import Faults, Reading, invalid_place, print_once, replaced
from .readers import kind_of
from .tables import read_table

Message = dict[str, Any]
# ShareGPT's names of roles, and other common names.
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "tool", "human": "user", "gpt": "assistant",
         "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "observation": "tool", "function": "tool",
         "developer": "system", "function_call": "assistant", "ai": "assistant", "chatbot": "assistant", "prompter": "user"}  # fmt: skip
REASONING = ("reasoning_content", "reasoning", "thinking")
MESSAGE_KEYS = {"role", "content", "tool_calls", "name", "tool_call_id", "weight", *REASONING}
# Metadata keys of records and messages, without training content.
DESCRIPTIONS = {
    "id", "ids", "idx", "index", "uuid", "guid", "hash", "row", "split", "source", "sources", "dataset", "dataset_name", "origin",
    "category", "categories", "tag", "tags", "topic", "topics", "task", "task_type", "type", "language", "lang", "license", "licence",
    "url", "urls", "link", "created", "created_at", "timestamp", "date", "time", "model", "model_name", "generator", "author",
    "annotator", "prompt_id", "conversation_id", "message_id", "session_id", "length", "num_turns", "score_chosen", "score_rejected",
    "model_response", "metadata", "meta", "__index_level_0__", "unnamed: 0", "", "custom_id", "parallel_tool_calls", "title", "subset",
    "domain", "quality", "difficulty", "intent", "score", "rating", "chosen_score", "rejected_score", "chosen_rating", "rejected_rating",
    "rating_chosen", "rating_rejected", "chosen_model", "rejected_model", "skip_prompt_formatting", "views", "avatarurl", "user_id",
}  # fmt: skip
# Other names of a key, used where the record has none of the keys that mean the same.
OTHER_NAMES = {
    "conversation": ("conversations", {"conversations", "messages"}),
    "functions": ("tools", {"tools"}),
    "system_prompt": ("system", {"system"}),
    **dict.fromkeys(("question", "query", "inputs"), ("instruction", {"instruction", "prompt", "input", "messages", "conversations"})),
    **dict.fromkeys(("response", "answer", "targets"),
                    ("output", {"output", "completion", "chosen", "rejected", "messages", "conversations"})),
    "context": ("input", {"input", "messages", "conversations"}),
}  # fmt: skip
LISTS = ("messages", "conversations", "history", "tools", "input_ids", "labels", "attention_mask")  # written as JSON text in csv
FORMS = (
    ("messages", {"messages", "system", "tools", "weight"}),
    ("instruction", {"instruction", "input", "output", "system", "history", "tools", "weight"}),
    ("prompt", {"prompt", "completion", "system", "history", "tools", "weight"}),
    ("input_ids", {"input_ids", "labels", "attention_mask"}),
)

# Separator of instruction and input of an Alpaca record, which form one user message.
INPUT_SEPARATORS = {"alpaca": "\n\n### Input:\n", "phi3": "\n", "chatml": "\n\n", "tokenizer": "\n\n"}


@dataclass
class Conversations(Examples):
    """Records as returned by [`normalized`], each with its location in the file (0 is the first) for error messages."""

    records: list[dict[str, Any]]
    places: list[str]


def read_records(
    name: str,
    check: Callable[[dict[str, Any]], dict[str, Any]],
    split: str = "train",
    reading: Reading | None = None,
    ignore_keys: Sequence[str] = (),
    kept_keys: Sequence[str] = (),
    max_rows: int | None = None,
) -> Conversations:
    """Read records from a file, a glob or a `datasets` name, each normalized by `check`.

    Args:
        check: normalizes a record without its metadata keys, and raises [`UserError`] for invalid ones.
        ignore_keys: keys to ignore, whatever they contain.
        kept_keys: keys that the caller uses; they stay in the record unchanged, like metadata keys.
        max_rows: maximum number of rows to read, to inspect a file.

    Raises:
        UserError: names file, rows and keys of all faults (the first ten, and how many).
    """
    reading, faults = reading or Reading(), Faults()
    records, places = [], []
    unused: dict[str, None] = {}
    renamed: dict[str, str] = {}
    empty = 0
    for file, number, row in islice(read_table(name, split, reading, faults, header=True), max_rows):
        if reading.skip_empty and all(value is None or (isinstance(value, str) and not value.strip()) for value in row.values()):
            empty += 1
            continue
        try:
            record, description = without(row, ignore_keys, kept_keys, unused)
            record = {**check(_by_our_names(record, renamed)), **description}
            if (place := invalid_place(record)) is not None:  # within JSON that a text held
                if not reading.replace_invalid:
                    raise UserError(
                        f"{place!r} contains a lone surrogate, which is invalid text (often half of an emoji): fix the row, or pass "
                        "--replace_invalid"
                    )
                record = replaced(record)
        except UserError as error:
            faults.add(file, "row", number, str(error) + (f" ({_said_of(renamed)})" if renamed else ""))
            continue
        records.append(record)
        places.append(f"{file} row {number}")
    faults.check()
    if not records:
        raise UserError(f"{name} contains no records")
    if empty:
        print_once(f"{name}: {empty:,} empty rows were skipped")
    if unused:
        print_once(f"{name}: unused keys: {', '.join(map(repr, unused))}")
    if renamed:
        print_once(f"{name}: {_said_of(renamed)}")
    return Conversations(records, places)


def without(
    row: Mapping[str, Any], ignore_keys: Iterable[str], kept_keys: Iterable[str], unused: dict[str, None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split a row into its content keys and its metadata keys, which are added to `unused`; null and ignored keys are dropped.

    Known keys are matched in any case, ignoring surrounding spaces.
    """
    record: dict[str, Any] = {}
    description: dict[str, Any] = {}
    for key, value in row.items():
        name = str(key).strip()
        known = name.lower() in {*RECORD_COLUMNS, "rejected", "weight", "attention_mask"}
        name = name.lower() if known and name.lower() not in row else name
        if value is None:
            continue
        if name in kept_keys:
            description[name] = value
        elif name in ignore_keys:
            unused[name] = None
        elif not known and value in ("", [], {}):
            continue
        elif name.lower().replace("-", "_") in DESCRIPTIONS or _repeats(name, value, row):
            unused[name], description[name] = None, value
        else:
            record[name] = _parsed(value, name) if name in LISTS else value
    for key in ("messages", "conversations", "prompt", "completion", "chosen", "rejected"):
        if isinstance(record.get(key), str) and _is_json_list(record[key]):
            record[key] = _parsed(record[key], key)
        if isinstance(record.get(key), (list, tuple)):
            record[key] = [_without(message, ignore_keys, unused) for message in record[key]]
    return record, description


def _said_of(renamed: Mapping[str, str]) -> str:
    return ", ".join(f"{theirs!r} is read as {ours!r}" for theirs, ours in renamed.items())


def _by_our_names(record: dict[str, Any], renamed: dict[str, str]) -> dict[str, Any]:
    """The record with the keys of [`OTHER_NAMES`] under ours; these are noted in `renamed`."""
    result: dict[str, Any] = {}
    for key, value in record.items():
        ours, same = OTHER_NAMES.get(key.lower(), (key, set()))
        if ours == key or same & record.keys() or ours in result:
            result[key] = value
            continue
        if ours == "instruction" and "chosen" in record:
            ours = "prompt"
        elif ours == "output" and "prompt" in record:
            ours = "completion"
        result[ours] = _parsed(value, key) if ours in LISTS else value
        renamed[key] = ours
    return result


def _repeats(name: str, value: Any, row: Mapping[str, Any]) -> bool:
    """Whether a text is there again: the record as a prompt, as in Stanford Alpaca's data, or the content of one of its messages."""
    if not isinstance(value, str):
        return False
    messages = row.get("messages", row.get("conversations"))
    if isinstance(messages, (list, tuple)):
        contents = [message.get("content", message.get("value")) for message in messages if isinstance(message, Mapping)]
        return value.strip() in [content.strip() for content in contents if isinstance(content, str)] and "chosen" not in row
    parts = [row.get("instruction"), row.get("output")]
    return name == "text" and all(isinstance(part, str) and part in value for part in parts)


def _without(message: Any, ignore_keys: Iterable[str], unused: dict[str, None]) -> Any:
    if not isinstance(message, Mapping):
        return message
    kept = {}
    for key, value in message.items():
        if key in ignore_keys or (key.lower() in DESCRIPTIONS and value is not None):
            unused[key] = None
        elif value not in (None, [], {}) or key in ("role", "content", "from", "value"):
            kept[key] = value
    return kept


def _is_json_list(text: str) -> bool:
    try:
        return text.lstrip().startswith("[") and isinstance(json.loads(text), list) and "{" in text
    except (ValueError, RecursionError):
        return False


def _parsed(value: Any, key: str) -> Any:
    if not isinstance(value, str):
        return list(value) if isinstance(value, tuple) else value
    if not value.strip():
        return None if key in ("history", "tools") else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        pythons = (
            "; Python's own form has single quotes: write it by json.dumps" if value.lstrip().startswith(("[{'", "['")) else ""
        )
        raise UserError(f"{key!r} is a string that is not valid JSON ({error}){pythons}") from error


def normalized(record: Mapping[str, Any]) -> dict[str, Any]:
    """Normalize an instruction record to one of four formats: `messages`, `instruction` and `output`, `prompt` and `completion`, or
    `input_ids` and `labels`; ShareGPT is converted to messages.

    Raises:
        UserError: names a key that is missing, has a wrong type, or is unknown.
    """
    record = {key: value for key, value in record.items() if value is not None}
    if "conversations" in record:
        if "messages" in record:
            raise UserError("the record has both 'messages' and 'conversations': remove one of them")
        record["messages"] = record.pop("conversations")
    form, known = next((found for found in FORMS if found[0] in record), ("", set()))
    if not form:
        raise UserError(
            f"the keys are {', '.join(map(str, record))}: expected instruction and output, messages or conversations, prompt and "
            "completion, or input_ids and labels"
        )
    refuse_unknown(record, known)
    if record.get("weight", 1) != 1:
        raise UserError(
            f"'weight' is {record['weight']!r}: records cannot be weighted; repeat the record, or pass --ignore_keys weight"
        )
    record.pop("weight", None)
    if form == "input_ids":
        _check_ids(record)
        return record
    check_context(record)
    if form == "messages":
        record["messages"] = checked_messages(record["messages"], "messages")
        if not any(message["role"] == "assistant" for message in record["messages"]):
            raise UserError("messages contain no reply (role assistant) to train on")
        if "system" in record and record["messages"][0]["role"] == "system":
            raise UserError("the record has both 'system' and a first message with the role system: remove one of them")
    elif form == "instruction":
        for key in ("instruction", "output", "input"):
            value = record.get(key, "" if key == "input" else None)
            if not isinstance(value, str):
                raise UserError(f"{key!r} is {kind_of(value)}" + (", not text" if value is not None else ""))
    else:
        for key in ("prompt", "completion"):
            value = record.get(key)
            if isinstance(value, list):
                record[key] = checked_messages(value, key)
            elif not isinstance(value, str):
                raise UserError(f"{key!r} is {kind_of(value)}" + (", not text" if value is not None else ""))
        if isinstance(record["completion"], list) and all(message["role"] != "assistant" for message in record["completion"]):
            raise UserError("completion contains no reply (role assistant) to train on")
    return record


def question(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose last reply is the reference that a computed reward compares with.

    Raises:
        UserError: as [`normalized`]; token ids or tools, which TRL's GRPO does not write into prompts.
    """
    result = normalized(record)
    if "input_ids" in result:
        raise UserError("it contains token ids: --reward needs records of text")
    if result.get("tools"):
        raise UserError("it contains 'tools', which TRL's GRPO does not support: pass --ignore_keys tools")
    return result


def check_context(record: dict[str, Any]) -> None:
    """Check `system`, `history` and `tools` of a record in place; empty ones are removed.

    Raises:
        UserError: `system` is not text, `history` not a list of pairs of texts, or `tools` not a list of objects.
    """
    for key in ("system", "history", "tools"):
        if key in record and not record[key]:
            del record[key]
    if "system" in record and not isinstance(record["system"], str):
        raise UserError(f"'system' is {kind_of(record['system'])}, not text")
    if "history" in record:
        record["history"] = [list(_exchange(pair)) for pair in _list(record["history"], "history")]
    if "tools" in record and not (
        isinstance(record["tools"], list) and all(isinstance(tool, Mapping) for tool in record["tools"])
    ):
        raise UserError("'tools' must be a list of objects")


def refuse_unknown(values: Mapping[str, Any], known: Iterable[str], of: str = "") -> None:
    """Refuse keys that are not used.

    Raises:
        UserError: names the unknown keys, and the flag that ignores them.
    """
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise UserError(
            f"{of}unknown {'keys' if len(unknown) > 1 else 'key'} {', '.join(map(repr, unknown))}, which would be lost: "
            f"rename, or pass --ignore_keys {' '.join(unknown)}"
        )


def _list(value: Any, key: str) -> list:
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{key!r} is {kind_of(value)}, not a list")
    return list(value)


def _exchange(pair: Any) -> tuple[str, str]:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
        raise UserError("'history' must be a list of [question, answer]")
    return pair[0], pair[1]


def _check_ids(record: Mapping[str, Any]) -> None:
    for key in ("input_ids", "labels"):
        if not isinstance(record.get(key), list) or not record[key] or any(type(value) is not int for value in record[key]):
            raise UserError(f"{key!r} must be a non-empty list of integers")
    if len(record["input_ids"]) != len(record["labels"]):
        raise UserError(f"{len(record['input_ids'])} input_ids but {len(record['labels'])} labels")
    if any(value != 1 for value in record.get("attention_mask", [])):
        raise UserError("'attention_mask' masks tokens: remove padding from input_ids and labels")


def checked_messages(messages: Any, key: str) -> list[Message]:
    """Convert messages of OpenAI's or ShareGPT's format to `role` and `content`.

    Raises:
        UserError: names the invalid message and the reason.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{key} must be a non-empty list of messages")
    return [_checked_message(message, f"{key}: message {number}") for number, message in enumerate(messages)]


def _checked_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        raise UserError(f"{place} is {kind_of(message)}, not an object")
    message = dict(message)
    for ours, theirs in (("role", "from"), ("content", "value")):
        if theirs in message and ours not in message:
            message[ours] = message.pop(theirs)
    if not isinstance(message.get("role"), str):
        raise UserError(f"{place} needs the strings role and content; its keys are {', '.join(map(str, message))}")
    if (role := ROLES.get(message["role"].lower())) is None:
        raise UserError(f"{place} has the role {message['role']!r}; use system, user, assistant or tool")
    if isinstance(message.get("function_call"), Mapping) and "tool_calls" not in message:  # OpenAI's form before tools
        message["tool_calls"] = [message.pop("function_call")]
    refuse_unknown(message, MESSAGE_KEYS, of=f"{place}: ")
    content = message.get("content")
    if message["role"] == "function_call":
        content, message["tool_calls"] = None, [_call_of_text(content, place)]
    calls = message.get("tool_calls") or []
    if isinstance(content, (list, tuple)):
        content = "".join(_text_of_part(part, place) for part in content)
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise UserError(f"{place} needs the strings role and content")
    result: Message = {"role": role, "content": content}
    if calls:
        result["tool_calls"] = [_checked_call(call, place) for call in _list(calls, f"{place}: tool_calls")]
    reasoning = {name: message[name] for name in REASONING if message.get(name)}
    if reasoning:
        first, *others = reasoning.values()
        if not isinstance(first, str):
            raise UserError(f"{place}: its reasoning is {kind_of(first)}, not text")
        if any(other != first for other in others):
            raise UserError(f"{place} has different texts in {' and '.join(map(repr, reasoning))}: keep one of them")
        result["reasoning_content"] = first
    for name in ("name", "tool_call_id"):
        if message.get(name):
            result[name] = message[name]
    if (weight := message.get("weight", 1)) != 1:
        if weight != 0 or role != "assistant":
            raise UserError(f"{place} has the weight {weight!r}: only 0, which excludes a reply from training, is supported")
        result["weight"] = 0
    return result


def _text_of_part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping):
        rest = {key for key, value in part.items() if value is not None} - {"type", "text"}
        if part.get("type", "text") in ("text", "input_text", "output_text") and isinstance(part.get("text"), str) and not rest:
            return part["text"]
        if rest and isinstance(part.get("text"), str):
            raise UserError(f"{place} has a part with {', '.join(map(repr, sorted(rest)))}, which is not supported: remove it")
        raise UserError(f"{place} has a part of type {str(part.get('type'))!r}: only text is supported")
    raise UserError(f"{place} has a part that is {kind_of(part)}, not an object")


def _call_of_text(text: Any, place: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{place} is a function call that is not valid JSON") from error


def _checked_call(call: Any, place: str) -> dict[str, Any]:
    """A tool call in the form that chat templates expect, with arguments as an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f"{place}: a tool call needs a function with a name")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: the arguments of {function['name']!r} are not valid JSON") from error
    result: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    if isinstance(call.get("id"), str):
        result["id"] = call["id"]
    return result


def opening_messages(record: Mapping[str, Any]) -> list[Message]:
    """The messages for `system` and `history` of a record, which precede its own.

    >>> opening_messages({"system": "Be brief.", "history": [["Hi", "Hello"]]})[1:]
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello'}]
    """
    messages: list[Message] = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    for question, answer in record.get("history") or []:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def to_messages(record: Mapping[str, Any], style: str) -> list[Message]:
    """Convert a record to messages; instruction and input of an Alpaca record are joined according to `style`.

    >>> to_messages({"instruction": "Add.", "input": "1 2", "output": "3"}, "phi3")
    [{'role': 'user', 'content': 'Add.\\n1 2'}, {'role': 'assistant', 'content': '3'}]
    """
    if "messages" in record:
        return [*opening_messages(record), *record["messages"]]
    if "instruction" in record:
        prompt = record["instruction"]
        if record.get("input"):
            prompt += INPUT_SEPARATORS[style] + record["input"]
        return [
            *opening_messages(record),
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": record["output"]},
        ]
    messages = opening_messages(record)
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = record[key]
        messages += [{"role": role, "content": value}] if isinstance(value, str) else value
    return messages


def empty_replies(messages: Sequence[Message]) -> list[int]:
    """Indices of replies without content and tool calls."""
    return [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls")
    ]
