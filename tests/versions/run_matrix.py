"""Open today's checkpoints with many releases of transformers, each in an environment of its own, and print a table of what holds.

    python tests/versions/run_matrix.py                                          # the oldest supported, the pinned and the newest release
    python tests/versions/run_matrix.py --releases all --results matrix.json     # every supported minor release; also matrix.md
    python tests/versions/run_matrix.py --releases 5.0.0 newest --base other-venv/bin/python   # with the torch and the Python of another venv

Run with a Python that has this package: it writes the checkpoints and what they compute. In the environments the package is not importable. They are
kept (`--environments`), so that a second run installs nothing. Exit status 1 if anything failed, with a line for each cell that did.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from environments import PINNED, Base, BuildError, resolve

HERE = Path(__file__).resolve().parent
# Row: the program that writes what is checked, with this package (PROGRAM FOLDER; None: fixtures), and the one that checks it, in each environment. A checker has failed
# if its exit status is not 0. One that takes {results} writes more rows there, as JSON: row -> "ok", "-: reason" or what is wrong.
PROGRAMS = {
    "without the package": ("write_checkpoints.py", "check_checkpoint.py {folder} {results}"),
    "tokenizers of each kind": ("write_tokenizers.py", "check_tokenizer.py check-all {folder}"),
    "stock layouts": ("../stock_checkpoints.py", "check_stock_layouts.py {folder}/expected.json"),
    "checkpoints of earlier releases": (None, "check_old_checkpoints.py {results}"),
}
LIMIT = 900  # seconds for one checker in one environment
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
VERSIONS = (
    "import json, sys; from importlib.metadata import version; print(json.dumps({name: version(name) for name in sys.argv[1:]}))"
)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = 'versions of transformers, "oldest", "pinned", "newest" or "all"; default: the first three of these'
    parser.add_argument("--releases", nargs="+", default=["oldest", "pinned", "newest"], help=names)
    parser.add_argument(
        "--environments", type=Path, default=Path(".venv/versions"), help="where they are kept; default .venv/versions"
    )
    parser.add_argument("--base", default=sys.executable, help="Python whose torch is shared; default: the one that runs this")
    parser.add_argument("--results", type=Path, help="JSON file to write, and beside it the same as a .md")
    parser.add_argument("--jobs", type=int, default=2, help="environments at a time; default 2")
    return parser.parse_args()


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def folder(root: Path, name: str) -> Path:
    """Where a program of PROGRAMS finds what it checks."""
    return root / name.replace(" ", "-")


def write_inputs(root: Path) -> None:
    """What each program checks, in a folder of its own name."""
    for name, (writer, _) in PROGRAMS.items():
        if writer is None:
            continue
        folder(root, name).mkdir()
        command = [sys.executable, str(HERE / writer), str(folder(root, name))]
        done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{writer} failed:\n{done.stderr}")


def check(name: str, python: Path, root: Path) -> dict[str, str]:
    """The rows of one program in one environment."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.json"
        program, *arguments = PROGRAMS[name][1].format(folder=folder(root, name), results=results).split()
        command = [str(python), "-E", "-s", str(HERE / program), *arguments]  # neither PYTHONPATH nor the user's own packages
        environment = {**os.environ, **ENVIRONMENT, "HF_HOME": scratch}
        try:
            done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {name: f"not done after {LIMIT} seconds"}
        rows = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
        return {name: "ok" if done.returncode == 0 else last_line(done.stderr), **rows}


def run_column(base: Base, title: str, requirements: list[str], links: Path, root: Path) -> dict:
    """Everything in one environment: versions and rows."""
    start, column = time.monotonic(), {"versions": {}, "rows": {}}
    try:
        python = base.environment(title, requirements, links)
        found = subprocess.run([python, "-E", "-c", VERSIONS, *PINNED], capture_output=True, text=True, check=True)
        column["versions"] = json.loads(found.stdout)
        for name in PROGRAMS:
            column["rows"] |= check(name, python, root)
    except BuildError as error:
        column["rows"] = dict.fromkeys(PROGRAMS, f"no environment: {error}")
    bad = sum(not outcome.startswith(("ok", "-")) for outcome in column["rows"].values())
    print(f"{title}: {len(column['rows'])} checks, {bad} failed ({time.monotonic() - start:.0f} s)", flush=True)
    return column


def complete(columns: Mapping[str, dict]) -> None:
    """A row that any column has, every column has: what a program did not come to is a failure too."""
    names = dict.fromkeys(name for column in columns.values() for name in column["rows"])
    for column in columns.values():
        column["rows"] = {name: column["rows"].get(name, "not run") for name in names}


def mark(outcome: str) -> str:
    return "✓" if outcome == "ok" else "–" if outcome.startswith("-: ") else "✗"


def as_table(matrix: dict) -> str:
    """The matrix in Markdown: a column for each release, with the versions that it ran with."""
    columns = list(matrix["columns"].values())
    lines = [f"{matrix['date']}, Python {matrix['python']}, torch {matrix['torch']}", ""]
    lines += [" | ".join(["| transformers", *matrix["columns"]]) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in PINNED[1:]:
        lines.append(" | ".join([f"| {name}", *(column["versions"].get(name, "") for column in columns)]) + " |")
    for name in columns[0]["rows"]:
        lines.append(" | ".join([f"| {name}", *(mark(column["rows"][name]) for column in columns)]) + " |")
    return "\n".join(lines) + "\n"


def cells(matrix: dict, marked: str) -> list[str]:
    """One line for each cell with that mark."""
    rows = [(title, *row) for title, column in matrix["columns"].items() for row in column["rows"].items()]
    return [f"{title} | {name} | {outcome}" for title, name, outcome in rows if mark(outcome) == marked]


def main(args: argparse.Namespace) -> int:
    try:
        base, columns = Base(args.base, args.environments.resolve()), resolve(args.releases, args.base)
    except BuildError as error:
        sys.exit(f"error: {error}")
    links = base.link()
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(args.jobs) as pool:
        write_inputs(Path(root))
        runs = {title: pool.submit(run_column, base, title, needs, links, Path(root)) for title, needs in columns.items()}
        matrix = {
            "date": date.today().isoformat(),
            **base.versions,
            "columns": {title: run.result() for title, run in runs.items()},
        }
    complete(matrix["columns"])
    absent, failed = cells(matrix, "–"), cells(matrix, "✗")
    print("\n" + as_table(matrix) + "\n" + "\n".join(absent + failed))
    if args.results:
        args.results.write_text(json.dumps(matrix, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        args.results.with_suffix(".md").write_text(as_table(matrix), encoding="utf-8")
    passed = sum(len(cells(matrix, kind)) for kind in "✓")
    print(f"{passed} passed, {len(failed)} failed, {len(absent)} skipped")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(parse()))
