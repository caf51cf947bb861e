"""Labelled texts to training rows: the SMS Spam Collection in all its published formats, and tables with a text and a label column.

Pitfalls of the published recipe that are handled here: quotes in the raw file are literal (a CSV reader with default quoting loses two
messages), and 37 of the 300 published test messages occur verbatim in the training messages (`deduplicate` removes such
copies before splitting; `published_split` keeps them, to reproduce the published rows exactly).
"""

import io
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, one_line
from ..progress import bar
from ..training_conflicts import check_fractions
from .columns import find_column, no_column
from .delimited import read_delimited, rows_of_lines, without_blank_lines
from .examples import Examples
from .opening import TABLE_SUFFIXES, Faults, Reading, is_glob, print_once, read_lines, suffix_of, unknown_format
from .readers import kind_of
from .tables import Row, class_names, read_table

if TYPE_CHECKING:  # files are read before these are imported
    import datasets
    from transformers import PreTrainedTokenizerBase

SMS_MEMBER = "SMSSpamCollection"  # the file inside UCI's zip
MAX_UNPACKED_BYTES = 1 << 26  # the collection has half a megabyte
CONFLICTS = ("refuse", "first", "drop")
MISSING = {"nan", "none", "null", "na", "n/a", "<na>", "nat"}
WHOLE_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


@dataclass
class LabelledTexts(Examples):
    """Texts with their labels and, for error messages, their row in the file (0 is the first).

    Attributes:
        class_order: the classes in the order of their ids, if the data define it (ClassLabel of `datasets`).
    """

    texts: list[str]
    labels: list[str]
    rows: list[int]
    class_order: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """Texts of each label, in the order of the labels."""
        return dict(sorted(Counter(self.labels).items()))


def read_labelled_texts(
    name: str,
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "train",
    reading: Reading | None = None,
    max_rows: int | None = None,
) -> LabelledTexts:
    """Read labelled texts from a file, a glob or a `datasets` name.

    `.zip`, `.txt`, files without a suffix, and `.tsv` without a header are read as the SMS Spam Collection: lines `label<TAB>text` with
    literal quotes. csv, tsv, jsonl, json, parquet and `datasets` tables need two columns, by default text and label, in any case (so
    `Label,Text` of the published files is found).

    Labels are strings: surrounding spaces are removed, numbers are converted (1.0 and 1 are one class), ids of a ClassLabel are replaced
    by its names.

    Args:
        max_rows: maximum number of rows to read, to inspect a file.

    Raises:
        UserError: names file and rows: a missing file or column, another encoding, invalid rows, empty texts or labels.
    """
    reading, faults = reading or Reading(), Faults()
    rows = _open_rows(name, split, reading, faults, [column for column in (text_column, label_column) if column])
    data, empty, stripped = LabelledTexts([], [], []), 0, 0
    keys: tuple[str, ...] = ()
    names: list[str] | None = None
    orders: dict[str, tuple[str, ...]] = {}  # of the classes, by file
    for file, number, values in islice(rows, max_rows):
        if file not in orders or not all(key in values for key in keys):
            keys = _text_and_label(values, file, text_column, label_column)
            names = class_names(file, keys[1], split)
            orders[file] = tuple(names or ())
        text, label = values[keys[0]], _label_name(values[keys[1]], names)
        if reading.skip_empty and (_is_empty(text) or _is_empty(label)):
            empty += 1
            continue
        wrong = [what for what in (_fault_of_text(text), _fault_of_label(label)) if what]
        for what in wrong:
            faults.add(file, "row", number, what)
        if wrong:
            continue
        name_of_class = label.strip().strip("\ufeff\u200b").strip()
        stripped += name_of_class != label
        data.texts.append(text)
        data.labels.append(name_of_class)
        data.rows.append(number)
    faults.check()
    if not len(data):
        raise UserError(f"{name} contains no labelled texts")
    if empty:
        print_once(f"{name}: {empty:,} rows with an empty text or label were skipped")
    if stripped:
        print_once(f"{name}: spaces around {stripped:,} labels were removed")
    data.labels = _numbers_as_one_class(data.labels, name)
    data.class_order = orders.popitem()[1] if len(set(orders.values())) == 1 else ()
    _report_similar_labels(data.labels, name)
    return data


