"""Instruction data to training rows: Alpaca records, chat messages or prompt and completion; prompt styles; labels; packing.

Every record becomes a conversation, every prompt style a chat template whose `{% generation %}` markers say which tokens are the
assistant's. The template is saved with the tokenizer, so what is trained here is what `pipeline` and servers ask later.

Traps that are handled here: the end-of-text token that ends a reply is a label even where it is the padding token too (padding is known by
length, never by id); labels that the user brings keep their own -100; a template without generation markers would leave every
label masked without a word; packed replies must not be predicted from the reply before them, nor see it.

Worked example, style "phi3", one letter a token, `$` the end of text, prompt masked:

    <|user|>\\nHi\\n<|assistant|>:\\nYo$        input_ids
    -100 ...                        Yo$        labels

Source of the styles: Taori et al. 2023 (Alpaca) and Abdin et al. 2024 (Phi-3), in the layouts of *Build a Large Language Model (From
Scratch)*, chapter 7; chatml is OpenAI's, with the tokenizer's own end-of-text token for `<|im_end|>`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..inference.chat_template import apply_chat_template
from ..progress import bar
from .readers import read_table

Message = dict[str, str]
IGNORED = -100

ALPACA_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

# The text between instruction and input of an Alpaca record, which make up one user message.
INPUT_SEPARATORS = {"alpaca": "\n\n### Input:\n", "phi3": "\n", "chatml": "\n\n", "tokenizer": "\n\n"}

_REPLY = "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
CHAT_TEMPLATES = {
    "alpaca": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}{{ '" + ALPACA_PREAMBLE + "' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' }}" + _REPLY + "{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
    ),
    "phi3": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '<|assistant|>:\\n' }}"
        + _REPLY
        + "{% if not loop.last %}{{ '\\n' }}{% endif %}"
        "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>:\\n' }}{% endif %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}" + _REPLY + "{% if not loop.last %}{{ '\\n' }}{% endif %}"
        "{% else %}{{ message['content'] + eos_token + '\\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
PROMPT_STYLES = (*CHAT_TEMPLATES, "tokenizer")


@dataclass
class Conversations:
    """Records as they were read, each with its place in the file (0 is the first) for messages."""

    records: list[dict[str, Any]]
    places: list[str]

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices: Iterable[int]) -> "Conversations":
        """The records at `indices`, in that order."""
        indices = [int(i) for i in indices]
        return Conversations([self.records[i] for i in indices], [self.places[i] for i in indices])


def read_conversations(name: str, split: str = "train") -> Conversations:
    """Instruction records from json, jsonl, csv or parquet, or a `datasets` name.

    A record holds `instruction` and `output` and perhaps `input` (Alpaca), or `messages` of `role` and `content`, or `prompt` and
    `completion` (each a text, or a list of messages), or ready `input_ids` and `labels`.

    Raises:
        UserError: names file, row and key: no such file, broken JSON (with its line), a record of none of these forms, a reply missing.
    """
    records, places = [], []
    for number, row in enumerate(read_table(name, split)):
        place = f"{name} row {number}"
        check_record(row, place)
        records.append(dict(row))
        places.append(place)
    if not records:
        raise UserError(f"{name} holds no records")
    return Conversations(records, places)


def check_record(row: Mapping[str, Any], place: str) -> None:
    """Refuse a record of unknown form.

    Raises:
        UserError: names place and key.
    """
    if "input_ids" in row and "labels" in row:
        for key in ("input_ids", "labels"):
            if not isinstance(row[key], list) or not row[key] or any(type(value) is not int for value in row[key]):
                raise UserError(f"{place}: {key!r} must be a list of whole numbers that is not empty")
        if len(row["input_ids"]) != len(row["labels"]):
            raise UserError(f"{place}: {len(row['input_ids'])} input_ids but {len(row['labels'])} labels")
        return
    if "messages" in row:
        _check_messages(row["messages"], f"{place}: messages")
        if not any(message["role"] == "assistant" for message in row["messages"]):
            raise UserError(f"{place}: messages hold no reply (role assistant), so there is nothing to learn")
        return
    for first, second in (("instruction", "output"), ("prompt", "completion")):
        if first in row:
            for key in (first, second, "input") if first == "instruction" else (first, second):
                value = row.get(key, "" if key == "input" else None)
                if first == "prompt" and isinstance(value, list):
                    _check_messages(value, f"{place}: {key}")
                elif not isinstance(value, str) and not (key == "input" and value is None):
                    raise UserError(f"{place}: {key!r} is {'missing' if value is None else type(value).__name__}, not text")
            return
    raise UserError(
        f"{place} has the keys {', '.join(map(str, row))}: instruction and output, messages, prompt and completion, or input_ids and "
        "labels are needed"
    )


def _check_messages(messages: Any, place: str) -> None:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{place} must be a list of messages that is not empty")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise UserError(f"{place}: message {number} needs the texts role and content")
        if message["role"] not in ("system", "user", "assistant"):
            raise UserError(f"{place}: message {number} has the role {message['role']!r}; use system, user or assistant")


def to_messages(record: Mapping[str, Any], style: str) -> list[Message]:
    """A record as messages; instruction and input of an Alpaca record are joined as `style` has them.

    >>> to_messages({"instruction": "Add.", "input": "1 2", "output": "3"}, "phi3")
    [{'role': 'user', 'content': 'Add.\\n1 2'}, {'role': 'assistant', 'content': '3'}]
    """
    if "messages" in record:
        return [{"role": message["role"], "content": message["content"]} for message in record["messages"]]
    if "instruction" in record:
        prompt = record["instruction"]
        if record.get("input"):
            prompt += INPUT_SEPARATORS[style] + record["input"]
        return [{"role": "user", "content": prompt}, {"role": "assistant", "content": record["output"]}]
    messages: list[Message] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = record[key]
        messages += [{"role": role, "content": value}] if isinstance(value, str) else value
    return messages


def set_prompt_style(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Give the tokenizer the chat template of `style`; "tokenizer" keeps its own.

    Raises:
        UserError: no end-of-text token, or an own template that is missing or lacks generation markers.
    """
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token: a model trained with it could never end a reply")
    if style != "tokenizer":
        tokenizer.chat_template = CHAT_TEMPLATES[style]
    if isinstance(tokenizer.chat_template, dict):  # several templates by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        raise UserError("--prompt_style tokenizer: this tokenizer has no chat template; choose alpaca, phi3 or chatml")
    if not re.search(r"\{%-?\s*generation\b", tokenizer.chat_template):
        raise UserError(
            "--prompt_style tokenizer: the tokenizer's chat template has no {% generation %} markers around the assistant's words, so "
            "every label would be masked; add them to the template, or choose alpaca, phi3 or chatml"
        )


