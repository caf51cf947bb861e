"""nanoGPT's `meta.pkl`: the characters of a data set and their ids, as a tokenizer that AutoTokenizer loads.

Source: nanoGPT `data/shakespeare_char/prepare.py`: {"vocab_size": int, "itos": {id: character}, "stoi": {character: id}}. A pickle is a
program; this one is read by a restricted unpickler that supports only dictionaries, lists, strings and numbers, and imports nothing.
"""

import pickle
from pathlib import Path
from typing import Any, NoReturn

from tokenizers import models
from transformers import PreTrainedTokenizerFast

from ..errors import UserError, one_line
from ..pickles import refuse_deep_tuples
from .word_level import pipeline_of

LARGEST = 2 << 20  # bytes; 20,000 Chinese characters have 400,000


class _PlainUnpickler(pickle.Unpickler):
    """Loads dictionaries, lists, strings and numbers, and refuses everything that is looked up by name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which only running code of the file could load; it was not run")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def read_meta_pkl(path: Path, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Read a character tokenizer with exactly the file's ids: it has no special tokens, and an unknown character is an error.

    Raises:
        UserError: a file that is missing, damaged or not nanoGPT's, that would run code, or whose ids are not 0, 1, 2, ...
    """
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, more than {LARGEST:,}")
        with path.open("rb") as file:
            refuse_deep_tuples(file)
            file.seek(0)
            meta = _PlainUnpickler(file).load()
    except Exception as error:  # pickle raises many kinds for damaged files
        raise UserError(f"{path} cannot be read as nanoGPT's meta.pkl: {one_line(error)}") from error
    vocabulary = meta.get("stoi") if type(meta) is dict else None
    if type(vocabulary) is not dict or not all(type(key) is str and type(id) is int for key, id in vocabulary.items()):
        raise UserError(f"{path} is no meta.pkl of nanoGPT's characters: it has no 'stoi' of strings to numbers")
    if long := [key for key in vocabulary if len(key) != 1]:
        raise UserError(f"{path}: {long[0]!r:.60} in 'stoi' is not a single character")
    if sorted(vocabulary.values()) != list(range(len(vocabulary))) or not vocabulary:
        raise UserError(f"{path}: the ids in 'stoi' are not 0 to {len(vocabulary) - 1}")
    if meta.get("vocab_size", len(vocabulary)) != len(vocabulary) or meta.get("itos", _swapped(vocabulary)) != _swapped(
        vocabulary
    ):
        raise UserError(f"{path}: 'vocab_size', 'itos' and 'stoi' contradict one another")
    backend = pipeline_of("character")
    backend.model = models.WordLevel(vocabulary)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=model_max_length, clean_up_tokenization_spaces=False
    )


def _swapped(vocabulary: dict[str, int]) -> dict[int, str]:
    return {id: character for character, id in vocabulary.items()}
