"""Flags that exclude or need one another, and the values of flags. By script: test_command_line.py."""

import pytest

from gpt_scratch.conflicts import check_preferences, parse_size
from gpt_scratch.errors import UserError
from gpt_scratch.training.preferences import PreferenceArguments


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("10KB", 10**4), ("123", 123)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "1.5GB", "0", "5TB"])
def test_wrong_sizes(text):
    with pytest.raises(UserError, match="write 500MB, 5GB or a number of bytes"):
        parse_size(text)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("dpo", {}, "--train_file is missing"),
        ("grpo", {"train_file": "x", "model_name_or_path": "y"}, "grpo needs --reward_model"),
        ("dpo", {"train_file": "x", "model_name_or_path": "y", "reward_model": "z"}, "--reward_model needs the method grpo"),
    ],
)
def test_flags_that_do_not_go_together(method, given, message):
    with pytest.raises(UserError, match=message):
        check_preferences(method, PreferenceArguments(**given), None)
