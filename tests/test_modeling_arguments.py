"""Nothing that `forward` is given is dropped: both names of the cache, unknown names, contradictions, and what `generate` passes.

transformers 5.24 renamed `past_key_values` to `cache`. A forward that let the new name fall into **kwargs saw each token without its
past, and generated wrong text without an error.
"""

import pytest
import torch
from tiny_models import assert_equal, tiny_model, token_ids
from transformers import DynamicCache

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, GPTScratchModel
from gpt_scratch.releases_gpt_scratch import CACHE

STYLES = pytest.mark.parametrize("style", ["gpt2", "llama"])
CLASSES = pytest.mark.parametrize("cls", [GPTScratchModel, GPTScratchForCausalLM, GPTScratchForSequenceClassification])


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@STYLES
@CLASSES
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_by_either_name(style, cls, name):
    model, ids, cache = tiny_model(style, cls=cls), token_ids(1, 9), DynamicCache()
    first = model(ids[:, :6], **{name: cache})
    assert first[CACHE] is cache and cache.get_seq_length() == 6
    assert_equal(model(ids[:, 6:], **{name: cache})[0][0, -1], model(ids)[0][0, -1])


@CLASSES
def test_two_caches_are_refused(cls):
    with pytest.raises(ValueError, match="past_key_values and cache are two names of one argument"):
        tiny_model("gpt2", cls=cls)(token_ids(1, 3), past_key_values=DynamicCache(), cache=DynamicCache())


@CLASSES
@pytest.mark.parametrize("name", ["memory", "token_type_ids", "past_keys", "sliding_window", "output_router_logits"])
def test_an_unknown_argument_is_refused_by_name(cls, name):
    with pytest.raises(TypeError, match=rf"forward\(\) got an unexpected argument {name}"):
        tiny_model("gpt2", cls=cls)(token_ids(1, 3), **{name: DynamicCache()})


@CLASSES
def test_earlier_tokens_in_the_mask_need_a_cache(cls):
    """What is left of a decoding step whose cache was lost on the way."""
    model, mask = tiny_model("llama", cls=cls), torch.ones(1, 9, dtype=torch.long)
    for prepared in (mask, torch.ones(1, 1, 1, 9, dtype=torch.bool)):
        with pytest.raises(ValueError, match="attention_mask covers 9 tokens, but 1 are given and no cache holds the others"):
            model(token_ids(1, 1), attention_mask=prepared, position_ids=torch.tensor([[8]]))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"cu_seq_lens_q": torch.tensor([0, 2, 4])}, "cu_seq_lens_q is given without position_ids"),
        ({"seq_idx": torch.tensor([[0, 0, 1, 1]])}, "seq_idx is given without position_ids"),
        ({"is_causal": False}, "is_causal is False"),
        ({"output_attentions": True}, 'sdpa keeps no attention weights: set attn_implementation="eager"'),
    ],
)
def test_contradictions_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        tiny_model("llama")(token_ids(1, 4), **settings)


# ------------------------------------------------------------------------ a `generate` that calls the cache by another name


class Renamed:
    """`generate` of a release to come: what it hands to `forward` as the cache has the name `to`."""

    to: str

    def prepare_inputs_for_generation(self, *args, **kwargs):
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        if CACHE in inputs:
            inputs[self.to] = inputs.pop(CACHE)
        return inputs


def generate(cls, style: str = "llama", **attributes) -> list[int]:
    model = tiny_model(style, tie_word_embeddings=False)
    model.__class__ = type(cls.__name__, (cls, GPTScratchForCausalLM), attributes)
    return model.generate(token_ids(1, 5), max_new_tokens=6, do_sample=False)[0].tolist()


@STYLES
@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_generate_with_the_names_of_today(style, name):
    expected = tiny_model(style, tie_word_embeddings=False).generate(
        token_ids(1, 5), max_new_tokens=6, do_sample=False, use_cache=False
    )
    assert generate(Renamed, style, to=name) == expected[0].tolist()


def test_generate_with_an_unknown_name_of_the_cache():
    with pytest.raises(TypeError, match=r"forward\(\) got an unexpected argument memory"):
        generate(Renamed, to="memory")


class Forgetful:
    """A forward that ignores the cache, as release 0.1.0 did on transformers 5.24."""

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, cache=None, past_key_values=None, **kwargs):
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)


def test_generate_with_a_cache_that_is_lost_on_the_way():
    with pytest.raises(ValueError, match=r"continues with 1 of 7 tokens, but the cache holds 1 of the others: transformers 5\."):
        generate(Forgetful)


def test_one_new_token_and_no_cache_is_refused_before_forward():
    with pytest.raises(ValueError, match="continues with 1 of 5 tokens, but the cache holds 0 of the others"):
        tiny_model("llama").prepare_inputs_for_generation(token_ids(1, 5), next_sequence_length=1)
