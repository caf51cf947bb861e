"""Rows of csv, tsv, jsonl, json and parquet files and of `datasets` tables, as dictionaries; all errors are reported together.

The format is detected, and printed if it differs from the suffix: the delimiter, a header in a tsv, lines in a `.json`, a list in a
`.jsonl`, rows under one key. A row that does not match its header is an error.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..errors import UserError, innermost, one_line
from .opening import (
    BINARY,
    LARGEST_RATIO,
    ROW_BYTES,
    TABLE_SUFFIXES,
    Faults,
    Reading,
    check_files,
    invalid_place,
    is_glob,
    print_once,
    read_lines,
    read_text,
    replaced,
    suffix_of,
)

Row = tuple[str, int, dict[str, Any]]  # file or data set, number (0 is the first), values by column
DELIMITERS = ",;\t|"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
DELIMITER_DESCRIPTIONS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}
# Columns used by the scripts, to distinguish a header from a row, and a record from rows under a key.
TEXT_COLUMNS = ("text", "label")
RECORD_COLUMNS = (
    "instruction", "input", "output", "prompt", "completion", "messages", "conversations", "chosen", "rejected", "system", "history",
    "tools", "input_ids", "labels",
)  # fmt: skip
KNOWN_COLUMNS = {*TEXT_COLUMNS, *RECORD_COLUMNS}
TEXTS = {"text", "label", "instruction", "output"}  # of which no row has a list


def read_table(
    names: str | Sequence[str],
    split: str = "train",
    reading: Reading | None = None,
    faults: Faults | None = None,
    columns: Sequence[str] = (),
    header: bool | None = None,
) -> Iterator[Row]:
    """Read the rows of a file, of all files of a glob, or of a split of a `datasets` name or directory.

    Invalid rows are added to `faults` and reading continues; they are raised after the last row, so that the faults added by the caller are
    in the same report.

    Args:
        columns: column names of the caller, by which a header is recognized, in addition to those of the scripts.
        header: whether the first line of a tsv is a header; `None` detects it. Without a header, the columns are label and text.

    Raises:
        UserError: a missing file, data set or split, an unknown format, or any fault.
    """
    reading, faults = reading or Reading(), Faults() if faults is None else faults
    for name in [names] if isinstance(names, str) else names:
        if Path(name).is_file() or is_glob(name):
            for file in check_files([name], TABLE_SUFFIXES):
                yield from _checked(file, READERS[suffix_of(file)](file, reading, faults, columns, header), reading, faults)
        elif suffix_of(name) in TABLE_SUFFIXES:
            raise UserError(f"{name}: no such file")
        else:
            found = load_table(name, None, split, streaming=False)
            if found is None:
                raise UserError(f"data set {name!r} has no split {split!r}")
            yield from _checked(name, enumerate(found), reading, faults)
    faults.check()


def rows_of_stream(rows: Iterable[Mapping[str, Any]], name: str) -> Iterator[Row]:
    """The rows of an open `datasets` table."""
    faults = Faults(at_once=True)
    yield from _checked(name, enumerate(rows), Reading(), faults)


def _checked(name: str, rows: Iterable[tuple[int, Mapping]], reading: Reading, faults: Faults) -> Iterator[Row]:
    """Apply the same rule to text in every format: lone surrogates are refused or replaced, everything else is kept."""
    count = 0
    for number, row in rows:
        values = dict(row)
        if (place := invalid_place(values)) is not None:
            if not reading.replace_invalid:
                faults.add(
                    name,
                    "row",
                    number,
                    f"{place!r} contains a lone surrogate, which is invalid text (often half of an emoji): fix the row, or pass "
                    "--replace_invalid",
                )
                continue
            values, count = replaced(values), count + 1
        yield name, number, values
    if count:
        print_once(f"{name}: lone surrogates were replaced by U+FFFD in {count:,} rows")


# csv and tsv


def _rows_of_csv(
    name: str, reading: Reading, faults: Faults, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    return rows_of_lines(name, read_lines(name, reading), suffix_of(name) == ".tsv", reading, faults, columns, header)


def rows_of_lines(
    name: str,
    lines: Iterator[str],
    tsv: bool,
    reading: Reading,
    faults: Faults,
    columns: Sequence[str] = (),
    header: bool | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values of the rows of csv or tsv. In a tsv, quotes are literal unless all of them enclose cells.

    A tsv without a header contains label and text; everything after the first tab is the text.
    """
    lines = iter(lines)
    head: list[str] = []
    for line in lines:
        head.append(line)
        if len(head) >= 100 or sum(map(len, head)) > 1 << 16:
            break
    default = "\t" if tsv else ","
    said = _said_delimiter(head)
    delimiter = reading.delimiter or said or _recognized_delimiter(head, default, columns)
    if delimiter != default:
        print_once(f"{name}: columns are separated by {DELIMITER_DESCRIPTIONS.get(delimiter, repr(delimiter))}")
    first = next((line for line in head if line.strip()), "")
    if not tsv:
        _refuse_other_formats(name, first)
    names = _cells(first, delimiter)
    if header is None and tsv:
        header = _is_header(names, columns) or _is_table(head, delimiter)
        if header:
            print_once(f"{name}: the first line is read as the header: {', '.join(names)}")
    header = header is None or header
    if header:
        _refuse_lines_above_the_header(name, head, delimiter, columns)
    literal = tsv and not _quotes_like_a_spreadsheet(head, delimiter)
    dialect: dict[str, Any] = {"delimiter": delimiter, "strict": True}
    dialect |= {"quoting": csv.QUOTE_NONE} if literal else {"skipinitialspace": f"{delimiter} " in first and delimiter != " "}
    rows = read_delimited((line for part in (head, lines) for line in part), name, faults, dialect)
    if header:
        names = [column.strip() for column in next(rows, (1, []))[1]]
        width = len(names)
        while names and not names[-1]:
            names.pop()
        if len(names) == 1 and delimiter in names[0]:
            raise UserError(f"{name}: each line stands in quotes as a whole, and so is one column: take the outer quotes off")
        twice = [column for i, column in enumerate(names) if column in names[:i]]
        if twice:
            raise UserError(f"{name}: two columns are named {twice[0]!r}: rename one")
    else:
        names, width = ["label", "text"], 2
    for number, (line_number, cells) in enumerate(rows):
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()  # spreadsheets pad rows
        if not header and literal:
            cells = [*cells[:1], *([delimiter.join(cells[1:])] if len(cells) > 1 else [])]
        if len(cells) != len(names):
            faults.add(name, "line", line_number, _misfit(len(cells), names, delimiter, literal, width))
            continue
        yield number, dict(zip(names, cells))