def prompt_messages(record: Mapping[str, Any], style: str) -> list[Message]:
    """The messages before the last reply."""
    messages = to_messages(record, style)
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    return messages[:last]


def reply_text(record: Mapping[str, Any], style: str) -> str:
    """The last reply."""
    return next(message["content"] for message in reversed(to_messages(record, style)) if message["role"] == "assistant")


def prompt_text(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, style: str) -> str:
    """What the model is given to answer: the prompt up to where the reply begins."""
    return apply_chat_template(tokenizer, prompt_messages(record, style), tokenize=False, add_generation_prompt=True)


def encode_record(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, style: str, mask_prompt: bool
) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of a record, of equal length, uncut.

    The first label is always -100: nothing comes before it to predict it from, and counting it would make the loss too small.
    """
    if "input_ids" in record:
        return list(record["input_ids"]), [IGNORED, *record["labels"][1:]]
    encoded = apply_chat_template(
        tokenizer, to_messages(record, style), tokenize=True, return_dict=True, return_assistant_tokens_mask=True, verbose=False
    )
    ids, replies = encoded["input_ids"], encoded["assistant_masks"]
    labels = [token if reply or not mask_prompt else IGNORED for token, reply in zip(ids, replies)]
    return ids, [IGNORED, *labels[1:]]


@dataclass
class EncodedConversations:
    """Rows of `input_ids`, `labels` and `length`, and what came of them."""

    rows: datasets.Dataset
    cut: int
    left_out: int

    @property
    def tokens(self) -> int:
        return sum(self.rows["length"])

    @property
    def trainable_tokens(self) -> int:
        return sum(sum(label != IGNORED for label in labels) for labels in self.rows["labels"])

    def __str__(self) -> str:
        trainable, cut = self.trainable_tokens / self.tokens, self.cut / len(self.rows)
        text = f"{len(self.rows):,} rows, {self.tokens:,} tokens, {trainable:.1%} of them trainable, {self.cut:,} rows ({cut:.1%}) cut"
        return text + (f", {self.left_out:,} left out" if self.left_out else "")


def encode_conversations(
    data: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    style: str,
    mask_prompt: bool,
    max_length: int,
    skip_unusable: bool = False,
) -> EncodedConversations:
    """Token rows without padding, cut at `max_length` tokens.

    Args:
        skip_unusable: leave out rows that would be refused, and count them.

    Raises:
        UserError: names the row: an empty reply, no trainable token left, no end-of-text token among the labels.
    """
    table: dict[str, list] = {"input_ids": [], "labels": [], "length": []}
    cut = left_out = 0
    for record, place in bar(zip(data.records, data.places), "tokenizing", "records", len(data)):
        ids, labels = encode_record(record, tokenizer, style, mask_prompt)
        if "input_ids" in record:
            _check_ids(ids, labels, len(tokenizer), place)
        reason = _unusable(record, labels, tokenizer.eos_token_id, style, max_length)
        if reason and not skip_unusable:
            raise UserError(f"{place}: {reason}; mend it, or pass --skip_unusable to leave such rows out")
        if reason:
            left_out += 1
            continue
        cut += len(ids) > max_length
        table["input_ids"].append(ids[:max_length])
        table["labels"].append(labels[:max_length])
        table["length"].append(min(len(ids), max_length))
    if not table["length"]:
        raise UserError(f"{data.places[0]} and all other rows are unusable: nothing is left")
    return EncodedConversations(datasets.Dataset.from_dict(table), cut, left_out)


def _check_ids(ids: list[int], labels: list[int], count: int, place: str) -> None:
    """Ready ids come from elsewhere: one beyond the embedding would end the run in its midst, on a GPU without saying where."""
    for key, values, allowed in (("input_ids", ids, ()), ("labels", labels, (IGNORED,))):
        for value in values:
            if not 0 <= value < count and value not in allowed:
                raise UserError(f"{place}: {key} holds {value}, and the tokenizer's ids are 0 to {count - 1:,}")


def _unusable(record: Mapping[str, Any], labels: list[int], eos_id: int, style: str, max_length: int) -> str | None:
    if "input_ids" not in record:
        if not reply_text(record, style).strip():
            return "the reply is empty, and a model trained on it would learn to say nothing"
        if eos_id not in labels:
            return (
                "no end-of-text token among the labels: the chat template must end a reply with it inside its generation markers"
            )
    if all(label == IGNORED for label in labels[:max_length]):
        return f"no trainable token within {max_length} tokens: the prompt fills them"
    return None


def prompt_key(record: Mapping[str, Any]) -> str:
    """What makes two prompts the same, whatever the prompt style."""
    if "input_ids" in record:
        return str(list(record["input_ids"]))
    return "\x00".join(message["role"] + message["content"].strip() for message in prompt_messages(record, "alpaca"))


def shared_prompts(part: Conversations, other: Conversations) -> list[int]:
    """Indices of the records of `part` whose prompt occurs in `other` too."""
    known = {prompt_key(record) for record in other.records}
    return [i for i, record in enumerate(part.records) if prompt_key(record) in known]


def split_conversations(data: Conversations, fractions: Sequence[float], seed: int | None = None) -> dict[str, Conversations]:
    """Parts of the sizes `fractions` (train, validation, test, adding up to 1), in the order of the file, or shuffled with `seed`.

    As published, train comes first, then test, then validation with what rounding leaves.

    Raises:
        UserError: fractions that do not add up to 1, or a part without records.
    """
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-9 or any(fraction <= 0 for fraction in fractions):
        raise UserError(f"split fractions {', '.join(map(str, fractions))}: three positive numbers that add up to 1 are needed")
    order = range(len(data)) if seed is None else np.random.default_rng(seed).permutation(len(data)).tolist()
    train, test = int(round(fractions[0] * len(data), 6)), int(round(fractions[2] * len(data), 6))
    parts = {"train": order[:train], "validation": order[train + test :], "test": order[train : train + test]}
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"{len(data)} records are too few to split: {name} would have none")
    return {name: data.take(part) for name, part in parts.items()}


def pack_rows(rows: datasets.Dataset, pack_length: int) -> datasets.Dataset:
    """Rows joined into rows of at most `pack_length` tokens, best fit first (Ding et al. 2024), kept apart by `position_ids`.

    Positions restart with each row, which this package's model reads as documents that do not see one another. Each row's first label
    is -100, so that none is predicted from the end of another. A row longer than `pack_length` is not cut but packed alone.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5]], "labels": [[-100, 2], [-100, 4, 5]], "length": [2, 3]})
    >>> pack_rows(rows, 5)[0]["position_ids"], pack_rows(rows, 5)[0]["input_ids"]
    ([0, 1, 2, 0, 1], [3, 4, 5, 1, 2])
    """
    ids, labels, lengths = (rows[name][:] for name in ("input_ids", "labels", "length"))
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # room left: the packs with so much of it
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = next((room for room in range(lengths[i], pack_length + 1) if by_room.get(room)), None)
        if room is None:
            packs.append([])
            number, room = len(packs) - 1, max(pack_length, lengths[i])
        else:
            number = by_room[room].pop()
        packs[number].append(i)
        by_room.setdefault(room - lengths[i], []).append(number)
    return datasets.Dataset.from_dict(
        {
            "input_ids": [[token for i in pack for token in ids[i]] for pack in packs],
            "labels": [[label for i in pack for label in [IGNORED, *labels[i][1:]]] for pack in packs],
            "position_ids": [[position for i in pack for position in range(lengths[i])] for pack in packs],
            "length": [sum(lengths[i] for i in pack) for pack in packs],
        }
    )


class InstructionCollator:
    """Rows of different length to a batch, padded on the right to the longest: `input_ids`, `labels`, `attention_mask`, all (B, T).

    Padding is what lies beyond a row's length; its labels are -100. Labels are taken as they are. `position_ids` of packed rows are padded
    with 0.
    """

    def __init__(self, pad_id: int):
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.pad_id, "labels": IGNORED} | ({"position_ids": 0} if "position_ids" in rows[0] else {})
        batch = {
            name: torch.tensor([list(row[name]) + [value] * (length - len(row[name])) for row in rows])
            for name, value in fill.items()
        }
        batch["attention_mask"] = torch.tensor(
            [[1] * len(row["input_ids"]) + [0] * (length - len(row["input_ids"])) for row in rows]
        )
        return batch
