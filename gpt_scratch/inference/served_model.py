"""A model as a server uses it: its generation can be ended from outside, stays within the positions, and fails with one line.

The server's handlers call `model.generate(...)` and `tokenizer.apply_chat_template(...)`; both are replaced here on the loaded objects,
so that it works for every architecture.
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
from .decoding import compiled_generation, prepare_for_decoding
from .generation import remaining_positions

logger = logging.getLogger("gpt_scratch.serving")

# Settings taken from a model's own generation_config.json: none of them may make one request as expensive as a thousand.
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

# Replaced by the server's own: not reported.
HARMLESS = {"_from_model_config", "transformers_version", "max_new_tokens", "max_length"}
HARMLESS |= {"use_cache", "output_attentions", "output_hidden_states"}


class GenerationEnded(Exception):
    """Ended from outside; the message is the reason."""


class ModelFailed(Exception):
    """The model failed, through no fault of the request; the details are in the server's log."""


@dataclass
class Generation:
    """The one request that is being answered."""

    sample: bool | None = None  # None: as the model's own settings say
    ended: str | None = None  # the reason, once it must end
    error: Exception | None = None  # the failure, if any
    started: float = field(default_factory=time.monotonic)


class ServedModel:
    """Holds the current [`Generation`] and stands between the server's handlers and a loaded model.

    Args:
        weights: compile the decoding step, with weights kept so: see `decoding.prepare_for_decoding`.
    """

    def __init__(self, model: PreTrainedModel, weights: str | None = None):
        self.model, self.compiled = model, weights is not None
        self.current = Generation()
        if weights is not None:
            prepare_for_decoding(model, weights)
        self.generate_unbounded = model.generate
        self.ignored = _keep_harmless_settings(model)
        model.generate = self.generate

    def generate(self, inputs: Any = None, generation_config: Any = None, **kwargs: Any) -> Any:
        """`model.generate` until the model's positions end, or [`Generation.ended`] is set; a failure is kept in [`Generation.error`].

        Raises:
            UserError: the prompt fills the positions.
            GenerationEnded: it was ended from outside.
            ModelFailed: any other failure; it is logged.
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
        # In place: the handler compares with it to tell a finished reply from one that was cut.
        generation_config.max_new_tokens = min(generation_config.max_new_tokens, left)
        if current.sample is not None:
            generation_config.do_sample = current.sample
        criteria: list[StoppingCriteria] = [_EndedFromOutside(current)]
        stops, generation_config.stop_strings = generation_config.stop_strings, None
        if stops:
            criteria.append(_StopStrings(kwargs["tokenizer"], stops, ids.shape[1]))
        if self.compiled:
            kwargs |= compiled_generation(self.model, ids.shape[1] + generation_config.max_new_tokens)
        try:
            return self.generate_unbounded(
                inputs, generation_config=generation_config, stopping_criteria=StoppingCriteriaList(criteria), **kwargs
            )
        except GenerationEnded:
            raise
        except Exception as error:
            logger.exception("the model failed")
            raise ModelFailed(f"the model could not answer ({type(error).__name__})") from None


class BoundedTemplate:
    """Stands in for `tokenizer.apply_chat_template`: rendered within the limits of `chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = copy.copy(tokenizer)  # whose own method is not replaced
        tokenizer.apply_chat_template = self
        tokenizer.split_special_tokens = True  # prompts of /v1/completions: special tokens in them are characters

    def try_out(self) -> None:
        """Render once, which starts the process for it; a template that fails is named on stderr, and completions still work."""
        try:
            self([{"role": "user", "content": "Hello"}])
        except UserError as error:
            print(f"/v1/chat/completions will not answer: {error}", file=sys.stderr)

    def __call__(self, messages: list[dict[str, Any]], **settings: Any) -> Any:
        """`input_ids` and `attention_mask` of the conversation, (1, T).

        Raises:
            UserError: the tokenizer has no template, or it cannot be rendered.
        """
        if not self.tokenizer.chat_template:
            raise UserError("this model has no chat template: ask it by /v1/completions")
        tools = settings.get("tools")
        uses_tools = tools or any(message["role"] == "tool" or message.get("tool_calls") for message in messages)
        if uses_tools and (left_out := omitted_parts(self.tokenizer, messages, tools)):
            raise UserError(f"this model's chat template leaves out {', '.join(left_out)}: ask it without")
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
    """Ends where the text holds one of the strings.

    transformers' own compares every token of the vocabulary with every string first, which takes seconds of each request.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: list[str], prompt_tokens: int):
        self.tokenizer, self.stops, self.prompt_tokens = tokenizer, stops, prompt_tokens
        self.window = max(len(stop.encode()) for stop in stops) + 8  # a token has at least one byte

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        start = max(self.prompt_tokens, input_ids.shape[1] - self.window)
        text = self.tokenizer.decode(input_ids[0, start:])
        return input_ids.new_full((input_ids.shape[0],), any(stop in text for stop in self.stops), dtype=bool)


def _keep_harmless_settings(model: PreTrainedModel) -> list[str]:
    """Give the model a generation configuration of nothing but [`KEPT`]; returns the names of the settings it loses."""
    own = model.generation_config.to_diff_dict()
    model.generation_config = GenerationConfig(**{name: own[name] for name in KEPT if name in own})
    if model.generation_config.pad_token_id is None:
        ends = model.generation_config.eos_token_id
        model.generation_config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return sorted(own.keys() - set(KEPT) - HARMLESS)