def _misfit(count: int, names: Sequence[str], delimiter: str, literal: bool, width: int) -> str:
    if len(names) < count <= width:
        return f"text in column {count}, which has no name in the header ({', '.join(names)}): name it, or join the cells"
    if literal and count == 1:
        return f"no tab: each line must be {'<TAB>'.join(names)}"
    text = f"{count} field{'s' * (count != 1)} but the header has {len(names)} ({', '.join(names)})"
    if count < len(names):
        return f"{text}: fill the row, or pass the right --delimiter"
    quotes = (
        "" if literal else f"enclose text with {DELIMITER_DESCRIPTIONS.get(delimiter, repr(delimiter))} in double quotes, or "
    )
    return f"{text}: {quotes}pass the right --delimiter, or give jsonl"


def read_delimited(
    lines: Iterable[str], name: str, faults: Faults, dialect: Mapping[str, Any]
) -> Iterator[tuple[int, list[str]]]:
    """The rows of csv with the line (1 is the first) in which each begins; blank lines are skipped, invalid rows added to `faults`."""
    csv.field_size_limit(ROW_BYTES)  # the default of 128 KiB is shorter than a long document
    reader = csv.reader(lines, **dialect)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            faults.add(
                name,
                "line",
                line,
                f"not valid CSV ({error}): quotes inside quotes must be doubled, and every opening quote must be closed",
            )
            continue
        if cells and not (len(cells) == 1 and not cells[0].strip() and dialect["delimiter"] not in cells[0]):
            yield line, cells


def _said_delimiter(head: list[str]) -> str | None:
    """The delimiter that Excel writes as `sep=;` into the first line; that becomes a blank line, so that lines keep their numbers."""
    found = SEPARATOR_LINE.fullmatch(head[0].strip("\r\n")) if head else None
    if found is None:
        return None
    head[0] = "\n"
    return found[1]


