"""Text from a language model: several prompts at once or streamed one by one, with transformers' `generate`."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import UserError, one_line, printable
from ..ranges import check_ranges
from ..tokenization.special_tokens import encode_text
from .streaming import PrintableStreamer


def encode_prompts(
    prompts: Sequence[str], tokenizer: PreTrainedTokenizerBase, device: torch.device, parse_special_tokens: bool = False
) -> dict[str, torch.Tensor]:
    """`input_ids` and `attention_mask`, (B, T), padded on the left so that all prompts end together.

    Special tokens written in a prompt are its characters, or the tokens with `parse_special_tokens`. An empty prompt becomes the
    end-of-text token: what the model has learned to continue with the start of a document.

    Raises:
        UserError: an empty prompt without such a token, text that is not valid Unicode.
    """
    for prompt in prompts:
        check_unicode(prompt)
    rows = [encode_text(tokenizer, prompt, split_special_tokens=not parse_special_tokens)["input_ids"] for prompt in prompts]
    if tokenizer.eos_token_id is None and not all(rows):
        raise UserError("an empty prompt needs an end-of-text token to start from, and this tokenizer has none")
    rows = [row or [tokenizer.eos_token_id] for row in rows]
    length = max(len(row) for row in rows)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0  # masked, so any id will do
    return {
        "input_ids": torch.tensor([[pad] * (length - len(row)) + row for row in rows], device=device),
        "attention_mask": torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=device),
    }


def check_unicode(text: str) -> None:
    """Refuse half of a surrogate pair, as bytes that are not UTF-8 become in an argument: no tokenizer can express it.

    Raises:
        UserError: names its place.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"the text is not valid Unicode at character {error.start}: {text[error.start]!r}") from error


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
        max_new_tokens: at most; fewer at the end-of-text token, at a stop string, or where the learned positions end.
        temperature: 0 takes the most likely token (or beam, with `num_beams`), else samples.
        seed: the same seed, prompts and settings give the same texts.
        stream: print each text as it grows, one prompt after the other.
        stop: strings that end a text; the string itself is kept.
        parse_special_tokens: special tokens written in the prompts become the tokens; else they are characters.
        settings: any other of transformers' `GenerationConfig`: top_k, top_p, min_p, num_beams, repetition_penalty, ...

    Raises:
        UserError: a setting out of range, a prompt that fills the model's positions, or what `generate` itself refuses.
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
    length = inputs["input_ids"].shape[1]
    limit = model.config.max_position_embeddings
    if length >= limit:
        raise UserError(f"the prompt has {length} tokens, and the model's {limit} positions leave no room for more: shorten it")
    settings |= {"max_new_tokens": min(max_new_tokens, limit - length), "do_sample": temperature > 0}
    settings |= {"temperature": temperature} if temperature > 0 else {}
    settings |= {"stop_strings": list(stop), "tokenizer": tokenizer} if stop else {}
    settings |= {"pad_token_id": tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id}
    if stream:
        print(printable(prompts[0]), end="", flush=True)
        settings["streamer"] = PrintableStreamer(tokenizer)
    if seed is not None:
        set_seed(seed)
    try:
        with torch.inference_mode():
            output = model.generate(**inputs, **settings)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    return tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
