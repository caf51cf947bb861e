"""Rows of JSON files: one object per line, a list, several objects one after another, columns, or rows under one key."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import UserError
from .columns import KNOWN_COLUMNS, TEXTS
from .opening import Faults, Reading, print_once, read_lines, read_text, suffix_of


def rows_of_json(
    name: str, reading: Reading, faults: Faults, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and values of the rows of a JSON file, whatever its form; invalid rows are added to `faults`."""
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
    """The value of a line, and whether a comma follows it, as in a list that was split into lines."""
    try:
        return _parse(line, ""), False
    except UserError:
        if not line.rstrip().endswith("},"):
            raise
    return _parse(line.rstrip()[:-1], ""), True


def _objects(text: str, name: str) -> list[Any]:
    """The JSON values in a text, one after another as `jq` writes them; usually just one."""
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
    """The rows within an object: columns as written by pandas and `datasets`, or a list of objects under a key of any name; `None` if the
    object is itself a row.

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
    """The rows of `DataFrame.to_json` in its orientations columns, index and split, and of `to_dict("list")`; `None` for anything else."""
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
        return json.loads(text, object_pairs_hook=_once, strict=False)  # strict=False allows tabs in strings
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
