"""Computed rewards as TRL calls them, and the report on the model to start from. Runs: scripts/test_finetune_preferences.py."""

import pytest

from gpt_scratch.evaluation.rewards import Reward
from gpt_scratch.training.reinforcement import describe_success, reward_functions


def test_rewards_as_trl_calls_them():
    seen = []

    def reward(*arguments):
        seen.append(arguments)
        return 0.5

    [function] = reward_functions([Reward("half", reward)], end=9)
    asked = [{"role": "user", "content": "1 + 1?"}]
    replies = [[{"role": "assistant", "content": text}] for text in ("2", "3")]
    values = function([asked, asked], replies, completion_ids=[[5, 9], [5, 6]], reference=["2", "2"], trainer_state=None)
    assert values == [0.5, 0.0] and function.__name__ == "half"  # the second was cut off
    assert seen == [(asked, "2", "2")]


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.0, "below 10%, most groups have no rewarded reply"),
        (0.1, None),
        (0.6, None),
        (0.7, "above 60%, all replies of most groups are rewarded"),
    ],
)
def test_a_start_from_which_nothing_is_learned_is_a_warning(share, words):
    success = {"questions": 40, "greedy": {"success": 0.25}, "sampled": {"success": share}}
    line, *warning = describe_success(success, [Reward("exact", lambda *_: 1.0)], 0.8).splitlines()
    assert line == (
        f"the model to start from: 25.0% of its likeliest replies and {share:.1%} of those drawn at temperature 0.8 get all of exact "
        "(40 validation questions)"
    )
    assert (words in warning[0]) if words else not warning
