"""Rewards against values worked out by hand, functions of a user's file, and what is refused."""

import pytest

from gpt_scratch import conflicts
from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.rewards import REWARDS, check_references, load_rewards, total

ASKED = [{"role": "user", "content": "What is 3 + 4?"}]


def test_the_names_checked_before_torch_are_those_of_the_rewards():
    assert tuple(REWARDS) == conflicts.REWARDS


@pytest.mark.parametrize(
    ("name", "reply", "reference", "expected"),
    [
        ("exact_match", " 3 + 4 = 7", "3 + 4 = 7", 1.0),
        ("exact_match", "7", "3 + 4 = 7", 0.0),
        ("arithmetic", "It is 7.", "3 + 4 = 7", 1.0),
        ("arithmetic", "7 and not 8", "3 + 4 = 7", 0.0),
        ("arithmetic", "no idea", "3 + 4 = 7", 0.0),
        ("arithmetic", "1,024", "it makes 1024", 1.0),
        ("arithmetic", "3 - 4 = -1", "-1", 1.0),
        ("format", "12 + 5 = 99", "3 + 4 = 7", 1.0),
        ("format", "7", "3 + 4 = 7", 0.0),
        ("length", "abcd", "ab", 0.5),
        ("length", "", "ab", 0.0),
        ("length", "", "", 1.0),
    ],
)
def test_by_hand(name, reply, reference, expected):
    assert load_rewards([name])[0](ASKED, reply, reference) == expected


@pytest.mark.parametrize("name", REWARDS)
def test_a_reply_that_is_cut_off_gets_no_reward(name):
    assert load_rewards([name])[0](ASKED, "7", "7", ended=False) == 0.0 < load_rewards([name])[0](ASKED, "7", "7")


def test_a_function_of_a_file_is_given_prompt_reply_and_reference(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def words(prompt, reply, reference):\n    return len(reply.split()) + 10 * len(prompt)\n", encoding="utf-8")
    [reward] = load_rewards([f"{file}:words"])
    assert reward(ASKED, "two words", "") == 12 and reward.name == "mine.py:words"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("x = 1", "mine.py:x", "has no function 'x'"),
        ("raise SystemExit(3)", "mine.py:f", "cannot be run: SystemExit: 3"),
        ("def f(:", "mine.py:f", "cannot be run: SyntaxError"),
        ("", "none.py:f", "there is no file"),
        ("", "exact", "exact is unknown: use exact_match, arithmetic, format, length, or path/to/file.py:function"),
        ("", "os:remove", "os:remove is unknown"),
    ],
)
def test_an_invalid_reward_is_refused_by_name(tmp_path, monkeypatch, text, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_rewards([name])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return None", "returned None"),
        ("return float('nan')", "returned nan"),
        ("return '1'", "returned '1'"),
        ("return 1e300", "returned 1e[+]300"),
    ],
)
def test_an_error_in_a_reward_function_is_one_line_with_the_reply(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def f(prompt, reply, reference):\n    {body}\n", encoding="utf-8")
    [reward] = load_rewards([f"{tmp_path / 'mine.py'}:f"])
    with pytest.raises(UserError, match=message) as found:
        reward(ASKED, "the reply", "7")
    assert "'the reply'" in str(found.value) and "\n" not in str(found.value)


def test_a_reference_without_a_number_is_refused_before_training():
    with pytest.raises(UserError, match="row 1: its reply 'none' holds no number"):
        check_references(load_rewards(["arithmetic"]), ["7", "none"], ["row 0", "row 1"])
    check_references(load_rewards(["exact_match"]), ["none"], ["row 0"])


def test_weights_and_names_given_twice():
    assert total({"a": 1.0, "b": 0.5}, [2.0, 4.0]) == 4.0 and total({"a": 1.0, "b": 0.5}, None) == 1.5
    with pytest.raises(UserError, match="given twice"):
        load_rewards(["length", "length"])
