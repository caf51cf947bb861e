"""Sliding windows: every attention function and cache against transformers' Mistral, generation beyond the window, packed documents."""

import pytest
import torch
from safetensors.torch import load_model, save_model
from tiny_models import assert_equal, randomize, tiny_model, token_ids
from transformers import DynamicCache, GenerationConfig, GenerationMixin, MistralConfig, MistralForCausalLM, StaticCache

from gpt_scratch.configuration_gpt_scratch import GPTScratchConfigError

WINDOW, LENGTH = 4, 14  # of two layers, a token sees six before itself


def ours(attention: str = "sdpa", window: int | None = WINDOW):
    return tiny_model("llama", attention=attention, sliding_window=window)


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    """transformers' own model with the same weights."""
    config = MistralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=ours().config.intermediate_size, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, sliding_window=WINDOW, pad_token_id=0, bos_token_id=None,
        eos_token_id=None,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("mistral") / "model.safetensors"
    save_model(ours(), str(path))
    model = MistralForCausalLM(config).eval()
    load_model(model, str(path))
    return model


def padded(side: str) -> torch.Tensor:
    mask = torch.ones(3, LENGTH, dtype=torch.long)
    mask[1, :5] = mask[2, :9] = 0
    return mask if side == "left" else mask.flip(1)


@pytest.mark.parametrize("attention", ["eager", "sdpa", pytest.param("flex_attention", marks=pytest.mark.slow)])
@torch.no_grad()
def test_every_attention_is_mistrals(attention, mistral):
    model, ids = ours(attention), token_ids(3, LENGTH)
    expected = mistral(ids).logits
    assert_equal(model(ids).logits, expected)
    assert (ours(window=None)(ids).logits - expected)[:, WINDOW:].abs().max() > 0.1  # another function
    for side in ("left", "right"):
        mask = padded(side)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        expected = mistral(ids, attention_mask=mask, position_ids=positions).logits
        assert_equal(model(ids, attention_mask=mask).logits[mask.bool()], expected[mask.bool()])


@torch.no_grad()
def test_nothing_outside_of_the_window_counts():
    model, ids = ours(), token_ids(1, LENGTH)
    other = ids.clone()
    other[0, LENGTH - 2 * (WINDOW - 1) - 2] += 1  # one before the first that two layers can reach from the last
    assert torch.equal(model(other).logits[0, -1], model(ids).logits[0, -1])
    other[0, LENGTH - 2 * (WINDOW - 1) - 1] += 1
    assert not torch.equal(model(other).logits[0, -1], model(ids).logits[0, -1])


@torch.no_grad()
def test_packed_documents_are_read_as_if_alone():
    model, ids = ours("eager"), token_ids(1, LENGTH)
    positions = torch.tensor([[*range(8), *range(LENGTH - 8)]])
    packed = model(ids, position_ids=positions).logits
    assert_equal(packed[:, :8], model(ids[:, :8]).logits)
    assert_equal(packed[:, 8:], model(ids[:, 8:]).logits)


def caches(model):
    """Of all keys, of those in the window, and a static one: transformers makes the last two for `generate`."""
    return {
        "all keys": DynamicCache(),
        "window": DynamicCache(config=model.config),
        "static": StaticCache(config=model.config, max_cache_len=LENGTH + 2),
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["all keys", "window", "static"])
@pytest.mark.parametrize("pieces", [(2, 1, 1, 1, 9), (9, 1, 1, 3), (14,), (1,) * 14])
@torch.no_grad()
def test_a_cache_changes_nothing(attention, kind, pieces):
    model, ids, mask = ours(attention), token_ids(3, LENGTH), padded("left")
    expected, cache, start = model(ids, attention_mask=mask).logits, caches(model)[kind], 0
    for size in pieces:
        end = start + size
        part = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache).logits
        real = mask[:, start:end].bool()
        assert_equal(part[real], expected[:, start:end][real])
        start = end
    if kind == "window":
        assert cache.layers[0].keys.shape[2] == WINDOW - 1  # what lies before it is dropped


@pytest.mark.parametrize(
    "settings", [{}, {"cache_implementation": "static", "disable_compile": True}, {"use_cache": False}, {"num_beams": 2}]
)
@torch.no_grad()
def test_generation_beyond_the_window_is_mistrals(settings, mistral):
    model, ids, mask = ours(), token_ids(3, 8), padded("left")[:, -8:]
    mask[2, -3:] = 1
    asked = {"attention_mask": mask, "max_new_tokens": 3 * WINDOW, "do_sample": False, "pad_token_id": 0} | settings
    assert torch.equal(model.generate(ids, **asked), mistral.generate(ids, **asked))


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(GenerationMixin, "generate_batch"), reason="this transformers has no continuous batching")
@torch.no_grad()
def test_continuous_batching_sees_the_window():
    model, prompts = ours(), [token_ids(1, length)[0].tolist() for length in (9, 5, 14)]
    settings = GenerationConfig(
        max_new_tokens=12, do_sample=False, eos_token_id=-1, pad_token_id=0, num_blocks=64, max_batch_tokens=64
    )
    batch = model.generate_batch(inputs=prompts, generation_config=settings, progress_bar=False).values()
    got = [result.generated_tokens for result in sorted(batch, key=lambda result: int(result.request_id.split("_")[-1]))]
    asked = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt, tokens in zip(prompts, got, strict=True):
        start = torch.tensor([prompt])
        alone = model.generate(start, attention_mask=torch.ones_like(start), **asked)
        assert tokens == alone[0, len(prompt) :].tolist()


def test_training_sees_the_window_too():
    model, ids = ours().train(), token_ids(2, LENGTH)
    embedded = model.model.embed_tokens(ids).detach().requires_grad_()
    model(inputs_embeds=embedded).logits[:, -1].sum().backward()
    reached = embedded.grad.abs().sum(-1) > 0
    first = LENGTH - 1 - 2 * (WINDOW - 1)
    assert not reached[:, :first].any() and reached[:, first:].all()


@pytest.mark.parametrize(
    ("value", "reason"), [(0, "at least 1"), (-4, "at least 1"), (2.5, "of type float"), (True, "of type bool")]
)
def test_an_invalid_window_is_refused(value, reason):
    with pytest.raises(GPTScratchConfigError, match=f"sliding_window is {value}.*{reason}"):
        ours(window=value)


@torch.no_grad()
def test_a_bias_of_the_output_head_is_used_saved_and_trained(tmp_path):
    model, ids = tiny_model("gpt2", lm_head_bias=True, loss_implementation="chunked"), token_ids(2, 7)
    hidden = model.model(ids).last_hidden_state
    assert model.lm_head.bias.abs().max() > 0.1
    assert_equal(model(ids).logits, hidden @ model.lm_head.weight.T + model.lm_head.bias)
    model.save_pretrained(tmp_path)
    assert_equal(type(model).from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    with torch.enable_grad():
        loss = model.train()(ids, labels=ids).loss
        assert_equal(
            loss, torch.nn.functional.cross_entropy(model.eval()(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        )
        loss.backward()
    assert model.lm_head.bias.grad.abs().max() > 0
    assert randomize(tiny_model("gpt2", lm_head_bias=False)).lm_head.bias is None
