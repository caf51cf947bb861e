"""Tiny models with a fault planted in a subclass, and checkpoints with the reference outputs of models without one."""

from pathlib import Path

import torch
from tiny_models import tiny_model
from transformers.generation import GenerationMixin

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.reference_outputs import reference_outputs, write_reference_outputs


class IgnoresTheCache(GPTScratchForCausalLM):
    """What transformers 5.24 made of the release 0.1.0, whose forward took the new argument `cache` into its **kwargs."""

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, cache=None, **kwargs):
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)

    prepare_inputs_for_generation = GenerationMixin.prepare_inputs_for_generation  # 0.1.0 did not ask what the cache holds


class RefusesTheCache(GPTScratchForCausalLM):
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, cache=None, **kwargs):
        if past_key_values is not None or cache is not None:
            raise TypeError("forward() got an unexpected\nkeyword argument")
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


class IgnoresTheMask(GPTScratchForCausalLM):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return super().forward(input_ids, **kwargs)


class ClassifiesThePadding(GPTScratchForSequenceClassification):
    def forward(self, input_ids, attention_mask=None, **kwargs):
        return super().forward(input_ids, torch.ones_like(attention_mask), **kwargs)


class RoundsWithTheCache(GPTScratchForCausalLM):
    """An error of a cache too small to change a token."""

    def forward(self, input_ids, attention_mask=None, use_cache=None, **kwargs):
        outputs = super().forward(input_ids, attention_mask, use_cache=use_cache, **kwargs)
        outputs.logits = outputs.logits + 1e-3 * bool(use_cache)
        return outputs


def fault(cls: type, style: str) -> GPTScratchForCausalLM:
    return tiny_model(style, cls, max_position_embeddings=64)


def expected(style: str, cls: type = GPTScratchForCausalLM) -> dict:
    return reference_outputs(tiny_model(style, cls, max_position_embeddings=64), "float32")


def directory(folder: Path, model=None) -> Path:
    (model or tiny_model("gpt2", max_position_embeddings=64)).save_pretrained(folder)
    write_reference_outputs(folder)
    return folder
