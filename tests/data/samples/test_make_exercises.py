"""The exercises for pretraining: everything is said twice, and nothing that a held-out question asks for."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from modules import load_file

SAMPLES = Path(__file__).resolve().parents[3] / "gpt_scratch" / "data" / "samples"


@pytest.fixture(scope="module")
def generator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SAMPLES)  # it imports make_dialogues.py
        return load_file(SAMPLES / "make_exercises.py")


def test_lists_are_written_twice_and_the_seed_decides(generator):
    texts = generator.exercises(400)
    lists = [text for text in texts if re.fullmatch(r"(.+\.) \1", text) and text.count(",") >= 6]
    assert 60 < len(lists) < 140
    assert texts[:40] == generator.exercises(40) and texts != generator.exercises(400, seed=2)


def test_repeated_facts_are_those_of_the_story(generator):
    texts = generator.exercises(600)
    written = [re.findall(r"(\w+): (\w+)", text) for text in texts if re.match(r"\w+: ", text)]
    assert len(written) > 10
    assert all(len(dict(facts)) == len(set(facts)) for facts in written)  # a word belongs to one other word throughout a text
    # Each is said twice, not more often: a third could be copied from the second.
    assert all(facts.count(fact) <= 2 for facts in written for fact in facts)
    for text in texts:
        if match := re.match(r"\w+ has (an? .*?)\. (The .*)", text):
            shade_of = {thing: shade for shade, thing in re.findall(r"an? (\w+) (\w+)", match[1])}
            facts = re.findall(r"The (\w+) is (\w+)\.", match[2])
            assert dict(facts) == shade_of and len(facts) == len(shade_of)
        elif re.fullmatch(r"(?:[A-Z]\w+ is (?:in|by|on) the [\w ]+\. ?){4,8}", text):
            facts = re.findall(r"(\w+) is ((?:in|by|on) the [\w ]+)\.", text)
            assert sorted(facts[: len(facts) // 2]) == sorted(facts[len(facts) // 2 :])


def test_facts_of_held_out_questions_are_left_out(generator):
    asked = set()
    for part in ("validation", "test"):
        for line in (SAMPLES / f"dialogues_{part}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["category"] in ("places", "colours"):
                asked.add(re.sub(r" (Where|What colour) .*", "", row["instruction"]))
    texts = generator.exercises(20_000)
    assert len(asked) > 150 and not [text for text in texts for story in asked if text.startswith(story)]


def test_stories_of_held_out_questions_are_refused(generator):
    rng = random.Random(1)
    texts = [generator.places(rng, 1) for _ in range(400)]
    assert 50 < texts.count(None) < 350
    for text in filter(None, texts):
        facts = re.findall(r"(\w+) is ((?:in|by|on) the [\w ]+)\.", text)
        facts = facts[: len(facts) // 2]
        people, where = zip(*facts)
        assert all(generator.part_of("places", (*people, *where, asked), 1) == "train" for asked in range(len(facts)))
    texts = [generator.colours(rng, 1) for _ in range(400)]
    assert 50 < texts.count(None) < 350


def test_the_file_has_all_stories_and_exercises_in_a_mixed_order(tmp_path, generator):
    stories = tmp_path / "stories.jsonl"
    stories.write_text("".join(json.dumps({"text": f"Story {i}."}) + "\n" for i in range(30)), encoding="utf-8")
    command = [sys.executable, str(SAMPLES / "make_exercises.py"), str(tmp_path / "text.jsonl"), "--stories", str(stories)]
    subprocess.run([*command, "--count", "70"], check=True)
    rows = [json.loads(line)["text"] for line in (tmp_path / "text.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sorted(rows) == sorted([f"Story {i}." for i in range(30)] + generator.exercises(70))
    assert 5 < sum(row.startswith("Story") for row in rows[:50]) < 25
