"""Flags that the training scripts share. By script, with their messages: test_command_line.py."""

from argparse import Namespace

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.training_conflicts import check_fractions, check_needed, check_resumable, check_split_files, resolve_trainable


def trainable(**given) -> Namespace:
    flags = dict.fromkeys(("trainable", "model_name_or_path", "train_last_blocks", "lora_rank", "lora_alpha", "lora_targets"))
    args = Namespace(**flags | given)
    resolve_trainable(args)
    return args


@pytest.mark.parametrize(
    ("given", "expected", "blocks"),
    [
        ({}, "all", None),
        ({"model_name_or_path": "x"}, "last_blocks", 1),
        ({"model_name_or_path": "x", "train_last_blocks": 3}, "last_blocks", 3),
        ({"trainable": "last_blocks"}, "last_blocks", 2),
        ({"trainable": "last_two_blocks"}, "last_blocks", 2),
        ({"trainable": "head"}, "head", None),
    ],
)
def test_what_is_trainable(given, expected, blocks):
    args = trainable(**given)
    assert (args.trainable, args.train_last_blocks, args.lora_rank) == (expected, blocks, None)


def test_the_defaults_of_lora():
    args = trainable(trainable="lora", lora_rank=4)
    assert (args.lora_rank, args.lora_alpha, args.lora_targets) == (4, 16, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trainable": "all", "lora_rank": 4}, "--lora_rank needs --trainable lora"),
        ({"trainable": "last_block", "train_last_blocks": 2}, "last_block already sets the number of blocks"),
    ],
)
def test_flags_without_effect_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        trainable(**given)


@pytest.mark.parametrize("fractions", [(0.8, 0.1), (0.8, 0.1, 0.2), (1.0, 0.0, 0.0), (1.2, -0.1, -0.1)])
def test_fractions(fractions):
    check_fractions((0.8, 0.1, 0.1))
    with pytest.raises(UserError, match="expected 3 positive numbers that add up to 1"):
        check_fractions(fractions)


def test_data_and_checkpoint_are_needed():
    check_needed("pretrain", Namespace())
    with pytest.raises(UserError, match="--model_name_or_path is missing: give the checkpoint to start from"):
        check_needed("finetune_preferences", Namespace(train_file="x", model_name_or_path=None))


def test_the_files_of_a_split():
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), "x")
    check_split_files(Namespace(split="files", **files))
    with pytest.raises(UserError, match="--split files needs"):
        check_split_files(Namespace(split="files", **files | {"test_file": None}))
    with pytest.raises(UserError, match="--validation_file is only used with --split files, but --split is clean"):
        check_split_files(Namespace(split="clean", **files))


def test_a_directory_without_a_checkpoint(tmp_path):
    check_resumable(str(tmp_path), None)
    with pytest.raises(UserError, match="contains no complete checkpoint-N directory"):
        check_resumable(str(tmp_path), "latest")
    (tmp_path / "checkpoint-3").mkdir()
    check_resumable(str(tmp_path), "latest")
    with pytest.raises(UserError, match=r"not a checkpoint, it contains no trainer_state.json"):
        check_resumable(str(tmp_path), str(tmp_path / "checkpoint-3"))
