"""Text generation with transformers' `generate`, for batches of prompts or streamed.

All generation in this package uses [`generate_ids`], or [`sample_ids`] if the distribution of each step is shown. Padding and the limit of
the model's positions are implemented only here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, check_unicode, one_line, printable
from ..ranges import check_ranges
from ..tokenization.special_tokens import encode_text
from .streaming import PrintableStreamer


def encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: torch.device, parse_special_tokens: bool = False
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T), padded on the left.

    Special tokens written in a prompt are encoded as characters, or as tokens with `parse_special_tokens`. An empty prompt becomes the
    end-of-text token, after which the model has learned to start a document.

    Raises:
        UserError: an empty prompt if the tokenizer has no end-of-text token; invalid Unicode.
    """
    for prompt in prompts:
        check_unicode(prompt)
    rows = [encode_text(tokenizer, prompt, split_special_tokens=not parse_special_tokens)["input_ids"] for prompt in prompts]
    if tokenizer.eos_token_id is None and not all(rows):
        raise UserError("an empty prompt needs an end-of-text token to start from, and this tokenizer has none")
    return pad_left([row or [tokenizer.eos_token_id] for row in rows], padding_id(tokenizer), device)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id of the padding token, else of the end-of-text token; `None` if there is neither."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def pad_left(rows: Sequence[Sequence[int]], pad_id: int | None, device: torch.device) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T), of rows of token ids, padded on the left.

    >>> pad_left([[5], [6, 7]], 0, torch.device("cpu"))["input_ids"].tolist()
    [[0, 5], [6, 7]]
    """
    length = max(len(row) for row in rows)
    pad = 0 if pad_id is None else pad_id  # masked, so any id works
    return {
        "input_ids": torch.tensor([[pad] * (length - len(row)) + [*row] for row in rows], device=device),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device),
    }


def remaining_positions(model: PreTrainedModel, tokens: int, what: str = "the prompt") -> int:
    """The number of tokens that the model can generate after `tokens` tokens, at least 1.

    Raises:
        UserError: no positions are left.
    """
    limit = model.config.get_text_config().max_position_embeddings
    if tokens >= limit:
        raise UserError(f"{what} has {tokens:,} tokens, and the model's {limit:,} positions leave no room for more: shorten it")
    return limit - tokens


def generate_ids(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], max_new_tokens: int, temperature: float = 0.0, **settings: Any
) -> torch.Tensor:
    """The new token ids from `model.generate`, (B, up to max_new_tokens), without the prompts.

    Args:
        inputs: `input_ids` and `attention_mask`, (B, T), from [`pad_left`].
        max_new_tokens: maximum number of new tokens; fewer at the end of the model's positions.
        temperature: 0 for greedy decoding (or beam search, with `num_beams`), else sampling.
        settings: other settings of transformers' `GenerationConfig` and `generate`.

    Raises:
        UserError: the prompt leaves no positions for new tokens.
    """
    length = inputs["input_ids"].shape[1]
    settings |= {"max_new_tokens": min(max_new_tokens, remaining_positions(model, length)), "do_sample": temperature > 0}
    settings |= {"temperature": temperature} if temperature > 0 else {}
    return model.generate(**inputs, **settings)[:, length:]  # type: ignore[operator]


@torch.inference_mode()
def sample_ids(
    model: PreTrainedModel, ids: torch.Tensor, processors: LogitsProcessorList, generator: torch.Generator | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Generate token by token, with the distribution of each step, as an iterator.

    Args:
        ids: prompt, (1, T).
        processors: applied to the logits of each step, as in `generate`.
        generator: for sampling; `None` for greedy decoding.

    Yields the new ids so far, (1, n), and the probabilities of the last step, (V,); ends at the end-of-text token or the end of the model's
    positions.

    Raises:
        UserError: the prompt leaves no positions for new tokens.
    """
    start, steps = ids.shape[1], remaining_positions(model, ids.shape[1])
    ends = model.generation_config.eos_token_id
    ends = set(ends if isinstance(ends, list) else [ends])
    cache, fresh = DynamicCache(config=model.config), ids
    for _ in range(steps):
        logits = model(input_ids=fresh, past_key_values=cache, logits_to_keep=1).logits[:, -1].float()
        probabilities = processors(ids, logits).softmax(-1)  # type: ignore[operator]
        likeliest = probabilities.argmax(-1, keepdim=True)
        fresh = likeliest if generator is None else torch.multinomial(probabilities, 1, generator=generator)
        ids = torch.cat((ids, fresh), dim=1)
        yield ids[:, start:], probabilities[0]
        if fresh.item() in ends:
            break


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    seed: int | None = None,
    stream: bool = False,
    stop: Sequence[str] = (),
    parse_special_tokens: bool = False,
    **settings: Any,
) -> list[str]:
    """The continuation of each prompt, without the prompt.

    Args:
        max_new_tokens: maximum number of new tokens; fewer at an end-of-text token, a stop string, or the end of the positions.
        temperature: 0 for greedy decoding (or beam search, with `num_beams`), else sampling.
        seed: the same seed, prompts and settings give the same texts.
        stream: print each text while it is generated, one prompt after the other.
        stop: strings that end a text; the string itself is kept.
        parse_special_tokens: encode special tokens written in the prompts as tokens; otherwise as characters.
        settings: other settings of transformers' `GenerationConfig`: top_k, top_p, min_p, num_beams, repetition_penalty, ...

    Raises:
        UserError: a setting out of range, a prompt that leaves no positions, or settings that `generate` refuses.
    """
    given = {"max_new_tokens": max_new_tokens, "temperature": temperature, **settings}
    check_ranges(given if seed is None else given | {"seed": seed})
    if not prompts:
        return []
    if stream and len(prompts) > 1:
        texts = []
        for prompt in prompts:
            texts += generate_texts(
                model, tokenizer, [prompt], max_new_tokens, temperature, seed, True, stop, parse_special_tokens, **settings
            )
        return texts
    inputs = encode_prompts(prompts, tokenizer, model.device, parse_special_tokens)
    remaining_positions(model, inputs["input_ids"].shape[1])  # before anything is printed
    settings |= {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    if stream:
        print(printable(prompts[0]), end="", flush=True)
        settings["streamer"] = PrintableStreamer(tokenizer)
    if seed is not None:
        from transformers import set_seed  # here, since it imports transformers' trainer and so peft

        set_seed(seed)
    try:
        with torch.inference_mode():
            output = generate_ids(model, inputs, max_new_tokens, temperature, pad_token_id=padding_id(tokenizer), **settings)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    return tokenizer.batch_decode(output, skip_special_tokens=True)
