"""What the tests of converted files share: reference models with large weights, their files, and the comparison with what was converted."""

import torch
from published_layouts import BookGPT, greedy
from tiny_models import assert_equal, randomize
from torch import nn
from transformers import AutoModelForCausalLM

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 61, 64, 32, 4, 2

HEADS_FLAG = ("--config_overrides", f"n_heads={HEADS}")

NANO = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": True, "vocab_size": 61, "dropout": 0.1}


def enlarge(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of standard deviation 0.25, norms around one, no bias zero."""
    randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):  # the book's name of a norm's weight
                parameter.add_(1.0)
    return model.eval()


def book(**arguments) -> BookGPT:
    return enlarge(BookGPT(VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, **arguments))


def save(content, path):
    torch.save(content, path)
    return path


@torch.no_grad()
def check_language_model(folder, reference, vocabulary=VOCABULARY):
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, vocabulary, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    expected = reference(ids)[..., :vocabulary]
    assert expected.abs().max() > 2  # large enough to show errors
    assert_equal(model(ids).logits, expected)
    start = ids[:1, : CONTEXT - 50]
    ours = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=50, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, greedy(reference, start, 50))
    return model
