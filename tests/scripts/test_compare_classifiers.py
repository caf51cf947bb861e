"""Several runs, one table: what is trained, what is found again, what is refused."""

import json
import random

import pytest

from gpt_scratch.errors import UserError

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