def _open_rows(name: str, split: str, reading: Reading, faults: Faults, columns: Sequence[str]) -> Iterator[Row]:
    """The rows of a file, a glob or a `datasets` name, with the columns label and text if it has none of its own."""
    suffix = suffix_of(name)
    if Path(name).is_file() and suffix in ("", ".txt", ".zip"):
        lines = io.StringIO(_sms_text(Path(name)), newline="") if suffix == ".zip" else read_lines(name, reading)
        return ((name, number, values) for number, values in rows_of_lines(name, iter(lines), True, reading, faults))
    if Path(name).is_file() and suffix not in TABLE_SUFFIXES:
        raise unknown_format(name, "zip, tsv, csv, jsonl, json or parquet")
    if suffix == ".zip" and not is_glob(name):
        raise UserError(f"{name}: no such file")
    return read_table(name, split, reading, faults, columns)


def _sms_text(path: Path) -> str:
    if path.suffix.lower() != ".zip":
        return "".join(read_lines(str(path), Reading()))
    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(SMS_MEMBER)
            if info.file_size > MAX_UNPACKED_BYTES:
                raise UserError(
                    f"{path}: {SMS_MEMBER} would unpack to {info.file_size:,} bytes, more than {MAX_UNPACKED_BYTES:,}"
                )
            return archive.read(info).decode("utf-8-sig")  # in memory, nothing is extracted to disk
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{path} is not the SMS Spam Collection's zip: it has no member {SMS_MEMBER}") from error
    except Exception as error:  # encrypted, damaged or unsupported compression: zipfile raises many exception types
        raise UserError(f"{path} is not the SMS Spam Collection's zip, or is damaged: {one_line(error)}") from error


def _text_and_label(values: Mapping[str, Any], name: str, text_column: str | None, label_column: str | None) -> tuple[str, str]:
    keys = []
    for wanted, flag in ((text_column, "text_column"), (label_column, "label_column")):
        default = flag.removesuffix("_column")
        key = find_column(values, name, wanted or default)
        if key is None:
            raise UserError(f"{name} has {no_column(name, values, wanted or default, flag)}")
        keys.append(key)
    others = [str(column) or "(without a name)" for column in values if column not in keys]
    if others:
        print_once(f"{name}: unused columns: {', '.join(others)}")
    return keys[0], keys[1]


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _fault_of_text(text: Any) -> str | None:
    if isinstance(text, str):
        return None if text.strip() else "empty text: fill it, or pass --skip_empty"
    if text is None:
        return "the text is missing: fill it, or pass --skip_empty"
    return f"the text is {kind_of(text)}, not text: give its column by --text_column, or write it in quotes"


def _fault_of_label(label: Any) -> str | None:
    if _is_empty(label):
        return "empty label: fill it, or pass --skip_empty"
    if not isinstance(label, str):
        return f"the label is {kind_of(label)}, not a name or number"
    if any(unicodedata.category(character) == "Cc" for character in label.strip()):
        return "the label holds control characters"
    return None


def _label_name(label: Any, names: Sequence[str] | None) -> Any:
    if isinstance(label, bool):
        return str(label)
    if isinstance(label, int) and names is not None:
        return names[label] if 0 <= label < len(names) else None  # -1: without a label
    if isinstance(label, float):
        if label != label:  # NaN, a missing value of pandas
            return None
        return str(int(label)) if label.is_integer() else repr(label)
    return str(label) if isinstance(label, int) else label


