"""The models of the page: loaded by directory or Hub name, each a language model or a classifier; and text from them, step by step."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..analysis.attention import token_texts
from ..errors import UserError
from ..inference.chat_template import encode_chat
from ..inference.generation import encode_prompts
from ..inference.loading import load_classifier, load_config, load_language_model
from .limits import MAX_NEW_TOKENS, MAX_SECONDS, check_settings, check_text


class TimeIsUp(UserError):
    """A generation took longer than the page allows; what it has written stands."""


@dataclass
class LoadedModel:
    """A model of the page."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_classifier: bool

    @property
    def can_chat(self) -> bool:
        """Whether its tokenizer knows how a conversation is written."""
        return not self.is_classifier and bool(self.tokenizer.chat_template)


def load_model(name: str) -> LoadedModel:
    """By directory or Hub name.

    Raises:
        UserError: it cannot be loaded; says why in one line.
    """
    if not name.strip():
        raise UserError("give the directory or the Hub name of a model")
    architectures = load_config(name).architectures or []
    is_classifier = any("SequenceClassification" in architecture for architecture in architectures)
    return LoadedModel(*(load_classifier(name) if is_classifier else load_language_model(name)), is_classifier)


@dataclass(frozen=True)
class Sampling:
    """Settings of the page; a temperature of 0 takes the most likely token, top_k 0, top_p 1, min_p 0 and penalty 1 do nothing."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises [`UserError`] for a setting out of range."""
        check_settings(vars(self))

    def processors(self) -> LogitsProcessorList:
        """transformers' own, in the order of `generate`."""
        result = LogitsProcessorList()
        if self.repetition_penalty != 1:
            result.append(RepetitionPenaltyLogitsProcessor(float(self.repetition_penalty)))
        if self.temperature > 0:
            result.append(TemperatureLogitsWarper(float(self.temperature)))
            if self.top_k:
                result.append(TopKLogitsWarper(int(self.top_k)))
            if self.top_p < 1:
                result.append(TopPLogitsWarper(float(self.top_p)))
            if self.min_p:
                result.append(MinPLogitsWarper(float(self.min_p)))
        return result


@torch.inference_mode()
def stream_text(
    loaded: LoadedModel, prompt: str | list[int], sampling: Sampling, top: int = 10
) -> Iterator[tuple[str, dict[str, float]]]:
    """The text so far after each new token of a prompt (text, or token ids), and the probabilities of the `top` most
    likely tokens that it was drawn from.

    Raises:
        UserError: a prompt that is too long for the page or for the model.
        TimeIsUp: after `MAX_SECONDS`.
    """
    model: Any = loaded.model
    tokenizer = loaded.tokenizer
    if isinstance(prompt, str):
        ids = encode_prompts([check_text(prompt)], tokenizer, model.device)["input_ids"]
    else:
        ids = torch.tensor([prompt], device=model.device)
    limit = model.config.max_position_embeddings
    if ids.shape[1] >= limit:
        raise UserError(f"the prompt has {ids.shape[1]} tokens, and the model's {limit} positions leave no room for more")
    start, steps = ids.shape[1], min(int(sampling.max_new_tokens), MAX_NEW_TOKENS, limit - ids.shape[1])
    generator = torch.Generator(device=model.device).manual_seed(int(sampling.seed))
    processors, cache, fresh = sampling.processors(), DynamicCache(config=model.config), ids
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    end = time.monotonic() + MAX_SECONDS
    for _ in range(steps):
        if time.monotonic() > end:
            raise TimeIsUp(f"stopped after {MAX_SECONDS:g} s, the longest that this page generates: ask for fewer new tokens")
        logits = model(input_ids=fresh, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        probabilities = processors(ids, logits).softmax(-1)
        fresh = (
            torch.multinomial(probabilities, 1, generator=generator)
            if sampling.temperature > 0
            else probabilities.argmax(-1, True)
        )
        ids = torch.cat((ids, fresh), dim=1)
        likely = probabilities[0].topk(min(top, probabilities.shape[-1]))
        names = token_texts(tokenizer, likely.indices.tolist())
        bars = dict(zip((f"{name} ({id})" for name, id in zip(names, likely.indices.tolist())), likely.values.tolist()))
        yield tokenizer.decode(ids[0, start:], skip_special_tokens=True), bars
        if fresh.item() in ends:
            break


def stream_reply(loaded: LoadedModel, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[str]:
    """The assistant's reply so far, by the tokenizer's chat template; the oldest exchanges go where the history is too long.

    Raises:
        UserError: a message or the template cannot be used; the rest as [`stream_text`].
    """
    for message in messages:
        check_text(message["content"])
    limit = loaded.model.config.max_position_embeddings - int(sampling.max_new_tokens)
    while True:
        prompt = encode_chat(loaded.tokenizer, messages, add_generation_prompt=True).ids
        if len(messages) < 3 or len(prompt) < limit:
            break
        messages = messages[2:]
    for text, _ in stream_text(loaded, prompt, sampling):
        yield text