def _refuse_other_formats(name: str, first: str) -> None:
    """Refuse JSON or a web page under the name of csv.

    Raises:
        UserError: names the format, and what to do.
    """
    start = first.lstrip().lower()
    if start.startswith(('{"', '[{"')):
        raise UserError(f"{name} holds JSON, not csv: give it the suffix .json or .jsonl")
    if start.startswith(("<!doctype html", "<html")):
        raise UserError(f"{name} is a web page, not a table: download the file itself (its `raw` link)")


def _refuse_lines_above_the_header(name: str, head: Sequence[str], delimiter: str, columns: Sequence[str]) -> None:
    """Refuse titles and comments above the header.

    Raises:
        UserError: names the line of the header.
    """
    known = {*KNOWN_COLUMNS, *(column.lower() for column in columns)}
    first = True
    for number, line in enumerate(head[:20], start=1):
        cells = [cell.lower() for cell in _cells(line, delimiter) if cell]
        if len(known & set(cells)) == len(cells) > 0 and (len(cells) > 1 or first):
            if not first:
                raise UserError(
                    f"{name}: the columns are named in line {number} ({', '.join(cells)}): take off the lines above it"
                )
            return
        if known & set(cells):
            return
        first = first and not cells


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return [line.strip()]


def _is_header(names: Sequence[str], columns: Sequence[str]) -> bool:
    """Whether the first line of a tsv holds a name that was asked for, "label", or two that the scripts know."""
    lower = {name.lower() for name in names}
    return bool(lower & {"label", *(column.lower() for column in columns)}) or len(lower & KNOWN_COLUMNS) > 1


def _is_table(head: Sequence[str], delimiter: str) -> bool:
    """Whether a tsv has more columns than label and text."""
    counts = {len(_cells(line, delimiter)) for line in head if line.strip()}
    return len(counts) == 1 and counts.pop() > 2


def _recognized_delimiter(head: Sequence[str], default: str, columns: Sequence[str]) -> str:
    """The delimiter that splits the header into the most known names, else into the most parts; else by csv.Sniffer."""
    first = next((line for line in head if line.strip()), "")
    known = KNOWN_COLUMNS | {column.lower() for column in columns}
    found = {delimiter: _cells(first, delimiter) for delimiter in DELIMITERS if len(_cells(first, delimiter)) > 1}
    if not found:
        return default
    names = {delimiter: sum(cell.lower() in known for cell in cells) for delimiter, cells in found.items()}
    best = max(names.values())
    likely = [delimiter for delimiter in found if names[delimiter] == best]
    if default in likely:
        return default
    if len(likely) > 1:
        try:
            sniffed = csv.Sniffer().sniff("".join(head), "".join(likely)).delimiter
            likely = [sniffed] if sniffed in likely else likely
        except csv.Error:
            pass
    return likely[0]


def _quotes_like_a_spreadsheet(head: Sequence[str], delimiter: str) -> bool:
    """Whether all quotes in a tsv enclose cells, as in spreadsheets, and are not part of the text."""
    cells = [cell for line in head for cell in line.rstrip("\r\n").split(delimiter) if '"' in cell]
    return (
        bool(cells)
        and all(
            len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "") and '""' in cell[1:-1] + '""'
            for cell in cells
        )
        and any(len(cell) > 2 for cell in cells)
    )


# JSON


