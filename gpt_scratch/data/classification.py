"""Labelled texts to training rows: the SMS Spam Collection in every shape it is passed around in, and any table with two columns.

Traps of the published recipe that are handled here: quotes in the raw file are literal (a CSV reader with default quoting swallows two
messages), and 37 of the 300 published test messages stand verbatim among the training messages (`deduplicate` removes such
copies before splitting; `published_split` keeps them, to reproduce the published rows exactly).
"""

import csv
import io
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerBase

from ..errors import UserError, one_line
from ..progress import bar
from .readers import ROW_READERS, load_table

SMS_MEMBER = "SMSSpamCollection"  # the file inside UCI's zip
MAX_UNPACKED_BYTES = 1 << 26  # the collection has half a megabyte


@dataclass
class LabelledTexts:
    """Texts with their labels, and for each the row of the file it came from (0 is the first), for messages."""

    texts: list[str]
    labels: list[str]
    rows: list[int]

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> "LabelledTexts":
        """The texts at `indices`, in that order."""
        indices = [int(i) for i in indices]
        return LabelledTexts([self.texts[i] for i in indices], [self.labels[i] for i in indices], [self.rows[i] for i in indices])

    def counts(self) -> dict[str, int]:
        """Texts of each label, in the order of the labels."""
        return dict(sorted(Counter(self.labels).items()))


