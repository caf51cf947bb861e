"""Compare the reports of two runs of scripts/zero_to_chat.py.

    python scripts/compare_reports.py runs/chat-tiny runs/chat-small
    python scripts/compare_reports.py runs/chat-tiny runs/chat-small --output comparison.md

Prints a Markdown table: sizes, accuracy after each stage and by kind with intervals, bits per byte, time.
"""

if __name__ == "__main__":
    import _flags

    _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_scratch.errors import run_script
from gpt_scratch.files import atomic_path
from gpt_scratch.ranges import check_flags
from gpt_scratch.zero_to_chat.report import compare, read_report


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", help="directory of a run, or its report.json")
    parser.add_argument("second", help="directory of another run, or its report.json")
    parser.add_argument("--output", help="file to write the table to, in addition to printing it")
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> str:
    """Print and return the table."""
    names = (Path(args.first).resolve().name, Path(args.second).resolve().name)
    table = compare(read_report(args.first), read_report(args.second), names)
    print(table)
    if args.output:
        with atomic_path(args.output) as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")
    return table


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
