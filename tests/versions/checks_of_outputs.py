"""Checks of what a forward computes and what it refuses."""

import torch
from case import RELEASE, Case, near, same
from transformers import DynamicCache

CACHE = "cache" if RELEASE >= (5, 24) else "past_key_values"


@torch.no_grad()
def padding(case: Case) -> None:
    """Padding on either side changes no real token's logits."""
    model = case.lm()
    for side in ("left", "right"):
        ids, mask = case.padded(side)
        logits = model(ids, attention_mask=mask).logits
        for i in range(len(case.rows)):
            near(logits[i, mask[i].bool()], case.expected[f"logits.{i}"], f"row {i}, {side} padding")


@torch.no_grad()
def check_cache_argument(case: Case, name: str) -> None:
    """A cache filled in three calls, with padding on the left."""
    model, kept, parts = case.lm(), DynamicCache(), []
    for first, last in ((0, 9), (9, 10), (10, case.ids.shape[1])):
        ids, mask = case.ids[:, first:last], case.mask[:, :last]
        parts.append(model(ids, attention_mask=mask, **{name: kept}, use_cache=True).logits)
    for i, row in enumerate(case.rows):
        near(torch.cat(parts, dim=1)[i, -len(row) :], case.expected[f"logits.{i}"], f"row {i}, {name}=")


@torch.no_grad()
def cache(case: Case) -> None:
    """A cache under the name that this release gives the argument; and one that the model makes and returns."""
    check_cache_argument(case, CACHE)
    model, row = case.lm(), case.rows[0][None]
    made = model(row[:, :-1], use_cache=True)[CACHE]
    same(made.get_seq_length(), row.shape[1] - 1, "length of the cache that the model made")
    near(model(row[:, -1:], **{CACHE: made}).logits[0, 0], case.expected["logits.0"][-1], "with the cache that the model made")


def both_cache_names(case: Case) -> None:
    """Code written for older releases says past_key_values, for newer ones cache: each does the same everywhere."""
    for name in ("past_key_values", "cache"):
        check_cache_argument(case, name)


@torch.no_grad()
def recorded(case: Case) -> None:
    """output_hidden_states and output_attentions (eager): how many, and their values."""
    model = case.lm(attn_implementation="eager")
    for part in (model, model.model):
        output = part(case.rows[0][None], output_hidden_states=True, output_attentions=True)
        same((len(output.hidden_states), len(output.attentions)), (case.layers + 1, case.layers), "how many are recorded")
        for i, hidden in enumerate(output.hidden_states):
            near(hidden[0], case.expected[f"recorded.hidden.{i}"], f"hidden states {i}")
        for i, weights in enumerate(output.attentions):
            near(weights[0], case.expected[f"recorded.attention.{i}"], f"attention weights {i}")
    plain = model(case.rows[0][None])
    same((plain.hidden_states, plain.attentions), (None, None), "recorded without being asked for")


@torch.no_grad()
def packed_rows(case: Case) -> None:
    """Rows packed into one, with positions that restart, do not see one another; with sdpa and eager, with a cache and without."""
    row = torch.cat(case.rows)[None]
    positions = torch.cat([torch.arange(len(part)) for part in case.rows])[None]
    expected = torch.cat([case.expected[f"logits.{i}"] for i in range(len(case.rows))])
    for attention in ("sdpa", "eager"):
        model = case.lm(attn_implementation=attention)
        for use_cache in (False, True):
            logits = model(row, position_ids=positions, use_cache=use_cache).logits[0]
            near(logits, expected, f"{attention}, use_cache={use_cache}")


@torch.no_grad()
def arguments(case: Case) -> None:
    """The last logits alone, embeddings in place of ids, tuples."""
    model, row, expected = case.lm(), case.rows[0][None], case.expected["logits.0"]
    near(model(row, logits_to_keep=1).logits[0], expected[-1:], "logits_to_keep=1")
    near(model(inputs_embeds=model.get_input_embeddings()(row)).logits[0], expected, "inputs_embeds")
    near(model(row, return_dict=False)[0][0], expected, "return_dict=False")


def unknown_argument(case: Case) -> None:
    """An argument that nothing knows is refused by its name."""
    model = case.lm()
    for part in (model, model.model):
        try:
            part(case.rows[0][None], no_such_argument=1)
        except (TypeError, ValueError) as error:
            assert "no_such_argument" in str(error), f"the error does not name the argument: {error}"
        else:
            raise AssertionError(f"{type(part).__name__} takes no_such_argument=1 without a word")


CHECKS = (padding, cache, both_cache_names, recorded, packed_rows, arguments, unknown_argument)
