"""A conversation with a model in the terminal: history cut to the context, the reply streamed."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import UserError
from ..ranges import check_ranges
from .chat_template import encode_chat, unsaid_parts
from .decoding import compiled_generation
from .generation import check_unicode
from .streaming import PrintableStreamer


class Chat:
    """A model, its chat template and what was said.

    Args:
        model: a causal language model in eval mode.
        tokenizer: with a chat template.
        system: a system message that stays through every reset, or None.
        max_new_tokens: of a reply; less where the model's positions end.
        temperature: 0 takes the most likely token, else samples.
        seed: of the sampling, set once.
        compiled: the decoding step is compiled; for a model that went through `decoding.prepare_for_decoding`.

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
        compiled: bool = False,
    ):
        if not tokenizer.chat_template:
            raise UserError("this model has no chat template: finetune it with scripts/finetune_instructions.py")
        self.limit = model.config.max_position_embeddings
        if not 1 <= max_new_tokens < self.limit:
            raise UserError(f"max_new_tokens is {max_new_tokens}: it must be between 1 and {self.limit - 1} for this model")
        check_ranges({"temperature": temperature} | ({} if seed is None else {"seed": seed}))
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.temperature, self.compiled = max_new_tokens, temperature, compiled
        self.start = [{"role": "system", "content": system}] if system else []
        if system:
            check_unicode(system)
            if unsaid_parts(tokenizer, [*self.start, {"role": "user", "content": "Hello"}]):
                raise UserError("this model's chat template has no place for a system message: leave out --system")
        self.messages: list[dict[str, str]] = []
        if seed is not None:
            set_seed(seed)

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = []

    def prompt_ids(self) -> list[int]:
        """Token ids of the conversation up to where the reply begins; the oldest exchanges are forgotten until a reply fits.

        Raises:
            UserError: the last message alone leaves no room for a reply; it is taken back.
        """
        while True:
            ids = encode_chat(self.tokenizer, self.start + self.messages, add_generation_prompt=True).ids
            if len(ids) + self.max_new_tokens <= self.limit:
                return ids
            if len(self.messages) == 1:
                self.messages.pop()
                raise UserError(
                    f"this message makes a prompt of {len(ids)} tokens, and {self.limit} positions leave no room for a reply of "
                    f"{self.max_new_tokens}: shorten it"
                )
            del self.messages[:2]  # a question with its answer

    def say(self, text: str, stream: bool = True) -> str:
        """The model's reply to `text`, printed as it grows with `stream`; both join the conversation."""
        check_unicode(text)
        self.messages.append({"role": "user", "content": text})
        try:
            inputs = torch.tensor([self.prompt_ids()], device=self.model.device)
        except UserError:  # a message that the template cannot write must not stay in the conversation
            self.messages = [message for message in self.messages if message["content"] is not text]
            raise
        settings: dict[str, Any] = {"do_sample": self.temperature > 0}
        settings |= {"temperature": self.temperature} if self.temperature > 0 else {}
        settings |= {"streamer": PrintableStreamer(self.tokenizer)} if stream else {}
        settings |= compiled_generation(self.model, inputs.shape[1] + self.max_new_tokens) if self.compiled else {}
        with torch.inference_mode():
            output = self.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=self.max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.eos_token_id,
                **settings,
            )
        reply = self.tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True).strip()
        self.messages.append({"role": "assistant", "content": reply})
        return reply
