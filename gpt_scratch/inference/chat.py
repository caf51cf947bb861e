"""A conversation with a model: the history is truncated to the context length, the reply is streamed."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from ..errors import UserError, check_unicode
from ..ranges import check_ranges
from ..releases_gpt_scratch import CACHE
from .chat_template import encode_chat, omitted_parts
from .decoding import PreallocatedLayer, generation_settings
from .generation import generate_ids, pad_left
from .streaming import PrintableStreamer


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], limit: int, start: Sequence[dict[str, str]] = ()
) -> tuple[list[int], list[dict[str, str]]]:
    """Token ids of a conversation up to the start of the reply; the oldest exchanges are dropped until it has at most `limit` tokens.

    Args:
        messages: alternating user and assistant messages; the last one is always kept.
        limit: maximum number of prompt tokens.
        start: preceding messages that are always kept, such as a system message.

    Returns the ids, more than `limit` only if the last message alone is too long, and the remaining messages.
    """
    while True:
        ids = encode_chat(tokenizer, [*start, *messages], add_generation_prompt=True).ids
        if len(ids) <= limit or len(messages) < 3:
            return ids, messages
        messages = messages[2:]  # a question with its answer


class Prefix:
    """Keys and values of the last turn of a conversation: the next turn computes only those of the tokens after the common prefix.

    Args:
        model: a causal language model.
    """

    def __init__(self, model: PreTrainedModel):
        self.model, self.cache = model, DynamicCache(config=model.config)
        self.ids: list[int] = []  # the tokens whose keys and values are in the cache

    def settings_for(self, ids: list[int]) -> dict[str, Any]:
        """Settings of `generate` for the prompt `ids`: the cache, which contains the longest common prefix with the last turn.

        There are none for a model with layers that cannot return to an earlier token: with a window or a recurrent state. Until
        [`Prefix.keep`], nothing is common with the next turn: generation may be interrupted, with any tokens in the cache.
        """
        common = 0
        while common < min(len(ids) - 1, len(self.ids)) and ids[common] == self.ids[common]:  # the last token gives the logits
            common += 1
        if common < len(self.ids):
            self.cache.crop(common - len(self.ids))  # negative: a number of tokens to remove
        if not common:
            self.cache = DynamicCache(config=self.model.config)
        self.ids = []
        return {CACHE: self.cache} if all(type(layer) in (DynamicLayer, PreallocatedLayer) for layer in self.cache.layers) else {}

    def keep(self, ids: list[int]) -> None:
        """Tokens of a prompt and its reply, of which the last has not been an input of the model."""
        self.ids = ids[: self.cache.get_seq_length()]


class Chat:
    """A model, its chat template and the conversation so far.

    Args:
        model: a causal language model in eval mode.
        tokenizer: with a chat template.
        system: a system message that is kept in every reset, or `None`.
        max_new_tokens: maximum length of a reply; shorter at the end of the model's positions.
        temperature: 0 for greedy decoding, else sampling.
        seed: seed of the sampling, set once.
        prepared: `model` was prepared by `decoding.prepare_for_decoding`.

    Raises:
        UserError: no chat template, or no room for a reply of `max_new_tokens` within the model's positions.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int | None = None,
        prepared: bool = False,
    ):
        if not tokenizer.chat_template:
            raise UserError("this model has no chat template: finetune it with scripts/finetune_instructions.py")
        self.limit = model.config.max_position_embeddings
        if not 1 <= max_new_tokens < self.limit:
            raise UserError(f"max_new_tokens is {max_new_tokens}: it must be between 1 and {self.limit - 1} for this model")
        check_ranges({"temperature": temperature} | ({} if seed is None else {"seed": seed}))
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature, self.prepared = max_new_tokens, temperature, prepared
        self.start = [{"role": "system", "content": system}] if system else []
        if system:
            check_unicode(system)
            if omitted_parts(tokenizer, [*self.start, {"role": "user", "content": "Hello"}]):
                raise UserError("this model's chat template does not support a system message: leave out --system")
        self.messages: list[dict[str, str]] = []
        self.prefix = Prefix(model)
        if seed is not None:
            from transformers import set_seed  # here, since it imports transformers' trainer and so peft

            set_seed(seed)

    def reset(self) -> None:
        """Clear the history, except the system message."""
        self.messages = []

    def prompt_ids(self) -> list[int]:
        """Token ids of the conversation up to the start of the reply; the oldest exchanges are dropped until a reply fits.

        Raises:
            UserError: the last message alone is too long for a reply; it is removed again.
        """
        ids, self.messages = encode_conversation(self.tokenizer, self.messages, self.limit - self.max_new_tokens, self.start)
        if len(ids) >= self.limit:
            self.messages = []
            raise UserError(
                f"the prompt with this message has {len(ids)} tokens, and the model's {self.limit} positions leave no room for a reply: "
                "shorten it"
            )
        return ids

    def reply(self, text: str, stream: bool = True) -> str:
        """The model's reply to `text`, streamed to the terminal with `stream`; both are added to the conversation."""
        check_unicode(text)
        before = self.messages
        self.messages = [*before, {"role": "user", "content": text}]
        try:
            ids, end = self.prompt_ids(), self.tokenizer.eos_token_id
        except UserError:
            if (
                self.messages
            ):  # a message that is too long was removed already; one that the template cannot render must be removed, too
                self.messages = before
            raise
        settings: dict[str, Any] = {"eos_token_id": end, "pad_token_id": end}
        settings |= {"streamer": PrintableStreamer(self.tokenizer)} if stream else {}
        settings |= generation_settings(self.model, min(len(ids) + self.max_new_tokens, self.limit)) if self.prepared else {}
        settings = self.prefix.settings_for(ids) | settings  # a compiled step on a GPU has a cache of its own
        with torch.inference_mode():
            inputs = pad_left([ids], end, self.model.device)
            output = generate_ids(self.model, inputs, self.max_new_tokens, self.temperature, **settings)
        if settings.get(CACHE) is self.prefix.cache:
            self.prefix.keep(ids + output[0].tolist())
        reply = self.tokenizer.decode(output[0], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": reply})
        return reply
