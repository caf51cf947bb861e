"""A recognized checkpoint: its tensors, weight map, configuration and tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_gpt_scratch import GPTScratchConfig
from ..errors import UserError, one_line
from ..inference.loading import check_rows, check_sizes, load_tokenizer
from ..tokenization.gpt2 import load_gpt2_tokenizer
from ..tokenization.nanogpt_meta import read_meta_pkl
from .sources import Source
from .weight_maps import WeightMap

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
GENERATION_IDS = (
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "force_words_ids",
    "sequence_bias",
)  # tokens, or lists of them, in generation_config.json
PUBLISHED_HEADS = {768: 12, 1024: 16, 1280: 20, 1600: 25}  # GPT-2's four sizes: n_embd to n_head (Radford et al. 2019)


@dataclass
class Options:
    """Options of the command line, for settings that a file does not contain."""

    config_overrides: dict[str, Any] = field(default_factory=dict)
    lora_alpha: float | None = None
    lora_scaling: str | None = None
    tokenizer: str | None = None


@dataclass
class Checkpoint:
    """A recognized checkpoint, ready to be converted.

    head: "lm" or "classifier".
    sizes_from: the sizes and where they come from, for errors about shapes.
    reference: builds transformers' model with the same weights; `None` if transformers has no class for the format.
    """

    source: Source
    weight_map: WeightMap
    config: GPTScratchConfig
    head: str
    sizes_from: str
    tokenizer: PreTrainedTokenizerBase | None = None
    generation_config: GenerationConfig | None = None
    notes: list[str] = field(default_factory=list)
    reference: Callable[[], PreTrainedModel] | None = None
    format: str = ""
    reason: str = ""


def build_config(values: dict[str, Any], overrides: dict[str, Any]) -> GPTScratchConfig:
    """Build a configuration from the checkpoint's settings and the user's overrides.

    Raises:
        UserError: an invalid value.
    """
    try:
        check_sizes(values | overrides)
        return GPTScratchConfig(**values | overrides)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(f"configuration: {one_line(error)}") from error


def open_tokenizer(name: str, config: GPTScratchConfig) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a directory, the Hub or nanoGPT's `meta.pkl`.

    Raises:
        UserError: it cannot be loaded, or has more tokens than the model.
    """
    if (Path(name) / "encoder.json").is_file():
        tokenizer: PreTrainedTokenizerBase = load_gpt2_tokenizer(name, model_max_length=config.max_position_embeddings)
    elif name.endswith(".pkl"):
        tokenizer = read_meta_pkl(Path(name), config.max_position_embeddings)
    else:
        tokenizer = load_tokenizer(name)
    check_rows(tokenizer, config, name)
    return tokenizer


def join_tokenizer(checkpoint: Checkpoint, has_special_ids: bool) -> None:
    """Synchronize the special tokens and the maximum length of tokenizer, configuration and generation settings.

    The pad token is the configuration's, or else the end-of-text token: padding is identified by the attention mask, never by its id.

    Args:
        checkpoint: with a tokenizer.
        has_special_ids: whether the source's own configuration has special tokens; otherwise the tokenizer's are used.
    """
    tokenizer, config = checkpoint.tokenizer, checkpoint.config
    assert tokenizer is not None
    if tokenizer.pad_token_id is None:
        known = has_special_ids and config.pad_token_id is not None
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(config.pad_token_id) if known else tokenizer.eos_token
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not has_special_ids or getattr(config, name) is None:
            setattr(config, name, getattr(tokenizer, name))
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.max_position_embeddings)


def drop_ids_outside(checkpoint: Checkpoint) -> None:
    """Remove tokens outside of the vocabulary from the configuration and the generation settings, with a note.

    Raises:
        UserError: a generation setting that is no token id, or list of them.
    """
    size, dropped = checkpoint.config.vocab_size, set[int]()
    for settings, names in ((checkpoint.config, SPECIAL_IDS), (checkpoint.generation_config, SPECIAL_IDS + GENERATION_IDS)):
        for name in names:
            value = getattr(settings, name, None)
            if value is None:
                continue
            items = value if isinstance(value, list) else [value]
            kept = []
            for item in items:
                ids = item[0] if name == "sequence_bias" and isinstance(item, list) and item else item  # [ids, bias]
                ids = ids if isinstance(ids, list) else [ids]
                if not all(type(id) is int for id in ids):
                    raise UserError(f"generation_config.json: {name} is {one_line(repr(value), 100)}: expected token ids")
                outside = {id for id in ids if not 0 <= id < size}
                dropped |= outside
                kept += [] if outside else [item]
            if len(kept) < len(items):
                setattr(settings, name, kept if isinstance(value, list) and kept else None)
    if dropped:
        listed = ", ".join(map(str, sorted(dropped)[:10])) + (f" and {len(dropped) - 10} more" if len(dropped) > 10 else "")
        checkpoint.notes.append(f"special tokens outside of the vocabulary of {size:,} were dropped: {listed}")