def read_labelled_texts(
    name: str, text_column: str | None = None, label_column: str | None = None, split: str = "train"
) -> LabelledTexts:
    """Labelled texts from a file or a `datasets` name.

    `.zip`, `.tsv` and files without an extension are read as the SMS Spam Collection: `label<TAB>text` lines, UTF-8, quotes literal.
    csv, jsonl, json, parquet and `datasets` tables need two columns; by default these are called text and label, in any case
    (so `Label,Text` of the published files is found).

    Raises:
        UserError: names file and row: no such file or column, bytes that are not UTF-8, a row without a tab, an empty text or label.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if path.is_file() and suffix in ("", ".tsv", ".zip"):
        pairs: list[tuple[Any, Any]] = [(text, label) for label, text in _lines_of_sms(_sms_bytes(path), name)]
    else:
        if path.is_file():
            if suffix not in ROW_READERS:
                raise UserError(f"{name}: unknown format {suffix!r}; give zip, tsv, csv, jsonl, json or parquet")
            table: Iterable[Mapping] = ROW_READERS[suffix](name)
        elif suffix in ROW_READERS or suffix in (".tsv", ".zip"):
            raise UserError(f"{name}: no such file")
        else:
            found = load_table(name, None, split, streaming=False)
            if found is None:
                raise UserError(f"data set {name!r} has no split {split!r}")
            table = found
        pairs = list(_columns(table, name, text_column, label_column))
    if not pairs:
        raise UserError(f"{name} holds no labelled texts")
    texts, labels = [text for text, _ in pairs], [_label_name(label) for _, label in pairs]
    for what, values in (("text", texts), ("label", labels)):
        empty = [row for row, value in enumerate(values) if not isinstance(value, str) or not value.strip()]
        if empty:
            raise UserError(
                f"{name}: empty {what} in row{'s' * (len(empty) > 1)} {_listed(empty)} (0 is the first): remove or fill them"
            )
    return LabelledTexts(texts, labels, list(range(len(texts))))


def _sms_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(SMS_MEMBER)
            if info.file_size > MAX_UNPACKED_BYTES:
                raise UserError(
                    f"{path}: {SMS_MEMBER} would unpack to {info.file_size:,} bytes, {MAX_UNPACKED_BYTES:,} at most are read"
                )
            return archive.read(info)  # into memory: nothing is extracted to a folder
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} is not the SMS Spam Collection's zip: it has no member {SMS_MEMBER}") from error
    except Exception as error:  # encrypted, damaged, packed in a way that this Python lacks: zipfile raises many kinds
        raise UserError(f"{path} is not the SMS Spam Collection's zip, or damaged: {one_line(error)}") from error


def _lines_of_sms(data: bytes, name: str) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(data.removesuffix(b"\n").split(b"\n")):
        try:
            label, tab, text = line.decode("utf-8").partition("\t")
        except UnicodeDecodeError as error:
            raise UserError(f"{name} row {number}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error
        if not tab:
            raise UserError(f"{name} row {number} has no tab: each line must be label<TAB>text")
        pairs.append((label, text.removesuffix("\r")))
    return pairs


def _columns(table: Iterable[Mapping], name: str, text_column: str | None, label_column: str | None):
    for row in table:
        by_lower = {str(column).lower(): column for column in row}
        keys = [
            wanted if wanted is not None else by_lower.get(default)
            for wanted, default in ((text_column, "text"), (label_column, "label"))
        ]
        for key, flag in zip(keys, ("text_column", "label_column")):
            if key is None or key not in row:
                missing = key or flag.removesuffix("_column")
                raise UserError(f"{name} has no column {missing!r}: its columns are {', '.join(map(str, row))}; pass --{flag}")
        yield row[keys[0]], row[keys[1]]


def _label_name(label: Any) -> Any:
    return str(label) if isinstance(label, int) else label


def _listed(numbers: Sequence[int], most: int = 10) -> str:
    return ", ".join(map(str, numbers[:most])) + (f" and {len(numbers) - most} more" if len(numbers) > most else "")


def _order(label: str) -> tuple[bool, int, str, str]:
    """Whole numbers first, by value whatever their length (int() refuses more than 4,300 digits), then names."""
    number = label.isdecimal()  # isdigit() is true of a superscript digit, too
    digits = "".join(str(int(digit)) for digit in label).lstrip("0") if number else ""
    return not number, len(digits), digits, label


def label_ids(labels: Iterable[str], names: Sequence[str] | None = None) -> dict[str, int]:
    """Label to class id, sorted by name (integers by value), so that ham is 0 and spam 1; `names` gives another order.

    Raises:
        UserError: fewer than two classes, or a label that `names` does not list.
    """
    found = sorted(set(labels), key=_order)
    if len(found) < 2:
        raise UserError(f"all texts have the label {found[0]!r}: a classifier needs at least two classes")
    if names:
        unknown = [label for label in found if label not in names]
        if unknown:
            raise UserError(f"label {unknown[0]!r} is not one of --class_names {', '.join(names)}")
        found = list(names)
    return {label: i for i, label in enumerate(found)}


def check_labels(data: LabelledTexts, ids: Mapping[str, int], split: str) -> None:
    """Refuse labels that training has never seen, with their rows.

    Raises:
        UserError: names split, label and rows.
    """
    for label in sorted(set(data.labels) - ids.keys()):
        rows = [row for row, found in zip(data.rows, data.labels) if found == label]
        raise UserError(f"{split}: label {label!r} in row {_listed(rows)} does not occur in training ({', '.join(ids)})")


def deduplicate(data: LabelledTexts) -> tuple[LabelledTexts, int]:
    """The first of each group of equal texts (white space around them aside), and how many copies were left out.

    Raises:
        UserError: equal texts with different labels; names the rows.
    """
    first: dict[str, int] = {}
    for i, text in enumerate(data.texts):
        other = first.setdefault(text.strip(), i)
        if data.labels[other] != data.labels[i]:
            raise UserError(
                f"rows {data.rows[other]} and {data.rows[i]} hold the same text, labelled {data.labels[other]!r} and {data.labels[i]!r}: "
                "remove one"
            )
    return data.take(first.values()), len(data) - len(first)


def balance(data: LabelledTexts, seed: int) -> LabelledTexts:
    """As many texts of each class as the rarest has, drawn without replacement, in the order of the file."""
    rng = np.random.default_rng(seed)
    rarest = min(data.counts().values())
    kept: list[int] = []
    for label in data.counts():
        rows = [i for i, found in enumerate(data.labels) if found == label]
        kept += rng.choice(rows, rarest, replace=False).tolist()
    return data.take(sorted(kept))


def stratified_split(data: LabelledTexts, fractions: Sequence[float], seed: int) -> list[LabelledTexts]:
    """Shuffled parts of the sizes `fractions` (adding up to 1), each with the same share of every class.

    Raises:
        UserError: fractions that do not add up to 1, or a class too small to be in every part.
    """
    if abs(sum(fractions) - 1) > 1e-9 or any(fraction <= 0 for fraction in fractions):
        raise UserError(f"split fractions {', '.join(map(str, fractions))} must be positive and add up to 1")
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    for label in data.counts():
        rows = rng.permutation([i for i, found in enumerate(data.labels) if found == label])
        borders = np.round(np.cumsum([0, *fractions]) * len(rows)).astype(int)
        for part, start, stop in zip(parts, borders, borders[1:]):
            if start == stop:
                raise UserError(f"label {label!r} has {len(rows)} texts, too few for {len(fractions)} splits")
            part += rows[start:stop].tolist()
    return [data.take(rng.permutation(part)) for part in parts]


def published_split(path: str) -> tuple[LabelledTexts, LabelledTexts, LabelledTexts]:
    """The book's train, validation and test rows (chapter 6): 1,045, 149 and 300 of 747 ham and 747 spam messages, seed 123.

    The book reads the raw file with pandas' default quoting (5,572 rows), balances with `ham.sample(747, random_state=123)` and shuffles
    with `sample(frac=1, random_state=123)`. pandas' sample is `RandomState.choice` without replacement, so numpy alone
    gives the same rows in the same order.
    """
    text = _sms_bytes(Path(path)).decode("utf-8")
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t"))
    data = LabelledTexts([row[1] for row in rows], [row[0] for row in rows], list(range(len(rows))))
    ham, spam = ([i for i, label in enumerate(data.labels) if label == name] for name in ("ham", "spam"))
    if not spam or len(ham) < len(spam):
        raise UserError(f"{path} is not the SMS Spam Collection: {len(ham)} ham and {len(spam)} spam messages")
    drawn = np.random.RandomState(123).choice(len(ham), len(spam), replace=False)
    balanced = [ham[i] for i in drawn] + spam
    order = np.random.RandomState(123).choice(len(balanced), len(balanced), replace=False)
    shuffled = data.take(balanced[i] for i in order)
    train, validation = int(0.7 * len(shuffled)), int(0.1 * len(shuffled))
    borders = [0, train, train + validation, len(shuffled)]
    parts = [shuffled.take(range(start, stop)) for start, stop in pairwise(borders)]
    return parts[0], parts[1], parts[2]


def overlap(part: LabelledTexts, train: LabelledTexts) -> int:
    """Texts of `part` that also stand in `train`."""
    known = set(train.texts)
    return sum(text in known for text in part.texts)


def encode_texts(
    data: LabelledTexts, tokenizer: PreTrainedTokenizerBase, ids: Mapping[str, int], max_length: int
) -> tuple[datasets.Dataset, int]:
    """Rows of `input_ids`, `attention_mask`, `length` and `labels` without padding, and how many texts were cut at `max_length` tokens."""
    encoded = [tokenizer(text, verbose=False)["input_ids"] for text in bar(data.texts, "tokenizing", "texts")]
    rows = [row[:max_length] for row in encoded]
    table = {
        "input_ids": rows,
        "attention_mask": [[1] * len(row) for row in rows],
        "length": [len(row) for row in rows],
        "labels": [ids[label] for label in data.labels],
    }
    return datasets.Dataset.from_dict(table), sum(len(row) > max_length for row in encoded)