def _numbers_as_one_class(labels: list[str], name: str) -> list[str]:
    """Merge labels such as 1.0 and 1 if all labels are numbers."""
    found = set(labels)
    if not any("." in label for label in found) or not all(NUMBER.fullmatch(label) for label in found):
        return labels
    written = {label: label.split(".")[0] for label in found if "." in label and WHOLE_NUMBER.fullmatch(label)}
    if written:
        print_once(
            f"{name}: labels are numbers: {', '.join(f'{old} is read as {new}' for old, new in sorted(written.items())[:5])}"
        )
    return [written.get(label, label) for label in labels]


def _report_similar_labels(labels: Sequence[str], name: str) -> None:
    folded: dict[str, set[str]] = {}
    for label in set(labels):
        folded.setdefault(_folded(label), set()).add(label)
    for alike in folded.values():
        if len(alike) > 1:
            what = "case" if len({label.casefold() for label in alike}) == 1 else "how they are written"
            named = " and ".join(map(repr, sorted(alike)))
            print_once(f"{name}: the labels {named} differ only in {what} and are {len(alike)} classes")
    if missing := sorted(label for label in set(labels) if label.lower() in MISSING):
        print_once(
            f"{name}: the label {', '.join(map(repr, missing))} is a class; if it stands for a missing one, leave its cells empty"
        )


def _folded(label: str) -> str:
    """One form for an accent in one character or two, quotes around a label, and zeros before a number."""
    folded = unicodedata.normalize("NFKC", label).casefold().strip("'\"` ") or label
    return folded.lstrip("0") or "0" if folded.isdecimal() else folded


def _listed(numbers: Sequence[int], limit: int = 10) -> str:
    return ", ".join(map(str, numbers[:limit])) + (f" and {len(numbers) - limit} more" if len(numbers) > limit else "")


def _order(label: str) -> tuple[bool, int, str, str]:
    """Sort key: whole numbers first, by value (without int(), which refuses more than 4,300 digits), then names."""
    number = label.isdecimal()  # isdigit() also accepts superscript digits
    digits = "".join(str(int(digit)) for digit in label).lstrip("0") if number else ""
    return not number, len(digits), digits, label


