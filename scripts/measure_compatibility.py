"""Run a model with every installed library and runtime, and report size, perplexity and the largest difference of logits of each.

    pip install -e ".[peft,trl,export,quantization,lm-eval]" -c constraints.txt
    python scripts/measure_compatibility.py runs/quickstart --text gpt_scratch/data/samples/stories.jsonl
    python scripts/measure_compatibility.py smollm2 --text wikitext.txt --output scripts/benchmark_results/compatibility.json

With --output, existing rows of other models in the file are kept, and the table is also written as Markdown. The "text" column of a jsonl
file is used.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_scratch.benchmarking.harness import machine
from gpt_scratch.data.readers import whole_text
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.export.compatibility import INTEGRATIONS, markdown, measure_compatibility
from gpt_scratch.files import atomic_path, write_json
from gpt_scratch.provenance import describe_environment
from gpt_scratch.ranges import check_flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory of a language model of this package, with its tokenizer")
    parser.add_argument("--text", required=True, help="file to measure perplexity on: txt, or a table with a text column")
    parser.add_argument("--windows", type=int, default=24, help="number of windows, from the beginning of the text")
    parser.add_argument("--length", type=int, default=128, help="tokens per window")
    names = list(INTEGRATIONS)
    parser.add_argument("--integrations", "--roads", nargs="+", default=names, choices=names, help="default: all")
    parser.add_argument("--output", help="JSON file to write; the table is written next to it as .md")
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, and return the rows."""
    rows = measure_compatibility(args.model, whole_text(args.text), args.windows, args.length, args.integrations)
    print(markdown(rows))
    if args.output:
        output = Path(args.output)
        record: dict[str, Any] = {"rows": [], "runs": {}}
        if output.is_file():
            record = json.loads(output.read_text(encoding="utf-8"))
        for row in record["rows"]:
            row.setdefault("integration", row.pop("road", None))  # its name in 0.1.0
        new = {(row["model"], row["integration"]) for row in rows}
        record["rows"] = [row for row in record["rows"] if (row["model"], row["integration"]) not in new] + rows
        record["runs"][rows[0]["model"]] = {
            "windows": args.windows,
            "length": args.length,
            "machine": machine(),
            "environment": describe_environment(),
        }
        write_json(output, record)
        with atomic_path(output.with_suffix(".md")) as path:
            path.write_text(markdown(record["rows"]) + "\n", encoding="utf-8")
    failed = [row["integration"] for row in rows if "failed" in row and row["version"]]
    if failed:
        raise UserError(f"{len(failed)} of {len(rows)} integrations failed: {', '.join(failed)}")
    return rows


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
