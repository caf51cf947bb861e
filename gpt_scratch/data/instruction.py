"""Instruction data to training rows: prompt styles, labels, packing. See `records.py` for the formats of records.

Every record becomes a conversation, every prompt style is a chat template whose `{% generation %}` markers mark the tokens of the
assistant. The template is saved with the tokenizer, so that `pipeline` and servers use the format of training.

Pitfalls that are handled here: the end-of-text token that ends a reply is a label even if it is also the padding token (padding is
identified by length, never by id); labels in the data keep their -100; a template without generation markers would silently mask
every label; packed replies are not predicted from the previous reply and do not attend to it; a special token written inside a
message is encoded as characters; parts of a conversation that a template omits are refused by name; empty replies are not trained on.

Example: style "phi3", one letter per token, `$` is the end-of-text token, the prompt is masked:

    <|user|>\\nHi\\n<|assistant|>:\\nYo$        input_ids
    -100 ...                        Yo$        labels

Source of the styles: Taori et al. 2023 (Alpaca) and Abdin et al. 2024 (Phi-3), in the layouts of *Build a Large Language Model (From
Scratch)*, chapter 7; chatml is OpenAI's, with the tokenizer's own end-of-text token for `<|im_end|>`, and tools, calls, results and
reasoning as Qwen 2.5 and 3 write them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..inference.chat_template import GENERATION, apply_chat_template, encode_chat, omitted_parts
from ..progress import bar
from ..training_conflicts import check_fractions
from .opening import Faults, Reading
from .records import Conversations, Message, empty_replies, normalized, read_records, to_messages

IGNORED = -100

ALPACA_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."

# The tool prompt of Qwen 2.5 and 3, in a system message; calls are lines of JSON in <tool_call>, results are in <tool_response>.
TOOLS_BEFORE = (
    "# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with function signatures within "
    "<tools></tools> XML tags:\\n<tools>"
)
TOOLS_AFTER = (
    "\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML "
    'tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>'
)
_REPLY = "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
CHAT_TEMPLATES = {
    "alpaca": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}{{ '" + ALPACA_PREAMBLE + "' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' }}" + _REPLY + ""
        "{% elif message['role'] == 'system' and not loop.first %}{{ '\\n\\n### System:\\n' + message['content'] }}{% endif %}"
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
        "{% if tools %}{{ '<|im_start|>system\\n' }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}"
        "{% endif %}"
        "{{ '"
        + TOOLS_BEFORE
        + "' }}{% for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}{{ '"
        + TOOLS_AFTER
        + "' + eos_token + '\\n' }}"
        "{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'system' and tools and loop.first %}"
        "{% elif message['role'] == 'tool' %}"
        "{% if loop.first or messages[loop.index0 - 1]['role'] != 'tool' %}{{ '<|im_start|>user' }}{% endif %}"
        "{{ '\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
        "{% if loop.last or messages[loop.index0 + 1]['role'] != 'tool' %}{{ eos_token + '\\n' }}{% endif %}"
        "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}"
        "{% if message['reasoning_content'] %}{{ '<think>\\n' + message['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
        "{{ message['content'] or '' }}"
        "{% if message['tool_calls'] %}{% for call in message['tool_calls'] %}"
        "{% if message['content'] or not loop.first %}{{ '\\n' }}{% endif %}"
        "{{ '<tool_call>\\n{\"name\": ' }}{{ call['function']['name'] | tojson }}{{ ', \"arguments\": ' }}"
        "{{ call['function']['arguments'] | tojson }}{{ '}\\n</tool_call>' }}{% endfor %}{% endif %}"
        "{{ eos_token }}{% endgeneration %}{% if not loop.last %}{{ '\\n' }}{% endif %}"
        "{% else %}{{ message['content'] + eos_token + '\\n' }}{% endif %}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
PROMPT_STYLES = (*CHAT_TEMPLATES, "tokenizer")


def read_conversations(
    name: str,
    split: str = "train",
    reading: Reading | None = None,
    ignore_keys: Sequence[str] = (),
    kept_keys: Sequence[str] = (),
) -> Conversations:
    """Read instruction records from json, jsonl, csv, tsv or parquet, or a `datasets` name.

    A record has `instruction` and `output` and optionally `input`, `system` and `history` (Alpaca), or `messages` of `role` and `content`
    (or ShareGPT's `conversations`), or `prompt` and `completion` (each a string or a list of messages), or `input_ids` and `labels`.

    Raises:
        UserError: names file, rows and keys: a missing file, invalid JSON (with its line), an unknown format, a missing reply, an unknown
            key.
    """
    return read_records(name, normalized, split, reading, ignore_keys, kept_keys)


def set_prompt_style(tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Set the tokenizer's chat template to that of `style`; "tokenizer" keeps its own.

    Raises:
        UserError: no end-of-text token, or with "tokenizer" a template that is missing or lacks generation markers.
    """
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token: a model trained with it could never end a reply")
    if style != "tokenizer":
        tokenizer.chat_template = CHAT_TEMPLATES[style]
    if isinstance(tokenizer.chat_template, dict):  # several templates by name
        tokenizer.chat_template = tokenizer.chat_template.get("default")
    if not tokenizer.chat_template:
        raise UserError("--prompt_style tokenizer: this tokenizer has no chat template; choose alpaca, phi3 or chatml")
    if not GENERATION.search(tokenizer.chat_template):
        raise UserError(
            "--prompt_style tokenizer: the tokenizer's chat template has no {% generation %} markers around the assistant's reply, so "
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
    """The prompt as text, up to the start of the reply."""
    messages, tools = prompt_messages(record, style), record.get("tools")
    return apply_chat_template(tokenizer, messages, tools=tools, tokenize=False, add_generation_prompt=True)


def prompt_ids(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, style: str) -> list[int]:
    """The token ids of [`prompt_text`]; special tokens inside messages are encoded as characters.

    Raises:
        UserError: the template omits a part of the conversation; names it.
    """
    refuse_omissions(record, tokenizer, style)
    return encode_chat(tokenizer, prompt_messages(record, style), record.get("tools"), add_generation_prompt=True).ids


def refuse_omissions(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, style: str) -> None:
    """Refuse a record of which the chat template omits a part.

    Raises:
        UserError: names the omitted parts.
    """
    if left_out := omitted_parts(tokenizer, to_messages(record, style), record.get("tools")):
        keys = dict.fromkeys(part.split(" of message ")[0] for part in left_out if not part.startswith("message "))
        ignore = f", or pass --ignore_keys {' '.join(keys)}" if keys else ""
        raise UserError(
            f"the chat template of --prompt_style {style} omits {', '.join(left_out)}: choose one that includes it, such as the "
            f"model's own (tokenizer){ignore}"
        )


def encode_record(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, style: str, mask_prompt: bool, learn: str = "all"
) -> tuple[list[int], list[int]]:
    """`input_ids` and `labels` of a record, of equal length, not truncated. Replies of weight 0 have no labels.

    Args:
        learn: "all" replies, or only the "last" one, as if the others had weight 0.

    The first label is always -100: no token precedes it, and counting it would make the loss too small.

    Raises:
        UserError: the template omits something, or fails.
    """
    if "input_ids" in record:
        return list(record["input_ids"]), [IGNORED, *record["labels"][1:]]
    refuse_omissions(record, tokenizer, style)
    messages = to_messages(record, style)
    weights = [message.get("weight", 1) for message in messages if message["role"] == "assistant"]
    if learn == "last":
        weights = [0] * (len(weights) - 1) + weights[-1:]
    encoded = encode_chat(
        tokenizer, [{k: v for k, v in message.items() if k != "weight"} for message in messages], record.get("tools")
    )
    if 0 in weights and len(set(encoded.replies) - {-1}) != len(weights):
        raise UserError("the chat template does not mark each reply separately, so weights cannot be applied")
    learned = [not mask_prompt if reply < 0 else weights[reply] != 0 if 0 in weights else True for reply in encoded.replies]
    labels = [token if learn else IGNORED for token, learn in zip(encoded.ids, learned)]
    return encoded.ids, [IGNORED, *labels[1:]]


@dataclass
class EncodedConversations:
    """Rows of `input_ids`, `labels` and `length`, with their statistics."""

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
        text = (
            f"{len(self.rows):,} rows, {self.tokens:,} tokens, {trainable:.1%} trainable, {self.cut:,} rows ({cut:.1%}) truncated"
        )
        return text + (f", {self.left_out:,} left out" if self.left_out else "")


def encode_conversations(
    data: Conversations,
    tokenizer: PreTrainedTokenizerBase,
    style: str,
    mask_prompt: bool,
    max_length: int,
    skip_unusable: bool = False,
    learn: str = "all",
) -> EncodedConversations:
    """Token rows without padding, truncated to `max_length` tokens.

    Args:
        learn: which replies have labels, see [`encode_record`].
        skip_unusable: skip and count invalid rows instead of refusing them.

    Raises:
        UserError: names the row: an empty reply, no trainable token left, no end-of-text token among the labels.
    """
    table: dict[str, list] = {"input_ids": [], "labels": [], "length": []}
    cut, left_out, faults = 0, 0, Faults()
    for record, place in bar(zip(data.records, data.places), "tokenizing", "records", len(data)):
        name, _, number = place.rpartition(" row ")
        try:
            ids, labels = encode_record(record, tokenizer, style, mask_prompt, learn)
        except UserError as error:
            reason: str | None = str(error)
        else:
            if "input_ids" in record:
                _check_ids(ids, labels, len(tokenizer), place)
            reason = _unusable(record, labels, tokenizer.eos_token_id, style, max_length)
        if reason:
            if skip_unusable:
                left_out += 1
            else:
                faults.add(name, "row", number, f"{reason}; fix the row, or pass --skip_unusable to skip such rows")
            continue
        cut += len(ids) > max_length
        table["input_ids"].append(ids[:max_length])
        table["labels"].append(labels[:max_length])
        table["length"].append(min(len(ids), max_length))
    faults.check()
    if not table["length"]:
        raise UserError(f"{data.places[0]} and all other rows are unusable: nothing is left")
    return EncodedConversations(datasets.Dataset.from_dict(table), cut, left_out)


def _check_ids(ids: list[int], labels: list[int], count: int, place: str) -> None:
    """Check token ids in the data: an id beyond the embedding would crash training, on a GPU without a useful message."""
    for key, values, allowed in (("input_ids", ids, ()), ("labels", labels, (IGNORED,))):
        for value in values:
            if not 0 <= value < count and value not in allowed:
                raise UserError(f"{place}: {key} contains {value}, but the tokenizer's ids are 0 to {count - 1:,}")


def _unusable(record: Mapping[str, Any], labels: list[int], eos_id: int, style: str, max_length: int) -> str | None:
    if "input_ids" not in record:
        if empty := empty_replies(to_messages(record, style)):
            where = f" (message {', '.join(map(str, empty))})" if len(to_messages(record, style)) > 2 else ""
            return f"the reply is empty{where}: a model trained on it would learn empty replies"
        if eos_id not in labels:
            return (
                "no end-of-text token among the labels: the chat template must end a reply with it inside its generation markers"
            )
    if all(label == IGNORED for label in labels[:max_length]):
        return f"no trainable token within {max_length} tokens: the prompt is too long"
    return None


def prompt_key(record: Mapping[str, Any]) -> str:
    """A key that is equal for equal prompts, independent of the prompt style."""
    if "input_ids" in record:
        return str(list(record["input_ids"]))
    messages = prompt_messages(record, "alpaca")
    return "\x00".join(message["role"] + message["content"].strip() + str(message.get("tool_calls", "")) for message in messages)


def shared_prompts(part: Conversations, other: Conversations) -> list[int]:
    """Indices of the records of `part` whose prompt also occurs in `other`."""
    known = {prompt_key(record) for record in other.records}
    return [i for i, record in enumerate(part.records) if prompt_key(record) in known]


def split_conversations(data: Conversations, fractions: Sequence[float], seed: int | None = None) -> dict[str, Conversations]:
    """Split into parts of sizes `fractions` (train, validation, test, adding up to 1), in the order of the file, or shuffled with `seed`.

    As in the published recipe, train comes first, then test, then validation with the remainder.

    Raises:
        UserError: fractions that do not add up to 1, or an empty part.
    """
    check_fractions(fractions)
    order = range(len(data)) if seed is None else np.random.default_rng(seed).permutation(len(data)).tolist()
    train, test = int(round(fractions[0] * len(data), 6)), int(round(fractions[2] * len(data), 6))
    parts = {"train": order[:train], "validation": order[train + test :], "test": order[train : train + test]}
    for name, part in parts.items():
        if not len(part):
            raise UserError(f"{len(data)} records are too few to split: {name} would be empty")
    return {name: data.take(part) for name, part in parts.items()}


def pack_rows(rows: datasets.Dataset, pack_length: int) -> datasets.Dataset:
    """Pack rows into rows of at most `pack_length` tokens with best-fit decreasing (Ding et al. 2024), separated by `position_ids`.

    Positions restart with each packed row, so this package's model treats them as documents that do not attend to each other. The first
    label of each is -100, so that it is not predicted from the previous one. A row longer than `pack_length` is not truncated.

    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4, 5]], "labels": [[-100, 2], [-100, 4, 5]], "length": [2, 3]})
    >>> pack_rows(rows, 5)[0]["position_ids"], pack_rows(rows, 5)[0]["input_ids"]
    ([0, 1, 2, 0, 1], [3, 4, 5, 1, 2])
    """
    ids, labels, lengths = (rows[name][:] for name in ("input_ids", "labels", "length"))
    packs: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # free tokens to the packs with that many
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
    """Collates rows of different length, padded on the right to the longest: `input_ids`, `labels`, `attention_mask`, all (B, T).

    Labels of padding are -100, other labels are unchanged. `position_ids` of packed rows are padded with 0.
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
