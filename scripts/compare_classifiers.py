r"""Train the spam classifier with several recipes and seeds, and compare them with a baseline.

    python scripts/compare_classifiers.py --recipes random --train_file SMSSpamCollection.tsv --split published --output_dir runs/spam
    python scripts/compare_classifiers.py --recipes last_block last_two_blocks all lora head random --seeds 123 1 2 \
        --model_name_or_path CONVERTED_MODEL --train_file SMSSpamCollection.tsv --split clean --output_dir runs/spam --bf16

A recipe is a file of scripts/configs/spam, by name, or a path. Each run is one of scripts/finetune_classifier.py, in
OUTPUT_DIR/SPLIT/RECIPE-SEED; a run whose metrics.json exists is not repeated, so an interrupted comparison resumes where it stopped.
Other flags are passed to every run. Writes OUTPUT_DIR/SPLIT/comparison.md and comparison.json.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from gpt_scratch.errors import UserError, one_line, run_script
from gpt_scratch.files import atomic_path, read_json_object, write_json
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.classification import ClassificationArguments, read_splits
from gpt_scratch.training.classifier_comparison import comparison_table, row_of_runs, tfidf_baseline

SCRIPTS = Path(__file__).resolve().parent
RECIPES = SCRIPTS / "configs" / "spam"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse this script's flags, and return those for the runs unparsed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", nargs="+", required=True, help="names of files in scripts/configs/spam, or paths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[123], help="each recipe is run once per seed")
    parser.add_argument("--train_file", required=True, help="labelled texts")
    parser.add_argument("--split", default="clean", choices=["clean", "published"], help="see finetune_classifier.py --help")
    parser.add_argument("--model_name_or_path", help="pretrained model for every recipe except random")
    parser.add_argument("--output_dir", required=True, help="directory of the runs")
    args, others = parser.parse_known_args(argv)
    return check_flags(args), others


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        UserError: there is no such file.
    """
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise UserError(f"--recipes {name}: no such file; known names are {known}")


def run_flags(args: argparse.Namespace, recipe: Path, seed: int, flags: Sequence[str]) -> list[str]:
    """The flags of a run, except for its output directory."""
    words = [str(recipe), "--train_file", args.train_file, "--split", args.split, "--seed", str(seed), *flags]
    return words if recipe.stem == "random" else [*words, "--model_name_or_path", args.model_name_or_path]


def finished_run(run: Path, flags: Sequence[str], held_out: dict[str, dict[str, int]]) -> dict[str, Any]:
    """The contents of a run's `metrics.json`; the run is started or resumed if it is not finished.

    Args:
        held_out: texts of each class in the validation and the test split.

    Raises:
        UserError: the run fails, or a finished run was made with other flags or data.
    """
    metrics, begun = run / "metrics.json", any(run.glob("checkpoint-*"))
    if not metrics.is_file():
        print(f"{run}: {'resuming' if begun else 'training'}", flush=True)
        command = [sys.executable, str(SCRIPTS / "finetune_classifier.py"), *flags, "--output_dir", str(run)]
        done = subprocess.run([*command, *(["--resume_from_checkpoint", "latest"] if begun else [])], check=False)
        if done.returncode:
            raise UserError(f"{run}: the run ended with exit status {done.returncode}, see above")
    try:
        record = read_json_object(metrics)
        made_with = shlex.split(record["environment"]["command"])[1:]
        measured = {split: record["metrics"]["data"][split]["classes"] for split in held_out}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{metrics} is no record of a run ({one_line(error)}): remove {run}") from error
    for name in ("--output_dir", "--resume_from_checkpoint"):  # these may differ
        if name in made_with:
            del made_with[made_with.index(name) : made_with.index(name) + 2]
    expected, found = (shlex.join(map(os.path.basename, words)) for words in (flags, made_with))  # folders are not recorded
    if found != expected:
        raise UserError(f"{run} was made with other flags ({found}, not {expected}): choose another --output_dir, or remove it")
    if measured != held_out:
        raise UserError(f"{run} was made with other data ({measured}, not {held_out}): choose another --output_dir, or remove it")
    return record


def arguments_of_runs(args: argparse.Namespace, flags: Sequence[str]) -> ClassificationArguments:
    """The arguments that all runs share, parsed from the flags of finetune_classifier.py among `flags`."""
    words = ["--train_file", args.train_file, "--split", args.split, *flags]
    parser = HfArgumentParser(ClassificationArguments, allow_abbrev=False)
    return parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)[0]


def main(args: argparse.Namespace, flags: Sequence[str] = ()) -> str:
    """Run what is missing, and return the table."""
    recipes = [find_recipe(name) for name in args.recipes]
    if args.model_name_or_path is None and any(path.stem != "random" for path in recipes):
        raise UserError("--model_name_or_path is missing: every recipe but random starts from a pretrained model")
    splits = read_splits(arguments_of_runs(args, flags))
    folder = Path(args.output_dir) / args.split
    held_out = {split: splits.texts[split].counts() for split in ("validation", "test")}
    rows = [tfidf_baseline(splits.texts, splits.ids)]
    for recipe in recipes:
        runs = [folder / f"{recipe.stem}-{seed}" for seed in args.seeds]
        records = [finished_run(run, run_flags(args, recipe, seed, flags), held_out) for run, seed in zip(runs, args.seeds)]
        rows.append(row_of_runs(recipe.stem, records))
    table = comparison_table(rows)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "comparison.json", {"split": args.split, "seeds": args.seeds, "rows": [asdict(row) for row in rows]})
    with atomic_path(folder / "comparison.md") as temporary:
        temporary.write_text(table + "\n", encoding="utf-8")
    print(table)
    return table


if __name__ == "__main__":
    run_script(lambda: main(*parse(sys.argv[1:])))
