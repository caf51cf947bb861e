"""Generates replies to prompts and compares them with references: exact match and ROUGE-L."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..inference.generation import generate_ids, pad_left, padding_id, remaining_positions


@dataclass
class Reply:
    """Text of a reply without special tokens and surrounding white space, whether it ended by itself, and its length in tokens."""

    text: str
    ended: bool
    tokens: int


def generate_replies(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 256,
    batch_size: int = 8,
    progress: bool = True,
    temperature: float = 0.0,
) -> list[Reply]:
    """Replies to `prompts` (token ids from the chat template), in order: greedy, or sampled at `temperature`.

    Batches hold prompts of similar length, padded on the left. A reply has ended if the end-of-text token came within `max_new_tokens`.

    Raises:
        UserError: a prompt leaves no room within the model's positions; names it.
    """
    lengths = [len(prompt) for prompt in prompts]
    for i, length in enumerate(lengths):
        remaining_positions(model, length, f"prompt {i}")
    pad_id = padding_id(tokenizer)
    order = sorted(range(len(prompts)), key=lambda i: lengths[i])
    replies: dict[int, Reply] = {}
    for start in tqdm(range(0, len(order), batch_size), desc="replies", unit="batch", disable=not progress):
        batch = order[start : start + batch_size]
        inputs = pad_left([prompts[i] for i in batch], pad_id, model.device)
        with torch.inference_mode():
            ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad_id}
            # Sampled from the full distribution, whatever transformers' default top_k is.
            drawing = {"top_k": 0} if temperature > 0 else {}
            output = generate_ids(model, inputs, max_new_tokens, temperature, **ends, **drawing)
        for i, ids in zip(batch, output.tolist()):
            ended = tokenizer.eos_token_id in ids
            # After the end-of-text token, a row of the batch holds only padding.
            ids = ids[: ids.index(tokenizer.eos_token_id)] if ended else ids
            replies[i] = Reply(tokenizer.decode(ids, skip_special_tokens=True).strip(), ended, len(ids))
    return [replies[i] for i in range(len(prompts))]


def exact_match(reply: str, reference: str) -> bool:
    """Whether reply and reference are equal, ignoring case and surrounding white space."""
    return reply.strip().lower() == reference.strip().lower()


def rouge_l(reply: str, reference: str) -> float:
    """ROUGE-L F-measure (Lin 2004), as Google's `rouge_score` computes it without stemming.

    Words are runs of a-z and 0-9 in lower case. 0 if either text has none.

    >>> rouge_l("the cat sat", "The cat, it sat.")  # precision 3/3, recall 3/4
    0.8571428571428571
    """
    words, expected = (re.findall(r"[a-z0-9]+", text.lower()) for text in (reply, reference))
    row = [0] * (len(expected) + 1)  # length of the longest common subsequence of words so far and expected[:j]
    for word in words:
        diagonal = 0
        for j, other in enumerate(expected, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    common = row[-1]
    if common == 0:
        return 0.0
    precision, recall = common / len(words), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def score_replies(replies: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact-match rate and mean ROUGE-L over all replies, including empty ones."""
    return {
        "exact_matches": sum(map(exact_match, replies, references)),
        "rouge_l": sum(map(rouge_l, replies, references)) / len(replies),
        "empty_replies": sum(not reply.strip() for reply in replies),
    }