def label_ids(labels: Iterable[str], names: Sequence[str] | None = None) -> dict[str, int]:
    """Label to class id, sorted by name (integers by value), so that ham is 0 and spam 1; `names` overrides the order.

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
    """Refuse labels that do not occur in training.

    Raises:
        UserError: names split, label and rows.
    """
    for label in sorted(set(data.labels) - ids.keys()):
        rows = [row for row, found in zip(data.rows, data.labels) if found == label]
        raise UserError(f"{split}: label {label!r} in row {_listed(rows)} does not occur in training ({', '.join(ids)})")


def deduplicate(data: LabelledTexts, conflicts: str = "refuse") -> tuple[LabelledTexts, int]:
    """Keep the first of each group of equal texts (ignoring surrounding white space); also returns the number of removed copies.

    Args:
        conflicts: what to do with equal texts with different labels: "refuse", keep the "first", or "drop" all.

    Raises:
        UserError: conflicting labels, with "refuse"; names the rows (of the first ten groups) and the flag.
    """
    groups: dict[str, list[int]] = {}
    for i, text in enumerate(data.texts):
        groups.setdefault(text.strip(), []).append(i)
    clashing = [group for group in groups.values() if len({data.labels[i] for i in group}) > 1]
    if clashing and conflicts == "refuse":
        named = "; ".join(" and ".join(f"row {data.rows[i]} ({data.labels[i]!r})" for i in group) for group in clashing[:10])
        raise UserError(
            f"{len(clashing):,} texts occur with different labels: {named}{'; ...' * (len(clashing) > 10)}: fix them, or pass "
            "--conflicting_labels first (keep the first of each) or drop (remove them)"
        )
    if clashing:
        what = "the first label was kept" if conflicts == "first" else "all were removed"
        print(f"{len(clashing):,} texts occur with different labels: {what}")
    dropped = {group[0] for group in clashing} if conflicts == "drop" else set()
    kept = [group[0] for group in groups.values() if group[0] not in dropped]
    return data.take(kept), len(data) - len(kept)


def balance(data: LabelledTexts, seed: int) -> LabelledTexts:
    """Sample the same number of texts from each class, that of the rarest, without replacement, in the order of the file."""
    rng = np.random.default_rng(seed)
    rarest = min(data.counts().values())
    kept: list[int] = []
    for label in data.counts():
        rows = [i for i, found in enumerate(data.labels) if found == label]
        kept += rng.choice(rows, rarest, replace=False).tolist()
    return data.take(sorted(kept))


def stratified_split(data: LabelledTexts, fractions: Sequence[float], seed: int) -> list[LabelledTexts]:
    """Split into shuffled parts of sizes `fractions` (adding up to 1), stratified by class, with at least one text of each class per part.

    Raises:
        UserError: fractions that do not add up to 1, or classes with fewer texts than parts; names all of them.
    """
    check_fractions(fractions, len(fractions))
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    scarce: list[str] = []
    for label in data.counts():
        rows = rng.permutation([i for i, found in enumerate(data.labels) if found == label])
        if len(rows) < len(fractions):
            scarce.append(f"{label!r} has {len(rows)}")
            continue
        sizes = np.diff(np.round(np.cumsum([0, *fractions]) * len(rows)).astype(int))
        while not sizes.all():  # at least one, taken from the largest part
            sizes[sizes.argmin()] += 1
            sizes[sizes.argmax()] -= 1
        for part, share in zip(parts, np.split(rows, np.cumsum(sizes)[:-1])):
            part += share.tolist()
    if scarce:
        raise UserError(
            f"too few texts of a label for {len(fractions)} splits: {', '.join(scarce)}: add texts, merge it with another label, or leave "
            "it out"
        )
    return [data.take(rng.permutation(part)) for part in parts]


def published_split(path: str) -> tuple[LabelledTexts, LabelledTexts, LabelledTexts]:
    """The book's train, validation and test rows (chapter 6): 1,045, 149 and 300 of 747 ham and 747 spam messages, seed 123.

    The book reads the raw file with pandas' default quoting (5,572 rows), balances with `ham.sample(747, random_state=123)` and shuffles
    with `sample(frac=1, random_state=123)`. pandas' sample is `RandomState.choice` without replacement, so numpy alone
    gives the same rows in the same order.
    """
    faults = Faults()
    dialect = {"delimiter": "\t"}  # quotes are not literal here, as in the book
    lines = io.StringIO(_sms_text(Path(path)), newline="")
    rows = [cells for _, cells in without_blank_lines(read_delimited(lines, path, faults, dialect), "\t")]
    for number, cells in enumerate(rows):
        if len(cells) < 2:
            faults.add(path, "row", number, "no tab: each line must be label<TAB>text")
    faults.check()
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
    """Number of texts of `part` that also occur in `train`."""
    known = set(train.texts)
    return sum(text in known for text in part.texts)


def encode_texts(
    data: LabelledTexts, tokenizer: "PreTrainedTokenizerBase", ids: Mapping[str, int], max_length: int
) -> tuple["datasets.Dataset", int]:
    """Rows of `input_ids`, `attention_mask`, `length` and `labels` without padding, and the number of texts truncated to `max_length`."""
    import datasets

    from ..tokenization.special_tokens import encode_text

    encoded = [encode_text(tokenizer, text)["input_ids"] for text in bar(data.texts, "tokenizing", "texts")]
    rows = [row[:max_length] for row in encoded]
    table = {
        "input_ids": rows,
        "attention_mask": [[1] * len(row) for row in rows],
        "length": [len(row) for row in rows],
        "labels": [ids[label] for label in data.labels],
    }
    return datasets.Dataset.from_dict(table), sum(len(row) > max_length for row in encoded)
