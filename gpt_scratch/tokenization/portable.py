"""Saves tokenizers in a form that transformers 4.46 and newer load with equal ids, and loads tokenizers exactly as their files define.

`save_pretrained` of transformers 5 writes files for transformers 5 only. Releases differ as follows, and [`save_tokenizer`] writes a form
that all of them read the same way:

- `tokenizer_class` is `TokenizersBackend`, which 4.x does not have. 5.x also builds the pipelines of `GPT2Tokenizer`, `LlamaTokenizer` and
  similar classes in Python and ignores the normalizer and pre-tokenizer in `tokenizer.json`. All releases have
  `PreTrainedTokenizerFast`, for which `tokenizer.json` is the whole pipeline.
- `extra_special_tokens` is a list, but 4.x expects a mapping; all read the list under its old name, `additional_special_tokens`.
- `model_input_names` contains `token_type_ids` by default in 4.x, an input that causal language models refuse.
- `chat_template.jinja` is unknown to 4.46, which reads the template from `tokenizer_config.json`. It is written to both; newer releases
  use the file.
- `clean_up_tokenization_spaces` is ignored for BPE since 5.10; older releases remove spaces when decoding.
- `add_prefix_space`, if missing, is false in 4.57, which changes the pre-tokenizer accordingly.
"""

import json
import os
from pathlib import Path
from types import FunctionType
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from ..files import write_json
from .tokenizer_file import check_tokenizer_file

CONFIG_FILE = "tokenizer_config.json"
OF_THIS_SESSION = ("backend", "is_local", "local_files_only", "extra_special_tokens")  # the last one under its old name


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: str | os.PathLike) -> None:
    """`tokenizer.save_pretrained(directory)`, with a `tokenizer_config.json` that transformers 4 reads as well.

    A tokenizer that is more than its `tokenizer.json` is saved by its own class: classes with additional methods (Whisper, CodeLlama),
    those written in Python, and those from outside transformers.
    """
    tokenizer.save_pretrained(directory)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and _is_its_file(type(tokenizer)):
        path = Path(directory) / CONFIG_FILE
        write_json(path, _portable(tokenizer, json.loads(path.read_text(encoding="utf-8"))))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a directory or Hub name, with the pipeline described by its `tokenizer.json`, if there is one.

    transformers 5 would give SmolLM2's tokenizer, whose class is `GPT2Tokenizer`, the pipeline of GPT-2, which does not split numbers
    into digits.

    Raises:
        Exception: AutoTokenizer may raise anything.
    """
    path = _tokenizer_file(name)
    if path is not None:
        check_tokenizer_file(path)
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    kind = type(tokenizer)
    is_other_class = kind is not PreTrainedTokenizerFast and issubclass(kind, PreTrainedTokenizerFast)
    if path is not None and is_other_class and _is_its_file(kind):
        _take_pipeline(tokenizer, path)
    return tokenizer


def _tokenizer_file(name: str) -> Path | None:
    """Path of `tokenizer.json`; `None` if the tokenizer is built from other files, such as a sentencepiece model."""
    try:
        return Path(cached_file(name, "tokenizer.json"))
    except OSError:
        return None


def _take_pipeline(tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    written = Tokenizer.from_file(str(path))
    backend, space = tokenizer.backend_tokenizer, tokenizer.init_kwargs.get("add_prefix_space")
    for part in ("normalizer", "pre_tokenizer", "model", "decoder"):
        setattr(backend, part, getattr(written, part))
    if space is not None and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
        backend.pre_tokenizer.add_prefix_space = space  # in transformers the setting takes precedence over the file


def _is_its_file(kind: type) -> bool:
    """Whether a class only assembles what `tokenizer.json` describes: it is part of transformers and defines at most `__init__`."""
    own = kind.__mro__[: kind.__mro__.index(PreTrainedTokenizerFast)]
    methods = (FunctionType, property, classmethod, staticmethod)
    return all(
        base.__module__.startswith("transformers.")
        and not any(isinstance(value, methods) for name, value in vars(base).items() if name != "__init__")
        for base in own
    )


def _portable(tokenizer: PreTrainedTokenizerFast, written: dict[str, Any]) -> dict[str, Any]:
    """Convert the installed release's `tokenizer_config.json` to one that all releases read the same way."""
    pipeline = tokenizer.backend_tokenizer
    config = {name: value for name, value in written.items() if name not in OF_THIS_SESSION}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": tokenizer.model_input_names,
        "padding_side": tokenizer.padding_side,  # Llama's class pads left by default
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": _cleans_up(tokenizer),
    }
    if tokenizer.extra_special_tokens:
        config["additional_special_tokens"] = [str(token) for token in tokenizer.extra_special_tokens]
    if isinstance(pipeline.pre_tokenizer, pre_tokenizers.ByteLevel):
        config["add_prefix_space"] = pipeline.pre_tokenizer.add_prefix_space
    if isinstance(tokenizer.chat_template, dict):
        config["chat_template"] = [{"name": name, "template": text} for name, text in tokenizer.chat_template.items()]
    elif tokenizer.chat_template is not None:
        config["chat_template"] = tokenizer.chat_template
    return dict(sorted(config.items()))


def _cleans_up(tokenizer: PreTrainedTokenizerFast) -> bool:
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    is_bpe = isinstance(tokenizer.backend_tokenizer.model, models.BPE)
    return bool(tokenizer.clean_up_tokenization_spaces and (forced or not is_bpe))
