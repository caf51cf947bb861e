"""Checks of `generate`: several prompts of different lengths, padded on the left."""

import torch
from case import Case, same
from checks_of_outputs import cache, padding

TOP_K = 4


def new_tokens(case: Case, model, **settings) -> list[list[int]]:
    """What follows each row of the padded batch."""
    output = model.generate(case.ids, attention_mask=case.mask, **settings)
    return output[:, case.ids.shape[1] :].tolist()


def greedy(case: Case) -> None:
    """The most likely tokens: all rows at once, each alone, and without a cache."""
    model, expected = case.lm(), case.expected["greedy"]
    settings = {"max_new_tokens": expected.shape[1], "do_sample": False}
    same(new_tokens(case, model, **settings), expected.tolist(), "padded rows")
    same(new_tokens(case, model, use_cache=False, **settings), expected.tolist(), "without a cache")
    for i, row in enumerate(case.rows):
        alone = model.generate(row[None], attention_mask=torch.ones_like(row[None]), **settings)[0, len(row) :]
        same(alone.tolist(), expected[i].tolist(), f"row {i} alone")


def beams(case: Case) -> None:
    """Beam search: all beams of each row, best first. The end-of-text token is left out, as in the reference."""
    expected = case.expected["beams"]
    rows, number, length = expected.shape
    settings = {"num_beams": number, "num_return_sequences": number, "max_new_tokens": length, "min_new_tokens": length}
    found = new_tokens(case, case.lm(), do_sample=False, **settings)
    same(found, expected.reshape(rows * number, length).tolist(), "beams")


@torch.no_grad()
def sampling(case: Case) -> None:
    """Each token drawn is one of the TOP_K likeliest by a forward without cache and padding; a padded row draws as it does alone."""
    model = case.lm()
    settings = {"do_sample": True, "top_k": TOP_K, "temperature": 2.0, "max_new_tokens": 8, "min_new_tokens": 8}
    torch.manual_seed(0)
    drawn = new_tokens(case, model, **settings)
    for i, row in enumerate(case.rows):
        text = torch.cat((row, torch.tensor(drawn[i])))
        logits = model(text[None, :-1], use_cache=False).logits[0, len(row) - 1 :]
        logits[:, case.eos] = -torch.inf
        ranks = (logits > logits.gather(-1, text[len(row) :, None])).sum(-1)
        assert ranks.max() < TOP_K, f"row {i}: drawn tokens have ranks {ranks.tolist()}, expected less than {TOP_K}"
    assert drawn != [row[:8] for row in case.expected["greedy"].tolist()], "only the likeliest tokens were drawn"
    shortest = min(range(len(case.rows)), key=lambda i: len(case.rows[i]))
    outputs = []
    for ids, mask in ((case.ids[shortest], case.mask[shortest]), (case.rows[shortest], torch.ones_like(case.rows[shortest]))):
        torch.manual_seed(1)
        outputs.append(model.generate(ids[None], attention_mask=mask[None], **settings)[0, len(ids) :].tolist())
    same(outputs[0], outputs[1], "a padded row and the same row alone, with one seed")


def static_cache(case: Case) -> None:
    """A cache of fixed size."""
    expected = case.expected["greedy"]
    settings = {"max_new_tokens": expected.shape[1], "do_sample": False, "cache_implementation": "static"}
    same(new_tokens(case, case.lm(), **settings), expected.tolist(), "padded rows")


def sliding_window(case: Case) -> None:
    """A model whose layers attend to few tokens, in eager and sdpa, padded, with a cache in parts, and generating beyond the window."""
    if case.style != "llama_like":
        return
    windowed = Case(case.root, "windowed_like")
    for attention in ("sdpa", "eager"):
        windowed.compare_logits(windowed.lm(attn_implementation=attention))
    for check in (padding, cache, greedy, static_cache):
        check(windowed)


CHECKS = (greedy, beams, sampling, static_cache, sliding_window)
