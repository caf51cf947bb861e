"""Real tokens, their positions, the documents of a packed row, and attention masks, as pure functions of tensors.

Shapes: B batch, T tokens of this call, S tokens seen so far (cache included).

This file is copied into every saved checkpoint, so it imports only torch and the files beside it.
"""

from typing import Any

import torch

from .releases_gpt_scratch import fixed_length, keys_within


def values_are_known(tensor: torch.Tensor) -> bool:
    """Whether Python code may branch on the values of `tensor`: not while tracing, on the meta device or with fake tensors."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return not traced and type(tensor) is torch.Tensor and not tensor.is_meta


def mask_and_positions(
    tokens: torch.Tensor,
    attention_mask: Any,
    position_ids: torch.Tensor | None,
    cache: Any,
    implementation: str | None,
    window: int | None = None,
) -> tuple[Any, torch.Tensor]:
    """The mask in the form that the attention function expects, and position ids (B, T) or (1, T).

    Args:
        tokens: ids (B, T) or embeddings (B, T, C); only their shape and device are used.
        attention_mask: (B, S), nonzero for real tokens, or a prepared mask, which is returned unchanged.
        position_ids: passed by the caller, or `None`.
        cache: keys and values of earlier tokens, or None.
        implementation: name of the attention function, `config._attn_implementation`.
        window: sliding window, the number of tokens that each token attends to, including itself; `None` for all.

    The mask is `None` if plain causal attention suffices. Raises `ValueError` for packed documents that flash attention would mix.
    """
    implementation, T = implementation or "eager", tokens.shape[1]
    prepared = attention_mask is not None and not (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2)
    paged = cache is not None and "flash" in implementation  # the rows of such a cache may differ in length
    if position_ids is not None and (prepared or paged):
        return attention_mask, position_ids
    past_length = 0 if cache is None else cache.get_seq_length()
    columns = torch.arange(T, device=tokens.device) + past_length  # (T,)
    documents = None
    if position_ids is None:
        position_ids = count_positions(columns, attention_mask)
    elif cache is None:
        documents = find_documents(position_ids.expand(tokens.shape[0], -1), attention_mask)
    if prepared:
        return attention_mask, position_ids
    if attention_mask is not None and values_are_known(attention_mask) and bool((attention_mask != 0).all()):
        attention_mask = None
    if "flash" in implementation and documents is not None and (len(documents) > 1 or attention_mask is not None):
        raise ValueError(
            f"{implementation} keeps packed documents apart only in a batch of one row without padding: "
            "flatten the batch into one row, or use sdpa or flex_attention"
        )
    if implementation not in ("eager", "sdpa", "flex_attention"):
        if window is not None and cache is not None and attention_mask is not None:
            count, _ = keys_within(cache, columns)  # a cache may have dropped the keys before the window
            attention_mask = attention_mask[:, -count:]
        return attention_mask, position_ids  # the kernel, or another library's attention such as vLLM's, applies the causal mask
    if window is not None and (cache is not None or window < T):
        key_length, first = (T, 0) if cache is None else keys_within(cache, columns)
        return causal_mask(columns, key_length, attention_mask, documents, implementation, window, first), position_ids
    longest = fixed_length(cache)
    # Without a mask, eager attention and sdpa are causal; flex attention is not.
    if attention_mask is documents is longest is None and (T == 1 or (implementation != "flex_attention" and past_length == 0)):
        return None, position_ids
    key_length = past_length + T if longest is None else longest
    return causal_mask(columns, key_length, attention_mask, documents, implementation), position_ids


def refuse_positions_beyond(limit: int, position_ids: torch.Tensor) -> None:
    """Raise `ValueError` for positions beyond a table of `limit` learned position embeddings."""
    # While tracing, the values are unknown, but the length of the input is known.
    last = int(position_ids.max()) + 1 if values_are_known(position_ids) else position_ids.shape[1]
    if last > limit:
        raise ValueError(
            f"the sequence reaches {last} positions, but this model has learned {limit} (max_position_embeddings): "
            "shorten the input or generate fewer tokens"
        )


def count_positions(columns: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Positions of the new tokens, (B, T) or (1, T): the number of real tokens before each one; leading padding has position 0.

    Args:
        columns: (T,), index of each new token in its row, counting padding and cached tokens.
        attention_mask: (B, S), nonzero for real tokens; a prepared 4-dimensional mask is ignored.

    >>> count_positions(torch.arange(4), torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]])).tolist()
    [[0, 0, 1, 2], [0, 1, 1, 1]]
    """
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, columns]
    return columns.unsqueeze(0)


