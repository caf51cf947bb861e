"""Lay the loss curves of several runs over one another, from nothing but their `metrics.json` or `trainer_state.json`.

    python scripts/plot_runs.py runs/a runs/b --labels "constant rate" "cosine" --output comparison
    python scripts/plot_runs.py runs/a runs/b/checkpoint-500 --x num_input_tokens_seen --output comparison

Writes comparison.png and comparison.pdf: validation loss solid, training loss (where it was evaluated) dotted.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_scratch.errors import UserError, run_script
from gpt_scratch.training.plots import plot_runs


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="directories with trainer_state.json or metrics.json, or such files")
    parser.add_argument("--labels", nargs="+", help="a name for each run; default: the directory")
    parser.add_argument("--x", default="epoch", choices=["step", "epoch", "num_input_tokens_seen"], help="horizontal axis")
    parser.add_argument("--title", default="", help="heading")
    parser.add_argument("--output", default="runs-compared", help="file to write, without suffix")
    return parser.parse_args(argv)


def read_history(name: str) -> list[dict]:
    """The log of a run: its directory, or one of the two files.

    Raises:
        UserError: neither file is there or one cannot be read.
    """
    path = Path(name)
    candidates = [path / "trainer_state.json", path / "metrics.json"] if path.is_dir() else [path]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if not found:
        raise UserError(f"{name}: neither trainer_state.json nor metrics.json is there")
    try:
        content = json.loads(found[0].read_text(encoding="utf-8"))
        return content["log_history"] if "log_history" in content else content["metrics"]["curve"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{found[0]} holds no log of a run: {error}") from error


def main(args: argparse.Namespace) -> list[Path]:
    """Draw, print and return the files."""
    labels = args.labels or [Path(name).name for name in args.runs]
    if len(labels) != len(args.runs):
        raise UserError(f"{len(labels)} labels for {len(args.runs)} runs")
    histories = dict(zip(labels, map(read_history, args.runs)))
    written = plot_runs(histories, args.output, args.x, args.title)
    print("\n".join(map(str, written)))
    return written


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
