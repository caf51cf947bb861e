"""GPT-2's tokenizer from OpenAI's two files, as a `tokenizer.json` that plain AutoTokenizer loads.

`encoder.json` maps each of the 50,257 tokens, written in GPT-2's byte alphabet, to its id; `vocab.bpe` holds a version line and the 50,000
merges. On the Hub the same two files are named vocab.json and merges.txt.
"""

import json
import os
from pathlib import Path

from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

from ..errors import UserError

FILE_NAMES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
END_OF_TEXT = "<|endoftext|>"


def load_gpt2_tokenizer(directory: str | os.PathLike, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """Load the tokenizer in `directory`, with `<|endoftext|>` as bos, eos, unknown and padding token.

    GPT-2 has no padding token. Sharing the end-of-text token is safe with this package's models and collators, which identify padding by
    the attention mask and by length, never by id.

    Args:
        directory: holds `encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`.
        model_max_length: longest input of the model, in tokens.

    Raises:
        UserError: the files are missing, or are not a vocabulary and its merges; names the file.
    """
    for vocabulary, merges in (map(Path(directory).joinpath, names) for names in FILE_NAMES):
        if vocabulary.is_file() and merges.is_file():
            return read_gpt2_files(vocabulary, merges, model_max_length)
    raise UserError(f"{directory} holds neither encoder.json and vocab.bpe nor vocab.json and merges.txt")


def read_gpt2_files(vocabulary: Path, merges: Path, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """[`load_gpt2_tokenizer`] of two files.

    Raises:
        UserError: they are not a vocabulary and its merges; names the file.
    """
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").splitlines()
    except (ValueError, RecursionError) as error:
        raise UserError(f"{vocabulary.parent}: {vocabulary.name} or {merges.name} is broken: {error}") from error
    if not isinstance(ids, dict) or not all(type(id) is int for id in ids.values()):
        raise UserError(f"{vocabulary} is not a JSON object of tokens and their ids")
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    for number, pair in enumerate(pairs, start=1):
        if len(pair) != 2 or "".join(pair) not in ids:
            raise UserError(f"{merges}: merge {number} ({' '.join(pair)!r}) is not a pair whose union is in {vocabulary.name}")
    if sorted(ids.values()) != list(range(len(ids))):
        raise UserError(f"{vocabulary}: the ids are not 0 to {len(ids) - 1}, each once")
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT)
    return GPT2Tokenizer(vocab=ids, merges=[tuple(pair) for pair in pairs], model_max_length=model_max_length, **special)
