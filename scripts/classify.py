"""Classify texts: on the command line, the lines of a file, the rows of a table, or standard input.

python scripts/classify.py runs/spam --text "You have won a prize"
python scripts/classify.py runs/spam --file messages.txt > labels.jsonl
python scripts/classify.py runs/spam --file messages.csv --text_column message --output labels.csv
tail -f inbox.txt | python scripts/classify.py runs/spam --batch_size 1

Results are written as jsonl with the scores of all classes, as soon as they are available. If --output ends in .csv or .tsv, it contains
all input columns, then label and score (predicted_label and predicted_score if these names exist). An empty text gets an empty label; their
number is printed at the end.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import codecs
import contextlib
import json
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

from tqdm import tqdm

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.conflicts import check_classify
from gpt_scratch.data.opening import TABLE_SUFFIXES, Reading, check_files, print_once, read_lines, suffix_of
from gpt_scratch.data.readers import texts_of_table
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.files import atomic_path
from gpt_scratch.inference.classify import LabelTable, classify_texts
from gpt_scratch.inference.loading import load_classifier
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.precision import use_fast_fp32_matmul


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a classifier with its tokenizer")
    parser.add_argument("--text", nargs="+", help="texts to classify")
    parser.add_argument("--file", help="one text per line (txt) or row (csv, tsv, jsonl, json, parquet); default: standard input")
    parser.add_argument("--text_column", default="text", help="column of the texts in csv, jsonl, json and parquet")
    Reading.add_flags(parser)
    parser.add_argument("--output", help="file to write; default: standard output")
    parser.add_argument("--batch_size", type=int, default=32, help="texts per forward pass")
    return check_flags(parser.parse_args(argv))


def read_texts(
    args: argparse.Namespace, files: Sequence[str] = (), keep: Callable[[dict[str, Any]], None] | None = None
) -> Iterator[str]:
    """Yield the texts given by the flags. Before each text from a row of a table, `keep` is called with its columns.

    Raises:
        UserError: text in another encoding, or a row without a text; names file and line.
    """
    reading = Reading.of(args)
    if args.text:
        yield from args.text
        return
    for file in files:
        if suffix_of(file) in TABLE_SUFFIXES:
            yield from texts_of_table(file, args.text_column, reading, keep)
        else:
            yield from texts_of_lines(read_lines(file, reading), file, reading)
    if not files:
        yield from texts_of_lines(lines_of_stdin(reading), "standard input", reading)


def texts_of_lines(lines: Iterable[str], name: str, reading: Reading) -> Iterator[str]:
    """Yield the lines without their ends; with --skip_empty, empty ones are left out and counted."""
    empty = 0
    for line in lines:
        text = line.rstrip("\r\n")
        if reading.skip_empty and not text.strip():
            empty += 1
        else:
            yield text
    if empty:
        print_once(f"{name}: {empty:,} empty lines were skipped")


def lines_of_stdin(reading: Reading) -> Iterator[str]:
    """Yield the lines of standard input as they arrive, without a byte order mark.

    Raises:
        UserError: names the line that cannot be decoded.
    """
    encoding = reading.encoding or "utf-8"
    for number, line in enumerate(sys.stdin.buffer, start=1):
        if "\n".encode(encoding) != b"\n" or (number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))):
            raise UserError(
                "standard input cannot be UTF-16 or UTF-32, whose lines do not end with one byte: pass a file by --file"
            )
        try:
            text = line.decode(encoding)
        except UnicodeDecodeError as error:
            raise UserError(
                f"standard input line {number} is not {error.encoding} ({error.reason}): pass its --encoding, such as cp1252 or latin-1"
            ) from error
        yield text.removeprefix("\ufeff") if number == 1 else text


def main(args: argparse.Namespace) -> int:
    """Classify, write a table or jsonl, and return the number of texts."""
    check_classify(args)
    files = check_files([args.file]) if args.file else []
    use_fast_fp32_matmul()
    model, tokenizer = load_classifier(args.model)
    rows: deque[dict[str, Any]] = deque()  # columns of texts that are read but not yet written
    texts = read_texts(args, files, rows.append)
    results = classify_texts(model, tokenizer, texts, args.batch_size, window=16 if args.file else 1)
    count = empty = cut = 0
    with open_output(args.output) as output:
        table: LabelTable | None = None
        for result in tqdm(results, unit=" texts", file=sys.stderr, disable=not sys.stderr.isatty()):
            columns = rows.popleft() if rows else None
            if is_table(args.output):
                table = table or LabelTable(output, delimiter_of(args, files), columns)
                table.write(result, columns)
            else:
                output.write(json.dumps(result, ensure_ascii=False) + "\n")
            count, empty, cut = count + 1, empty + (result["label"] is None), cut + ("cut_to" in result)
            if output is sys.stdout:
                output.flush()
    if empty:
        print(f"{empty:,} of {count:,} texts are empty and have no label", file=sys.stderr)
    if cut:
        limit = model.config.max_position_embeddings
        print(f"{cut:,} of {count:,} texts are longer than the model's {limit:,} positions and were cut there", file=sys.stderr)
    return count


def is_table(output: str | None) -> bool:
    """Whether the output file is a table, by its suffix."""
    return suffix_of(output) in (".csv", ".tsv") if output else False


@contextlib.contextmanager
def open_output(name: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that is written atomically."""
    if name is None:
        yield sys.stdout
        return
    with atomic_path(name) as path, path.open("w", encoding="utf-8", newline="") as file:
        yield file


def delimiter_of(args: argparse.Namespace, files: Sequence[str]) -> str:
    """Delimiter of the output table: tab for tsv; otherwise --delimiter, or that of the first input csv, or a comma."""
    if suffix_of(args.output) == ".tsv":
        return "\t"
    reading = Reading.of(args)
    if reading.delimiter:
        return reading.delimiter
    head = next(iter(read_lines(files[0], reading)), "") if files and suffix_of(files[0]) == ".csv" else ""
    return max(",;\t|", key=head.count)


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
