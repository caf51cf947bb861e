r"""Reads tokenizers saved by two well-known teaching implementations into [`BytePairTokenizer`].

- minbpe (karpathy/minbpe, `Tokenizer.save`): the text file `NAME.model` holds `minbpe v1`, the pattern (empty for `BasicTokenizer`, which
  does not pre-tokenize), the number of special tokens, one special token per line with its id, then one merge per line as two ids; the
  merged tokens get the ids from 256 on. Ids below 256 are byte values, not in GPT-2's order.
- the book's `BPETokenizerSimple.save_vocab_and_merges` (*Build a Large Language Model (From Scratch)*, ch02/05): a JSON object
  id -> token, and a JSON list of {"pair": [id, id], "new_id": id}. Tokens consist of characters, not bytes.
"""

import json
import os
from pathlib import Path
from typing import Any

import regex

from ..errors import UserError
from .byte_pair import CHARACTER_OF_BYTE, END_OF_TEXT, SPACE, BytePairTokenizer
from .byte_pair_training import Pair

# A word with one preceding space, each further space, each line end. Other white space lies between the matches; the book drops it.
BOOK_PATTERN = rf"{SPACE}?[^\s{SPACE}]+|{SPACE}|\r|\n"


def read_minbpe(path: str | os.PathLike) -> BytePairTokenizer:
    """Read a minbpe `.model` file; ids equal those of minbpe's `encode(text, allowed_special="all")`.

    Without a pattern (`BasicTokenizer`) the text is one piece, here and in the `tokenizer.json`: merges may cross words and lines.

    Raises:
        UserError: not a minbpe file; names the line.
    """
    lines = _read(path).removesuffix("\n").split("\n")
    if lines[0].strip() != "minbpe v1":
        raise UserError(f"{path} line 1 is not 'minbpe v1': give the .model file that minbpe's Tokenizer.save wrote")
    tokens = dict(CHARACTER_OF_BYTE)
    special_tokens: dict[str, int] = {}
    merges: dict[Pair, int] = {}
    number = 2
    try:
        pattern = lines[1].strip()
        regex.compile(pattern)
        number = 3
        first_merge = 4 + int(lines[2])
        for number in range(4, first_merge):
            token, id_written = lines[number - 1].rsplit(maxsplit=1)
            special_tokens[token] = int(id_written)
        for number in range(first_merge, len(lines) + 1):
            left, right = map(int, lines[number - 1].split())
            merges[left, right] = len(tokens)
            tokens[len(tokens)] = tokens[left] + tokens[right]
    except regex.error as error:
        raise UserError(f"{path} line 2: {pattern!r} is not a regular expression ({error})") from error
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path} line {number} is broken: a minbpe file has the pattern, special tokens, then two ids a line"
        ) from error
    except KeyError as error:
        raise UserError(f"{path} line {number}: id {error.args[0]} is not a byte or the result of an earlier merge") from error
    for token, id in special_tokens.items():
        if id in tokens:
            raise UserError(f"{path}: special token {token!r} has id {id}, which is a byte or a merge")
    tokens |= {id: token for token, id in special_tokens.items()}
    return BytePairTokenizer(tokens, merges, special_tokens, pattern or None)


def read_book_bpe(vocabulary: str | os.PathLike, merges: str | os.PathLike) -> BytePairTokenizer:
    """Read the two files that the book's `BPETokenizerSimple` saves, with the book's pre-tokenization.

    Ids may differ from the book's own `encode`: the book's class uses a whole word if the vocabulary has it, and otherwise merges any
    adjacent pair with a merge from left to right, whereas this class and `tokenizers` apply merges in the order learned. White space
    other than spaces and line ends is a token here and dropped there; a character without a token becomes `<|endoftext|>` here and is an
    error there. Decoded text is the same, except that the book puts a space before each newline.

    Raises:
        UserError: not the book's files; names the file and the entry.
    """
    entries, merge_list = _parse(vocabulary, dict), _parse(merges, list)
    try:
        tokens = {int(id): token for id, token in entries.items()}
    except ValueError as error:
        raise UserError(
            f"{vocabulary}: a key is not an id ({error}); give the file of ids and tokens that the book's class saves"
        ) from error
    if not all(isinstance(token, str) for token in tokens.values()):
        raise UserError(
            f"{vocabulary}: a value is not text; OpenAI's encoder.json has tokens as keys: load it as a GPT-2 tokenizer"
        )
    pairs: dict[Pair, int] = {}
    for number, entry in enumerate(merge_list):
        try:
            (left, right), new_id = entry["pair"], entry["new_id"]
            union = tokens[left] + tokens[right]
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"{merges}: entry {number} is not a pair of known ids with its new_id: {entry!r}") from error
        if tokens.get(new_id) != union:
            raise UserError(f"{merges}: entry {number} makes {union!r}, but token {new_id} is {tokens.get(new_id)!r}")
        pairs[left, right] = new_id
    # Special tokens are longer than a character and not the result of a merge.
    merged = set(pairs.values())
    special_tokens = {token: id for id, token in tokens.items() if len(token) > 1 and id not in merged}
    if END_OF_TEXT not in special_tokens:
        raise UserError(f"{vocabulary} has no {END_OF_TEXT}: train with allowed_special={{{END_OF_TEXT!r}}}, as the book does")
    return BytePairTokenizer(tokens, pairs, special_tokens, BOOK_PATTERN, byte_level=False)


def _read(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error


def _parse(path: str | os.PathLike, kind: type) -> Any:
    text = _read(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        raise UserError(f"{path} holds a {type(value).__name__}: a JSON {'object' if kind is dict else 'list'} is expected")
    return value
