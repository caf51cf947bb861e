r"""Train the spam classifier by several recipes and seeds, and print them side by side with a baseline.

    python scripts/compare_classifiers.py --recipes random --train_file SMSSpamCollection.tsv --split published --output_dir runs/spam
    python scripts/compare_classifiers.py --recipes last_block last_two_blocks all lora head random --seeds 123 1 2 \
        --model_name_or_path CONVERTED_MODEL --train_file SMSSpamCollection.tsv --split clean --output_dir runs/spam --bf16

A recipe is a file of scripts/configs/spam, by name, or a path. Each run is one of scripts/finetune_classifier.py, in
OUTPUT_DIR/SPLIT/RECIPE-SEED; a run whose metrics.json is there is not made again, so an interrupted comparison goes on where it was.
Flags that are not of this script go to every run. Writes OUTPUT_DIR/SPLIT/comparison.md and comparison.json.
"""

if __name__ == "__main__":
    import _flags

    _flags.check(__file__, __doc__)  # --help and mistakes, before torch and transformers are imported


import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from transformers import HfArgumentParser

from gpt_scratch.errors import UserError, run_script
from gpt_scratch.files import atomic_path, write_json
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.classification import ClassificationArguments, read_splits
from gpt_scratch.training.classifier_comparison import comparison_table, row_of_runs, tfidf_baseline

SCRIPTS = Path(__file__).resolve().parent
RECIPES = SCRIPTS / "configs" / "spam"


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags of this script, and those for the runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--recipes", nargs="+", required=True, help="names in scripts/configs/spam, or paths")
    parser.add_argument("--seeds", nargs="+", type=int, default=[123], help="one run of each recipe per seed")
    parser.add_argument("--train_file", required=True, help="labelled texts")
    parser.add_argument("--split", default="clean", choices=["clean", "published"], help="see finetune_classifier.py --help")
    parser.add_argument("--model_name_or_path", help="pretrained model of every recipe but random")
    parser.add_argument("--output_dir", required=True, help="directory of the runs")
    args, others = parser.parse_known_args(argv)
    return check_flags(args), others


def find_recipe(name: str) -> Path:
    """The file of a recipe.

    Raises:
        UserError: there is none.
    """
    for path in (RECIPES / f"{name}.yaml", Path(name)):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    raise UserError(f"--recipes {name}: no such file; known names are {known}")


def arguments_of_runs(args: argparse.Namespace, flags: Sequence[str]) -> ClassificationArguments:
    """How every run reads its data: the flags of finetune_classifier.py among `flags`."""
    words = ["--train_file", args.train_file, "--split", args.split, *flags]
    parser = HfArgumentParser(ClassificationArguments, allow_abbrev=False)
    return parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)[0]


def main(args: argparse.Namespace, flags: Sequence[str] = ()) -> str:
    """Make the runs that are missing; returns the table."""
    recipes = [find_recipe(name) for name in args.recipes]
    if args.model_name_or_path is None and any(path.stem != "random" for path in recipes):
        raise UserError("--model_name_or_path is missing: every recipe but random starts from a pretrained model")
    splits = read_splits(arguments_of_runs(args, flags))
    folder = Path(args.output_dir) / args.split
    rows = [tfidf_baseline(splits.texts, splits.ids)]
    for recipe in recipes:
        runs = [folder / f"{recipe.stem}-{seed}" for seed in args.seeds]
        for run, seed in zip(runs, args.seeds):
            if (run / "metrics.json").is_file():
                continue
            begun = any(run.glob("checkpoint-*"))
            print(f"{run}: {'resuming' if begun else 'training'}", flush=True)
            command = [sys.executable, str(SCRIPTS / "finetune_classifier.py"), str(recipe), "--train_file", args.train_file]
            command += ["--split", args.split, "--seed", str(seed), "--output_dir", str(run), *flags]
            if recipe.stem != "random":
                command += ["--model_name_or_path", args.model_name_or_path]
            if begun:
                command += ["--resume_from_checkpoint", "latest"]
            done = subprocess.run(command, check=False)
            if done.returncode:
                raise UserError(f"{run}: the run ended with exit status {done.returncode}, see above")
        records = [json.loads((run / "metrics.json").read_text(encoding="utf-8")) for run in runs]
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
