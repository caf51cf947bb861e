"""Rows of csv, tsv, jsonl, json and parquet files and of `datasets` tables, as dictionaries; all errors are reported together.

The format is detected, and printed if it differs from the suffix. A row that does not match its header is an error.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..errors import UserError, innermost, one_line
from .delimited import rows_of_lines
from .json_rows import rows_of_json
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
    replaced,
    suffix_of,
)

Row = tuple[str, int, dict[str, Any]]  # file or data set, number (0 is the first), values by column


def read_table(
    names: str | Sequence[str],
    split: str = "train",
    reading: Reading | None = None,
    faults: Faults | None = None,
    columns: Sequence[str] = (),
    header: bool | None = None,
) -> Iterator[Row]:
    """Read the rows of a file, of all files of a glob or folder, or of a split of a `datasets` name or directory.

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
        files = [name] if Path(name).is_file() or is_glob(name) else files_of_folder(name, split)
        if files is not None:
            for file in check_files(files, TABLE_SUFFIXES):
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


def _rows_of_csv(
    name: str, reading: Reading, faults: Faults, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    return rows_of_lines(name, read_lines(name, reading), suffix_of(name) == ".tsv", reading, faults, columns, header)


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
    ".jsonl": rows_of_json,
    ".ndjson": rows_of_json,
    ".json": rows_of_json,
    ".parquet": _rows_of_parquet,
}


def files_of_folder(name: str, split: str) -> list[str] | None:
    """The csv, tsv, json and jsonl files of a split of a local folder, as `datasets` assigns files to splits; `None` for other data.

    They are read here like single files: pandas, by which `datasets` reads csv, silently takes the first column as an index if all rows
    have one field more than the header.

    Raises:
        UserError: the folder has no such split, or cannot be read.
    """
    if not os.path.isdir(name) or any((Path(name) / file).is_file() for file in ("dataset_info.json", "dataset_dict.json")):
        return None
    import datasets

    try:
        by_split = datasets.load_dataset_builder(name).config.data_files or {}
    except Exception as error:
        raise UserError(f"data set {name!r} cannot be loaded: {one_line(innermost(error))}") from error
    if not by_split or any(
        suffix_of(str(file)) not in READERS.keys() - {".parquet"} for part in by_split.values() for file in part
    ):
        return None
    if split not in by_split:
        raise UserError(f"data set {name!r} has no split {split!r}")
    return [str(file) for file in by_split[split]]


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
        table = datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(f"data set {name!r} cannot be loaded: {one_line(innermost(error))}") from error
    if table.info.builder_name == "csv" and "__index_level_0__" in (table.column_names or ()):  # see files_of_folder
        raise UserError(f"data set {name!r}: its csv rows have more fields than the header: give the files, which names the rows")
    return table


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