def _rows_of_json(
    name: str, reading: Reading, faults: Faults, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects a line, or one value: a list of objects, one object, columns, or an object that holds a list of objects under one key."""
    suffix = suffix_of(name)
    head = next(read_text(name, reading), "").lstrip()
    if head.lower().startswith(("<!doctype html", "<html")):
        raise UserError(f"{name} is a web page, not JSON: download the file itself (its `raw` link)")
    if head.startswith("["):
        yield from _rows_of_list(_parse("".join(read_text(name, reading)), name), name, faults)
        if suffix != ".json":
            print_once(f"{name}: read as one list of rows")
        return
    lines = read_lines(name, reading)
    first = next((line for line in lines if line.strip()), "")
    second = next((line for line in lines if line.strip()), None)
    try:
        _parse_line(first)
        whole = suffix == ".json" and second is None
    except UserError:
        whole = suffix == ".json" or first.strip() == "{"  # indented, or several objects in a line
    if whole:
        values = _objects("".join(read_text(name, reading)), name)
        if len(values) > 1:
            print_once(f"{name}: read as {len(values):,} objects, one after another")
            yield from _rows_of_list(values, name, faults)
            return
        if not isinstance(values[0], dict):
            raise UserError(f"{name} contains a {type(values[0]).__name__}, expected a list of objects")
        under = _rows_within(values[0], name)
        yield from [(0, values[0])] if under is None else _rows_of_list(under, name, faults)
        return
    if suffix == ".json":
        print_once(f"{name}: read as one object per line")
    number = commas = 0
    for line_number, line in enumerate(read_lines(name, reading), start=1):
        if not line.strip():
            continue
        try:
            value, comma = _parse_line(line)
        except UserError as error:
            faults.add(name, "line", line_number, str(error))
        else:
            commas += comma
            if isinstance(value, dict):
                yield number, value
            else:
                faults.add(name, "line", line_number, f"a {type(value).__name__}, expected a JSON object")
        number += 1
    if commas:
        print_once(f"{name}: commas at the ends of {commas:,} lines were left out")


def _parse_line(line: str) -> tuple[Any, bool]:
    """The value of a line, and whether a comma stood after it, as in a list that was cut into lines."""
    try:
        return _parse(line, ""), False
    except UserError:
        if not line.rstrip().endswith("},"):
            raise
    return _parse(line.rstrip()[:-1], ""), True


def _objects(text: str, name: str) -> list[Any]:
    """The JSON values of a text, one after another, as `jq` writes them; one in most files."""
    values: list[Any] = []
    text, place = text.strip(), 0
    decoder = json.JSONDecoder(object_pairs_hook=_once, strict=False)
    while place < len(text) or not values:
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise _no_json(error, name) from error
        values.append(value)
        while place < len(text) and text[place].isspace():
            place += 1
    return values


def _rows_of_list(value: Any, name: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, row in enumerate(value):
        if isinstance(row, dict):
            yield number, row
        else:
            faults.add(name, "row", number, f"it is {type(row).__name__}, not an object")


def _rows_within(value: Mapping[str, Any], name: str) -> list | None:
    """The rows that an object holds: as pandas and `datasets` write columns, or a list of objects under a key of any name; None where it is
    itself a row.

    Raises:
        UserError: several such lists.
    """
    rows, form = _rows_of_pandas(value), "columns"
    if rows is None and any(str(key).lower() in KNOWN_COLUMNS for key in value):
        return None
    if rows is None:
        lists = [
            key for key, part in value.items() if isinstance(part, list) and part and all(isinstance(row, dict) for row in part)
        ]
        if not lists:
            return None
        if len(lists) > 1:
            raise UserError(f"{name} contains lists of rows under {', '.join(map(repr, lists))}: give one file for each")
        rows, form = value[lists[0]], f"the rows under {lists[0]!r}"
    print_once(f"{name}: read as {form}")
    return rows


def _rows_of_pandas(value: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The rows of `DataFrame.to_json` in its forms columns, index and split, and of `to_dict("list")`; None where it is none of these."""
    parts = list(value.values())
    names, rows = value.get("columns"), value.get("data")
    if isinstance(names, list) and isinstance(rows, list) and set(value) <= {"columns", "index", "data"}:
        fit = all(isinstance(row, list) and len(row) == len(names) for row in rows)
        return [dict(zip(names, row)) for row in rows] if fit else None
    keys = {str(key).lower() for key in value}
    if parts and all(isinstance(part, dict) and part.keys() == parts[0].keys() and part for part in parts):
        if keys & KNOWN_COLUMNS:
            return [{column: part[row] for column, part in value.items()} for row in parts[0]]
        return list(parts) if {str(key).lower() for key in parts[0]} & KNOWN_COLUMNS else None
    texts = [part for key, part in value.items() if str(key).lower() in TEXTS]
    if texts and all(isinstance(part, list) for part in parts) and len(set(map(len, parts))) == 1:
        return [dict(zip(value, row)) for row in zip(*parts)]
    return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for i, key in enumerate(keys) if key in keys[:i])!r} occurs twice")
    return values


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, strict=False)  # a tab in a string is a character as any other
    except (ValueError, RecursionError) as error:
        raise _no_json(error, place) from error


