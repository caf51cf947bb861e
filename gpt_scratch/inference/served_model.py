"""A model for the server: generation can be stopped externally, stays within the positions, and fails with a one-line error.

The server's handlers call `model.generate(...)` and `tokenizer.apply_chat_template(...)`; both are replaced on the loaded objects, so that
this works for every architecture.
"""

import copy
import logging
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    BatchEncoding,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from ..errors import UserError
from .chat_template import encode_chat, omitted_parts
from .decoding import generation_settings, prepare_as_asked
from .generation import remaining_positions

logger = logging.getLogger("gpt_scratch.serving")

# Settings kept from the model's generation_config.json: none of them can make a request much more expensive.
KEPT = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
)

# Overridden by the server: not reported as ignored.
HARMLESS = {"_from_model_config", "transformers_version", "max_new_tokens", "max_length"}
HARMLESS |= {"use_cache", "output_attentions", "output_hidden_states"}


class GenerationEnded(Exception):
    """Generation was stopped externally; the message is the reason."""


class ModelFailed(Exception):
    """The model failed, not because of the request; the details are in the server's log."""


@dataclass
class Generation:
    """The state of the current request."""

    sample: bool | None = None  # None: by the model's generation settings
    ended: str | None = None  # the reason, if it must stop
    error: Exception | None = None  # the failure, if any
    started: float = field(default_factory=time.monotonic)


class ServedModel:
    """Wraps a loaded model for the server's handlers, with the current [`Generation`].

    Args:
        weights: format of the weights, for faster generation: see `decoding.prepare_as_asked`.
    """

    def __init__(self, model: PreTrainedModel, weights: str | None = None):
        self.model, self.current = model, Generation()
        self.prepared = prepare_as_asked(model, weights)
        self.generate_unbounded = model.generate
        self.ignored = _keep_harmless_settings(model)
        model.generate = self.generate

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """`model.generate` up to the model's positions, or until [`Generation.ended`] is set; failures are stored in [`Generation.error`].

        Raises:
            UserError: the prompt leaves no positions.
            GenerationEnded: it was stopped externally.
            ModelFailed: any other failure, which is logged.
        """
        current = self.current
        try:
            return self._generate(current, inputs, generation_config, **kwargs)
        except Exception as error:
            current.error = error
            raise

    def _generate(self, current: Generation, inputs: Any, generation_config: Any, **kwargs: Any) -> Any:
        ids = inputs if inputs is not None else kwargs["input_ids"]
        left = remaining_positions(self.model, ids.shape[1], "the request")
        if ids.shape[1] == 0:
            raise UserError("the request has no tokens: give a text to continue")
        # In place: the handler compares with it to distinguish finished and truncated replies.
        generation_config.max_new_tokens = min(generation_config.max_new_tokens, left)
        if current.sample is not None:
            generation_config.do_sample = current.sample
        criteria: list[StoppingCriteria] = [_EndedFromOutside(current)]
        stops, generation_config.stop_strings = generation_config.stop_strings, None
        if stops:
            criteria.append(_StopStrings(kwargs["tokenizer"], stops, ids.shape[1]))
        if self.prepared:
            kwargs |= generation_settings(self.model, ids.shape[1] + generation_config.max_new_tokens)
        try:
            return self.generate_unbounded(
                inputs, generation_config=generation_config, stopping_criteria=StoppingCriteriaList(criteria), **kwargs
            )
        except GenerationEnded:
            raise
        except Exception as error:
            logger.exception("the model failed")
            raise ModelFailed(f"the model failed ({type(error).__name__})") from None


class BoundedTemplate:
    """Replacement for `tokenizer.apply_chat_template` with the limits of `chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = copy.copy(tokenizer)  # keeps the original method
        tokenizer.apply_chat_template = self
        tokenizer.split_special_tokens = True  # special tokens in prompts of /v1/completions are encoded as characters

    def try_out(self) -> None:
        """Render once, which starts the process; if the template fails, print a warning: only /v1/completions works then."""
        try:
            self([{"role": "user", "content": "Hello"}])
        except UserError as error:
            print(f"/v1/chat/completions is not available: {error}", file=sys.stderr)

    def __call__(self, messages: list[dict[str, Any]], **settings: Any) -> Any:
        """`input_ids` and `attention_mask` of the conversation, (1, T).

        Raises:
            UserError: the tokenizer has no template, or it cannot be rendered.
        """
        if not self.tokenizer.chat_template:
            raise UserError("this model has no chat template: use /v1/completions")
        tools = settings.get("tools")
        uses_tools = tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        if uses_tools and (left_out := omitted_parts(self.tokenizer, messages, tools)):
            raise UserError(f"this model's chat template does not support {', '.join(left_out)}: remove it from the request")
        ids = torch.tensor([encode_chat(self.tokenizer, messages, tools, add_generation_prompt=True).ids])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


class _EndedFromOutside(StoppingCriteria):
    def __init__(self, generation: Generation):
        self.generation = generation

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        if self.generation.ended is not None:
            raise GenerationEnded(self.generation.ended)
        return input_ids.new_zeros(input_ids.shape[0], dtype=bool)


class _StopStrings(StoppingCriteria):
    """Stops when the text contains one of the strings.

    transformers' own class first compares every token of the vocabulary with every string, which takes seconds per request.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: list[str], prompt_tokens: int):
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, stops, prompt_tokens
        self.window = max(len(stop.encode()) for stop in stops) + 8  # a token has at least one byte

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        start = max(self.prompt_tokens, input_ids.shape[1] - self.window)
        text = self.tokenizer.decode(input_ids[0, start:])
        return input_ids.new_full((input_ids.shape[0],), any(stop in text for stop in self.stops), dtype=bool)


def _keep_harmless_settings(model: PreTrainedModel) -> list[str]:
    """Reduce the model's generation configuration to [`KEPT`]; returns the names of the removed settings."""
    own = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig(**{name: own[name] for name in KEPT if name in own})
    if model.generation_config.pad_token_id is None:
        ends = model.generation_config.eos_token_id
        model.generation_config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return sorted(own.keys() - set(KEPT) - HARMLESS)
