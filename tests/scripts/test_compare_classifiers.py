"""Several runs in one table: which are trained, which are found again, what is refused."""

import json
import random
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.provenance import without_folders

RECIPE = """config_overrides: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 64, drop_rate: 0.0}
vocab_size: 300
trainable: all
max_steps: 2
save_strategy: "no"
eval_strategy: "no"
"""


@pytest.mark.slow
def test_runs_are_made_once_and_compared_with_the_baseline(script, tmp_path, capfd):
    rng = random.Random(0)
    texts = [
        f"{label}\t{rng.choice(words)} {i}"
        for i in range(60)
        for label, words in (("ham", ["home", "tea"]), ("spam", ["win", "prize"]))
    ]
    (tmp_path / "sms.tsv").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (tmp_path / "random.yaml").write_text(RECIPE, encoding="utf-8")
    compare = script("compare_classifiers")
    argv = ["--recipes", str(tmp_path / "random.yaml"), "--seeds", "1", "2", "--train_file", str(tmp_path / "sms.tsv")]
    argv += ["--output_dir", str(tmp_path / "runs"), "--use_cpu", "--disable_tqdm", "true"]
    table = compare.main(*compare.parse(argv))
    assert [line.split(" | ")[:2] for line in table.splitlines()[2:]] == [
        ["| TF-IDF + logistic regression", "1"],
        ["| random", "2"],
    ]
    made = sorted((tmp_path / "runs" / "clean").glob("random-*/metrics.json"))
    accuracies = [json.loads(file.read_text())["metrics"]["test_accuracy"] for file in made]
    written = json.loads((tmp_path / "runs" / "clean" / "comparison.json").read_text())
    assert len(made) == 2 and written["rows"][1]["test_accuracies"] == accuracies
    assert (tmp_path / "runs" / "clean" / "comparison.md").read_text().strip() == table
    capfd.readouterr()
    assert compare.main(*compare.parse(argv)) and "training" not in capfd.readouterr().out.split("| recipe")[0].split("test:")[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipes", "nothing"], "--recipes nothing: no such file; known names are all, head, last_block"),
        (["--recipes", "all"], "--model_name_or_path is missing"),
        (["--recipes", "random"], "none.tsv: no such file"),
    ],
)
def test_bad_input_ends_before_training(script, tmp_path, flags, message):
    compare = script("compare_classifiers")
    with pytest.raises(UserError, match=message):
        compare.main(*compare.parse([*flags, "--train_file", "none.tsv", "--output_dir", str(tmp_path)]))


@pytest.fixture
def started(script, tmp_path, monkeypatch):
    """The script, the flags of a comparison, and the commands that it starts in place of training."""
    compare, commands = script("compare_classifiers"), []
    texts = "".join(f"{label}\t{word} {i}\n" for i in range(20) for label, word in (("ham", "tea"), ("spam", "win")))
    (tmp_path / "sms.tsv").write_text(texts, encoding="utf-8")
    shared = Namespace(train_file=str(tmp_path / "sms.tsv"), split="clean")
    parts = compare.read_splits(compare.arguments_of_runs(shared, [])).texts

    def run(command, check):
        commands.append(command[2:])
        words = [command[1], *command[2:]]
        folder = Path(command[command.index("--output_dir") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        seed = int(command[command.index("--seed") + 1])
        figures = {"test_accuracy": seed / 10, "test_f1": 0.5, "test_macro_f1": 0.5, "validation_accuracy": 0.5}
        data = {split: {"classes": part.counts()} for split, part in parts.items()}
        record = {"metrics": figures | {"trainable_parameters": 5, "train_seconds": 1.0, "data": data}}
        record["environment"] = {"command": shlex.join(without_folders(words))}
        (folder / "metrics.json").write_text(json.dumps(record), encoding="utf-8")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(compare.subprocess, "run", run)
    argv = ["--recipes", "random", "head", "--seeds", "3", "5", "--train_file", str(tmp_path / "sms.tsv"), "--model_name_or_path", "base",
            "--output_dir", str(tmp_path / "runs"), "--bf16"]  # fmt: skip
    return compare, argv, commands


def test_each_flag_reaches_the_runs(started, tmp_path):
    compare, argv, commands = started
    (tmp_path / "runs" / "clean" / "head-5" / "checkpoint-7").mkdir(parents=True)
    table = compare.main(*compare.parse(argv))
    assert [Path(command[0]).stem for command in commands] == ["random", "random", "head", "head"]
    for command, seed in zip(commands, ["3", "5", "3", "5"]):
        assert (
            command[1:7] == ["--train_file", str(tmp_path / "sms.tsv"), "--split", "clean", "--seed", seed]
            and "--bf16" in command
        )
        assert ("--model_name_or_path" in command) == (Path(command[0]).stem == "head")
    assert [command[-2:] == ["--resume_from_checkpoint", "latest"] for command in commands] == [False, False, False, True]
    assert "| head | 2 | 40.00 (30.00 to 50.00) |" in table
    again = compare.main(*compare.parse(argv))
    assert (
        again.splitlines()[3:] == table.splitlines()[3:] and len(commands) == 4
    )  # none is made again; the baseline is timed anew


@pytest.mark.parametrize("change", [["--bf16", "--num_train_epochs", "2"], ["--model_name_or_path", "other"]])
def test_runs_of_other_flags_are_not_mixed_in(started, change):
    compare, argv, _ = started
    compare.main(*compare.parse(argv))
    with pytest.raises(
        UserError, match="(random-3|head-3) was made with other flags .*: choose another --output_dir, or remove it"
    ):
        compare.main(*compare.parse([*argv, *change]))


def test_runs_of_other_data_are_not_mixed_in(started, tmp_path):
    compare, argv, _ = started
    compare.main(*compare.parse(argv))
    with (tmp_path / "sms.tsv").open("a", encoding="utf-8") as file:
        file.writelines(f"ham\tmore {i}\n" for i in range(20))
    with pytest.raises(UserError, match="random-3 was made with other data .*: choose another --output_dir, or remove it"):
        compare.main(*compare.parse(argv))


def test_an_invalid_record_is_named(started, tmp_path):
    compare, argv, _ = started
    (tmp_path / "runs" / "clean" / "random-3").mkdir(parents=True)
    (tmp_path / "runs" / "clean" / "random-3" / "metrics.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="metrics.json is no record of a run"):
        compare.main(*compare.parse(argv))