def _no_json(error: Exception, place: str) -> UserError:
    what = f"{place} is not valid JSON: {error}" if place else f"not valid JSON: {error}"
    if isinstance(error, json.JSONDecodeError):
        before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
        if after.startswith("'") or before.endswith("'"):
            what += "; Python's own form has single quotes: write it by json.dumps"
        elif before.endswith(",") and after[:1] in ("]", "}", ""):
            what += "; take off the last comma"
    return UserError(what)


# parquet and `datasets`


def _rows_of_parquet(
    name: str, reading: Reading, faults: Faults, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            _refuse_unpacking_beyond_reason(file.metadata, name)
            first = 0
            for batch in file.iter_batches(batch_size=16):  # few rows, since dictionary-encoded values may expand to megabytes
                if batch.nbytes > ROW_BYTES:
                    raise UserError(
                        f"{name}: rows {first} to {first + batch.num_rows - 1} have {batch.nbytes:,} bytes: give long texts as txt files"
                    )
                yield from enumerate(batch.to_pylist(), start=first)
                first += batch.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        with open(name, "rb") as file:
            head = file.read(64)
        what = next(
            (what for mark, what in BINARY.items() if head.startswith(mark) and mark != b"PAR1"), one_line(innermost(error))
        )
        raise UserError(f"{name} is not a readable parquet file: {what}") from error


def _refuse_unpacking_beyond_reason(footer: pyarrow.parquet.FileMetaData, name: str) -> None:
    """Check the compression ratio of each column chunk: chunks are decompressed by page, but a single page may be the whole chunk."""
    for group in range(footer.num_row_groups):
        for column in range(footer.num_columns):
            part = footer.row_group(group).column(column)
            packed, unpacked = part.total_compressed_size, part.total_uncompressed_size
            if unpacked > ROW_BYTES and unpacked > LARGEST_RATIO * packed:
                raise UserError(
                    f"{name}: row group {group} of {part.path_in_schema} has {packed:,} bytes that decompress to {unpacked:,}: not text"
                )


READERS = {
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".jsonl": _rows_of_json,
    ".ndjson": _rows_of_json,
    ".json": _rows_of_json,
    ".parquet": _rows_of_parquet,
}


def load_table(name: str, config_name: str | None, split: str, streaming: bool):
    """Load a split of a `datasets` name or directory; `None` if the split does not exist.

    Raises:
        UserError: it cannot be found or read.
    """
    import datasets  # takes a second, and files do without

    try:
        if os.path.isdir(name) and (Path(name) / "dataset_info.json").is_file():
            return datasets.load_from_disk(name) if split == "train" else None  # written by Dataset.save_to_disk
        if os.path.isdir(name) and (Path(name) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(name).get(split)
        available = datasets.get_dataset_split_names(name, config_name)
        if split not in available:
            return None
        return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(f"data set {name!r} cannot be loaded: {one_line(innermost(error))}") from error


def class_names(name: str, column: str, split: str = "train") -> list[str] | None:
    """The class names in the order of their ids, if a column of a `datasets` table or parquet file has them (ClassLabel).

    Raises:
        UserError: as [`load_table`].
    """
    if Path(name).is_file() and suffix_of(name) != ".parquet":
        return None
    import datasets

    if Path(name).is_file():
        features = datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(name))
    else:
        table = None if is_glob(name) else load_table(name, None, split, streaming=False)
        features = getattr(table, "features", None) or {}
    feature = features.get(column)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def no_column(name: str, values: Mapping[str, Any], wanted: str, flag: str) -> str:
    """The message for a column that is not there, with those that are, and the flag that names another."""
    header = ", or name the columns in the first line" if suffix_of(name) in (".csv", ".tsv") else ""
    return f"no column {wanted!r}: its columns are {', '.join(map(str, values))}; pass --{flag}{header}"


def find_column(values: Mapping[str, Any], name: str, wanted: str) -> str | None:
    """The column named `wanted`, in any case and ignoring surrounding spaces; `None` if there is none.

    Raises:
        UserError: several columns differ only in case.
    """
    if wanted in values:
        return wanted
    found = [column for column in values if str(column).strip().lower() == wanted.strip().lower()]
    if len(found) > 1:
        raise UserError(f"{name}: the columns {', '.join(map(repr, found))} differ only in case or spaces: rename one")
    if found:
        print_once(f"{name}: the column {found[0]!r} is read as {wanted!r}")
    return found[0] if found else None
