"""Classify texts: one on the command line, the lines of a file, or standard input; jsonl goes to standard output as it is ready.

python scripts/classify.py runs/spam --text "You have won a prize"
python scripts/classify.py runs/spam --file messages.txt > labels.jsonl
python scripts/classify.py runs/spam --file messages.csv --text_column message --output labels.jsonl
tail -f inbox.txt | python scripts/classify.py runs/spam --batch_size 1
"""

if __name__ == "__main__":
    import _flags

    _flags.check(__file__, __doc__)  # --help and mistakes, before torch and transformers are imported


import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence

from tqdm import tqdm

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.data.opening import TABLE_SUFFIXES, Faults, Reading, check_files, read_lines, suffix_of
from gpt_scratch.data.readers import texts_of_rows
from gpt_scratch.data.tables import read_table
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.files import atomic_path
from gpt_scratch.inference.classify import classify_texts
from gpt_scratch.inference.loading import load_classifier
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.precision import use_fast_fp32_matmul


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a classifier with its tokenizer")
    parser.add_argument("--text", nargs="+", help="texts to classify")
    parser.add_argument(
        "--file", help="a text a line (txt), or a text a row (csv, tsv, jsonl, json, parquet); default: standard input"
    )
    parser.add_argument("--text_column", default="text", help="column of the texts in csv, jsonl, json and parquet")
    Reading.add_flags(parser)
    parser.add_argument("--output", help="file to write; default: standard output")
    parser.add_argument("--batch_size", type=int, default=32, help="texts a forward pass")
    return check_flags(parser.parse_args(argv))


def read_texts(args: argparse.Namespace, files: Sequence[str] = ()) -> Iterator[str]:
    """The texts that the flags name, one by one.

    Raises:
        UserError: text of another encoding, or rows without one; names file and line.
    """
    reading = Reading.of(args)
    if args.text:
        yield from args.text
        return
    for file in files:
        if suffix_of(file) in TABLE_SUFFIXES:
            faults = Faults()
            rows = read_table(file, reading=reading, faults=faults, columns=[args.text_column])
            yield from texts_of_rows(rows, args.text_column, reading, faults)
        else:
            yield from (line.rstrip("\r\n") for line in read_lines(file, reading))
    if files:
        return
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode(reading.encoding or "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input line {number} is not {error.encoding} ({error.reason}): convert it") from error


def main(args: argparse.Namespace) -> int:
    """Classify, write jsonl, and return the number of texts."""
    files = check_files([args.file]) if args.file else []
    use_fast_fp32_matmul()
    model, tokenizer = load_classifier(args.model)
    results = classify_texts(model, tokenizer, read_texts(args, files), args.batch_size, window=16 if args.file else 1)
    with contextlib.ExitStack() as stack:
        output = sys.stdout
        if args.output:
            output = stack.enter_context(stack.enter_context(atomic_path(args.output)).open("w", encoding="utf-8"))
        count = 0
        for result in tqdm(results, unit=" texts", file=sys.stderr, disable=not sys.stderr.isatty()):
            output.write(json.dumps(result, ensure_ascii=False) + "\n")
            count += 1
            if output is sys.stdout:
                output.flush()
    return count


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
