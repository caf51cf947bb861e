"""Names of the columns that the scripts read, and finding one in a row."""

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .opening import print_once, suffix_of

# These distinguish a header from a row, and a record from rows under a key.
TEXT_COLUMNS = ("text", "label")
RECORD_COLUMNS = (
    "instruction", "input", "output", "prompt", "completion", "messages", "conversations", "chosen", "rejected", "system", "history",
    "tools", "input_ids", "labels",
)  # fmt: skip
KNOWN_COLUMNS = {*TEXT_COLUMNS, *RECORD_COLUMNS}
TEXTS = {"text", "label", "instruction", "output"}  # columns whose values are never lists


def no_column(name: str, values: Mapping[str, Any], wanted: str, flag: str) -> str:
    """The message for a missing column, with the existing ones and the flag that names another."""
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