def find_documents(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """A document number for each token, (B, T); `None` if every row contains a single document.

    The difference between a token's position and the number of real tokens before it is constant within a document, and changes in the
    next one because positions restart.

    Args:
        position_ids: (B, T).
        attention_mask: (B, T), nonzero for real tokens.

    >>> find_documents(torch.tensor([[0, 1, 2, 0, 1]]), None).tolist()
    [[-1, -1, -1, -4, -4]]
    >>> find_documents(torch.tensor([[0, 1, 2, 3, 4]]), None)
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(position_ids)
    documents = position_ids - attention_mask.long().cumsum(-1)
    if not values_are_known(documents):
        return documents  # also correct for a single document
    padding = attention_mask == 0
    highest, lowest = documents.masked_fill(padding, -(2**31)).amax(-1), documents.masked_fill(padding, 2**31).amin(-1)
    return None if bool((highest <= lowest).all()) else documents


def causal_mask(
    columns: torch.Tensor,
    key_length: int,
    attention_mask: torch.Tensor | None = None,
    documents: torch.Tensor | None = None,
    implementation: str = "sdpa",
    window: int | None = None,
    first: int = 0,
) -> Any:
    """The causal mask: each new token attends to real tokens of its own document up to itself, within the window. A padding token also
    attends to itself, so that no row of the softmax is empty.

    Args:
        columns: (T,), index of each new token in its row.
        key_length: S, the number of keys.
        attention_mask: (B, up to S), nonzero for real tokens; later columns are tokens of a static cache that are not generated yet.
        documents: (B, T) from `find_documents`, only if S = T.
        implementation: name of the attention function, `config._attn_implementation`.
        window: sliding window, the number of tokens that each token attends to, including itself; `None` for all.
        first: column of the first key, if a cache has dropped earlier ones.

    Returns:
        A boolean mask (B, 1, T, S), or (1, 1, T, S) if it is the same for all rows; a `BlockMask` for flex attention.

    >>> causal_mask(torch.arange(1, 3), 3, torch.tensor([[0, 1, 1]]))[0, 0].int().tolist()
    [[0, 1, 0], [0, 1, 1]]
    >>> causal_mask(torch.arange(3), 3, window=2)[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """

    def visible(row, query, key):
        column, key = columns[query], key + first
        seen = key <= column
        if window is not None:
            seen = seen & (column - key < window)
        if attention_mask is not None:
            seen = seen & (real[row, key] | (key == column))
        if documents is not None:
            seen = seen & (documents[row, query] == documents[row, key])
        return seen

    if attention_mask is not None:
        real = torch.nn.functional.pad(attention_mask != 0, (0, max(0, first + key_length - attention_mask.shape[1])))
    rows = next((len(x) for x in (attention_mask, documents) if x is not None), 1)
    if implementation == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        return create_block_mask(
            lambda row, head, query, key: visible(row, query, key),
            rows if rows > 1 else None,
            None,
            len(columns),
            key_length,
            device=columns.device,
        )
    row, query, key = (torch.arange(size, device=columns.device) for size in (rows, len(columns), key_length))
    return visible(row[:, None, None], query[:, None], key).expand(rows, -1, -1)[:, None]


def real_span(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """An attention mask from ids, (B, T): 1 from the first to the last token that is not padding; a pad id in between is a token.

    >>> real_span(torch.tensor([[0, 5, 0, 6, 0]]), 0).tolist()
    [[0, 1, 1, 1, 0]]
    """
    real = (input_ids != pad_token_id).long()
    return (real.cumsum(-1) > 0).long() * (real.flip(-1).cumsum(-1).flip(-1) > 0).long()


def last_real_token(attention_mask: torch.Tensor | None, hidden_states: torch.Tensor) -> torch.Tensor:
    """Index of the last real token of each row of `hidden_states`, (B, T, C) -> (B,).

    Raises `ValueError` if it cannot be found: several rows without a 2-dimensional mask (B, S).

    >>> last_real_token(torch.tensor([[1, 1, 1, 0], [0, 0, 1, 1]]), torch.zeros(2, 4, 1)).tolist()
    [2, 3]
    """
    B, T, _ = hidden_states.shape
    if attention_mask is not None and attention_mask.ndim == 2:
        real = attention_mask[:, -T:].to(hidden_states.device) != 0
        return (torch.arange(T, device=hidden_states.device) * real).argmax(-1)
    if B == 1:
        return torch.full((1,), T - 1, device=hidden_states.device)
    raise ValueError(
        f"cannot tell the last token of each of {B} rows: pass a 2-dimensional attention_mask, or input_ids with "
        "config.pad_token_id set"
    )


__all__ = [
    "causal_mask",
    "count_positions",
    "find_documents",
    "last_real_token",
    "mask_and_positions",
    "real_span",
    "refuse_positions_beyond",
    "values_are_known",
]
