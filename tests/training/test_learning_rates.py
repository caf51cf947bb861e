"""The learning rate where no flag gives one: by size and by what trains; a flag always takes precedence."""

import pytest

from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments, trainable_scope
from gpt_scratch.training.optimizers import default_learning_rate, set_default_learning_rate


def arguments(tmp_path, *flags: str) -> ScratchTrainingArguments:
    return parse_arguments((ScratchTrainingArguments,), ["--output_dir", str(tmp_path), "--use_cpu", *flags])[0]


@pytest.mark.parametrize(
    ("parameters", "trained", "expected"),
    [
        (124_000_000, "new", 6e-4),
        (1_240_000, "new", 6e-4 * 100**0.3),
        (1_000, "new", 5e-3),
        (124_000_000, "all", 6e-5),
        (1_240_000, "all", 6e-5 * 100**0.6),
        (12_400_000_000, "all", 6e-5 * 0.01**0.3),
        (1_000, "all", 5e-3),
        (124_000_000, "some", 2e-4),
        (124_000_000, "head", 6e-4),
    ],
)
def test_the_rule_by_hand(parameters, trained, expected):
    assert default_learning_rate(parameters, trained) == pytest.approx(expected)


def test_it_is_set_with_warm_up_and_decay_and_reported_in_one_line(tmp_path, capsys):
    args = arguments(tmp_path)
    set_default_learning_rate(args, 1_240_000, "new")
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == (0.0024, "cosine", 0.05)
    said = capsys.readouterr().out
    assert said.startswith("learning rate: 0.0024 after a warm-up of 5% of the steps, then cosine") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--learning_rate", "5e-5"], (5e-5, "linear", 0)),  # Trainer's own value, but given
        (["--learning_rate", "1e-3", "--lr_scheduler_type", "constant"], (1e-3, "constant", 0)),
        (["--lr_scheduler_type", "constant"], (0.0024, "constant", 0.05)),
        (["--warmup_steps", "7"], (0.0024, "cosine", 7)),
        (["--warmup_steps", "0"], (0.0024, "cosine", 0)),
    ],
)
def test_flags_take_precedence(tmp_path, flags, expected):
    args = arguments(tmp_path, *flags)
    set_default_learning_rate(args, 1_240_000, "new")
    assert (args.learning_rate, args.lr_scheduler_type, args.warmup_steps) == expected


def test_a_classifier_with_new_weights_trains_all_of_them():
    new, loaded = ClassificationArguments(), ClassificationArguments(model_name_or_path="runs/mine")
    assert (new.trainable, trainable_scope(new)) == ("all", "new")
    assert (loaded.trainable, loaded.train_last_blocks, trainable_scope(loaded)) == ("last_blocks", 1, "some")
    assert ClassificationArguments(trainable="head", model_name_or_path="runs/mine").trainable == "head"
    assert ClassificationArguments(train_last_blocks=3, model_name_or_path="runs/mine").train_last_blocks == 3
