"""The models of the page, language models and classifiers loaded by directory or Hub name, and streaming generation with them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from transformers import (
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
from ..inference.chat import encode_conversation
from ..inference.generation import encode_prompts, sample_ids
from ..inference.loading import load_classifier, load_config, load_language_model
from ..tokenization.special_tokens import encode_text
from .limits import MAX_CHARACTERS, MAX_NEW_TOKENS, MAX_SECONDS, check_settings, check_text


class TimeIsUp(UserError):
    """A generation took longer than the page allows; the text so far is kept."""


@dataclass
class LoadedModel:
    """A model of the page."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    is_classifier: bool

    @property
    def can_chat(self) -> bool:
        """Whether its tokenizer has a chat template."""
        return not self.is_classifier and bool(self.tokenizer.chat_template)


def load_model(name: str) -> LoadedModel:
    """Load a model by directory or Hub name.

    Raises:
        UserError: it cannot be loaded; says why in one line.
    """
    if not name.strip():
        raise UserError("give the directory or the Hub name of a model")
    architectures = load_config(name).architectures or []
    is_classifier = any("SequenceClassification" in architecture for architecture in architectures)
    return LoadedModel(*(load_classifier(name) if is_classifier else load_language_model(name)), is_classifier)


def text_ids(loaded: LoadedModel, text: str, max_characters: int = MAX_CHARACTERS) -> list[int]:
    """The token ids of a text to display; special tokens written in it are encoded as plain characters, as in prompts.

    Raises:
        UserError: a text of more than `max_characters` characters, or an empty one.
    """
    return encode_text(loaded.tokenizer, check_text(text, max_characters))["input_ids"]


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. Temperature 0 is greedy; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 have no effect."""

    max_new_tokens: int = 100
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise [`UserError`] for a setting out of range."""
        check_settings(vars(self))

    def processors(self) -> LogitsProcessorList:
        """transformers' logits processors, in the order of `generate`."""
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


def stream_text(loaded: LoadedModel, prompt: str, sampling: Sampling, top: int = 10) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the text so far after each new token, and the probabilities of the `top` most likely candidates for that token.

    Raises:
        UserError: a prompt that is too long for the page or the model.
        TimeIsUp: after `MAX_SECONDS`.
    """
    ids = encode_prompts([check_text(prompt)], loaded.tokenizer, loaded.model.device)["input_ids"]
    for text, probabilities in _stream(loaded, ids, sampling):
        likely = probabilities.topk(min(top, len(probabilities)))
        chosen = likely.indices.tolist()
        names = [f"{name} ({id})" for name, id in zip(token_texts(loaded.tokenizer, chosen), chosen)]
        yield text, dict(zip(names, likely.values.tolist()))


def stream_reply(loaded: LoadedModel, messages: list[dict[str, str]], sampling: Sampling) -> Iterator[str]:
    """Yield the assistant's reply so far, with the tokenizer's chat template; the oldest exchanges of a long history are dropped.

    Raises:
        UserError: a message or the template cannot be used; otherwise as [`stream_text`].
    """
    for message in messages:
        check_text(message["content"])
    limit = loaded.model.config.max_position_embeddings - int(sampling.max_new_tokens)
    ids, messages = encode_conversation(loaded.tokenizer, messages, limit)
    check_text("".join(message["content"] for message in messages))
    for text, _ in _stream(loaded, torch.tensor([ids], device=loaded.model.device), sampling):
        yield text


def _stream(loaded: LoadedModel, ids: torch.Tensor, sampling: Sampling) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the text so far and the probabilities for its last token, (V,), within the page's limits."""
    generator = torch.Generator(device=ids.device).manual_seed(int(sampling.seed)) if sampling.temperature > 0 else None
    end = time.monotonic() + MAX_SECONDS
    steps = sample_ids(loaded.model, ids, sampling.processors(), generator)
    for new_ids, probabilities in islice(steps, min(int(sampling.max_new_tokens), MAX_NEW_TOKENS)):
        if time.monotonic() > end and new_ids.shape[1] > 1:
            raise TimeIsUp(f"stopped after {MAX_SECONDS:g} s, the longest that this page generates: ask for fewer new tokens")
        yield loaded.tokenizer.decode(new_ids[0], skip_special_tokens=True), probabilities
