"""Rows of csv and tsv: delimiter, header and quotes are detected, and a row that does not match its header is an error."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .columns import KNOWN_COLUMNS
from .opening import ROW_BYTES, Faults, Reading, print_once

DELIMITERS = ",;\t|"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?', re.IGNORECASE)
DELIMITER_DESCRIPTIONS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "|"}


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
    declared = _declared_delimiter(head)
    delimiter = reading.delimiter or declared or _recognized_delimiter(head, default, columns)
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
        names = [column.strip() for column in next(without_blank_lines(rows, delimiter), (1, []))[1]]
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
    if len(names) != 1:  # otherwise a line of white space or "" is a row with an empty cell
        rows = without_blank_lines(rows, delimiter)
    labels: Counter[str] = Counter()
    first_row: list[str] = []
    for number, (line_number, cells) in enumerate(rows):
        while len(cells) > len(names) and not cells[-1].strip():
            cells.pop()  # spreadsheets pad rows
        if not header and literal:
            cells = [*cells[:1], *([delimiter.join(cells[1:])] if len(cells) > 1 else [])]
        if len(cells) != len(names):
            faults.add(name, "line", line_number, _misfit(len(cells), names, delimiter, literal, width))
            continue
        if not header:
            first_row = first_row or cells
            labels[cells[0]] += 1
        yield number, dict(zip(names, cells))
    if first_row and labels[first_row[0]] == 1 and labels.total() > 2 * len(labels):
        print_once(
            f"{name}: the first line is read as a row, and no other has its label {first_row[0]!r}: if it is a header, give the names of "
            "its columns by --text_column and --label_column"
        )


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
    """The rows of csv with the line (1 is the first) in which each begins; empty lines are skipped, invalid rows added to `faults`."""
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
        if cells:
            yield line, cells


def without_blank_lines(rows: Iterable[tuple[int, list[str]]], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows, without lines of white space."""
    for line, cells in rows:
        if not (len(cells) == 1 and not cells[0].strip() and delimiter not in cells[0]):
            yield line, cells


def _declared_delimiter(head: list[str]) -> str | None:
    """The delimiter in Excel's first line `sep=;`, which becomes a blank line, so that line numbers do not change."""
    found = SEPARATOR_LINE.fullmatch(head[0].strip("\r\n")) if head else None
    if found is None:
        return None
    head[0] = "\n"
    return found[1]


def _refuse_other_formats(name: str, first: str) -> None:
    """Refuse JSON or a web page with the suffix .csv.

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
    """Whether the first line of a tsv contains a requested column, "label", or two columns that the scripts know."""
    lower = {name.lower() for name in names}
    return bool(lower & {"label", *(column.lower() for column in columns)}) or len(lower & KNOWN_COLUMNS) > 1


def _is_table(head: Sequence[str], delimiter: str) -> bool:
    """Whether a tsv has more columns than label and text."""
    counts = {len(_cells(line, delimiter)) for line in head if line.strip()}
    return len(counts) == 1 and counts.pop() > 2


def _recognized_delimiter(head: Sequence[str], default: str, columns: Sequence[str]) -> str:
    """The delimiter that splits the header into the most known names; on a tie the default, or csv.Sniffer's choice."""
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
    """Whether all quotes in a tsv enclose cells, as written by spreadsheets, rather than belonging to the text."""
    cells = [cell for line in head for cell in line.rstrip("\r\n").split(delimiter) if '"' in cell]
    return (
        bool(cells)
        and all(
            len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "") and '""' in cell[1:-1] + '""'
            for cell in cells
        )
        and any(len(cell) > 2 for cell in cells)
    )
