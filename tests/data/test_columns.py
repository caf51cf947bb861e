"""Columns are found by their name in any case."""

import pytest

from gpt_scratch.data.columns import find_column
from gpt_scratch.errors import UserError


def test_columns_are_found_in_any_case(capsys):
    assert find_column({"Text": 1}, "a.csv", "text") == "Text"
    assert "the column 'Text' is read as 'text'" in capsys.readouterr().err
    assert find_column({"TEXT": 1, "text": 2}, "a.csv", "text") == "text"
    assert find_column({"body": 1}, "a.csv", "text") is None
    with pytest.raises(UserError, match="differ only in case or spaces"):
        find_column({"TEXT": 1, "Text": 2}, "a.csv", "text")
