"""FAULTS.md says what the tests try."""

from faults_table import TABLE


def test_the_table_is_current_and_long_enough(faults):
    assert faults == TABLE.read_text(encoding="utf-8"), "run make faults"
    assert faults.count("::") >= 60
