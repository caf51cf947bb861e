"""The flags of zero_to_chat.py: wrong ones are refused before anything is written; a dry run prints the rule and the cost."""

import pytest

from gpt_scratch.errors import UserError


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--size", "huge"], "--size huge: use tiny, small, medium, 124M, or a number of layers"),
        (["--size", "1"], "a number of layers from 2 to 48"),
        (["--instruction_file", "x.jsonl"], "--reinforcement_file is missing"),
        (["--page", "--no_chat"], "exclude each other"),
        (["--pretraining_file", "none.txt"], "none.txt: one file is needed"),
        (["--samples", "-1"], "--samples is -1"),
    ],
)
def test_wrong_flags_are_refused_and_nothing_is_written(script, tmp_path, monkeypatch, argv, message):
    monkeypatch.chdir(tmp_path)
    module = script("zero_to_chat")
    with pytest.raises(UserError, match=message):
        module.main(module.parse(argv))
    assert not any(tmp_path.iterdir())


@pytest.mark.thorough
def test_a_dry_run_prints_the_rule_and_the_cost_and_runs_nothing(script, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = script("zero_to_chat")
    module.main(module.parse(["--dry_run"]))
    printed = capsys.readouterr().out
    for line in (
        "width               32 L below depth 8",
        "tiny: depth 4, width 128",
        "124M: depth 12, width 768",
        "one H100, estimated",
    ):
        assert line in printed
    assert "with enough text: 2." in printed and printed.count("tokens/s") == 8
    assert not any(tmp_path.iterdir())


def test_the_command_in_the_report_names_no_folder(script):
    module = script("zero_to_chat")
    args = module.parse(["--pretraining_file", "/somewhere/private/text.txt", "--seed", "5"])
    command = module.command_of(args)
    assert command == "python scripts/zero_to_chat.py --size tiny --seed 5 --samples 8 --pretraining_file text.txt"
