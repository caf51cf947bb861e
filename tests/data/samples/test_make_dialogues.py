"""The bundled dialogues: written by their generator, with right answers, in parts that share no question."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest
from modules import load_file

from gpt_scratch.data.instruction import read_conversations, shared_prompts

SAMPLES = Path(__file__).resolve().parents[3] / "gpt_scratch" / "data" / "samples"
PARTS = ("train", "reinforcement", "validation", "test")


@pytest.fixture(scope="module")
def generator():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SAMPLES)  # it imports make_stories.py
        return load_file(SAMPLES / "make_dialogues.py")


@pytest.fixture(scope="module")
def parts():
    return {part: read_conversations(str(SAMPLES / f"dialogues_{part}.jsonl")) for part in PARTS}


def test_the_bundled_files_are_what_the_generator_writes(generator):
    for part, count in generator.BUNDLED.items():
        written = (SAMPLES / f"dialogues_{part}.jsonl").read_text(encoding="utf-8").splitlines()
        assert written == [json.dumps(row) for row in generator.dialogues(part, count)]


def prompt(record: dict) -> str:
    return json.dumps([record.get("history"), record["instruction"]])


def test_no_two_parts_share_a_question_or_a_sum(parts, generator):
    for one, other in combinations(PARTS, 2):
        assert not shared_prompts(parts[one], parts[other])
    held_out = {prompt(record) for record in generator.dialogues("test", 1600)}
    made = generator.dialogues("train", 25_600)  # as many as zero_to_chat.py makes for its smallest size
    assert not [record for record in made if prompt(record) in held_out]
    sums = {
        part: {
            (sign, *sorted((int(a), int(b))))
            for record in data.records
            if record["category"] == "two-digit arithmetic"
            for a, sign, b in re.findall(r"(\d+) ([+-]) (\d+) =", record["output"])
        }
        for part, data in parts.items()
        if part != "reinforcement"  # asks none
    }
    assert all(len(found) > 30 for found in sums.values())
    assert all(not sums[one] & sums[other] for one, other in combinations(sums, 2))


def test_all_kinds_are_equally_frequent(parts):
    kinds = {"train": 9, "reinforcement": 3, "validation": 12, "test": 12}
    for part, data in parts.items():
        counts = Counter(record["category"] for record in data.records)
        assert len(counts) == kinds[part] and max(counts.values()) - min(counts.values()) <= 1


def test_the_words_of_reworded_questions_are_never_in_training(parts):
    words = re.compile("Who am I|Who is my friend|Do you know|Say |Count the|How many (\\w+) are there")
    for part, data in parts.items():
        for record in data.records:
            assert bool(words.search(record["instruction"])) == record["category"].endswith(", reworded"), (part, record)


def test_training_has_all_wordings_of_its_own(parts, generator):
    for kind, ((pattern, words),) in generator.TAUGHT.items():
        asked = [record["instruction"] for record in parts["train"].records if record["category"] == kind]
        forms = [re.sub(r"\\(\d|g<0>)", "", form).split()[0] for form in words if "g<0>" not in form]
        counts = [sum(f" {form} " in question for question in asked) for form in forms]
        counts.append(sum(bool(re.search(pattern, question)) for question in asked))
        assert len(counts) == 4 and min(counts) > len(asked) / 6, (kind, counts)


def test_another_seed_makes_others_and_a_larger_file_begins_with_a_smaller_one(generator):
    small, large = generator.dialogues("train", 90), generator.dialogues("train", 900)
    assert small == large[:90]
    assert generator.dialogues("train", 90, seed=2) != small


def few(rng) -> tuple[tuple, list[str]]:
    """A kind of 100 questions."""
    number = rng.randrange(100)
    return (number,), [f"Which number is {number}?", f"{number}."]


def test_more_questions_than_there_are_is_an_error(generator, monkeypatch):
    monkeypatch.setattr(generator, "KINDS", {"few": few})
    with pytest.raises(ValueError, match="there are no 90 different questions of the kind 'few' for test"):
        generator.dialogues("test", 90)


def test_a_training_file_takes_all_questions_of_a_kind_that_has_few(generator, monkeypatch, capsys):
    monkeypatch.setattr(generator, "KINDS", {"few": few})
    rows = generator.dialogues("train", 90)
    assert len(rows) == len({row["instruction"] for row in rows}) < 90
    assert f"all {len(rows)} questions of the kind 'few' are in train" in capsys.readouterr().err


DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]


def solved(record: dict) -> str:
    """The answer, found from the words alone and not by the generator's code."""
    text, kind = record["instruction"], record["category"].removesuffix(", reworded")
    told = " ".join([turn for pair in record.get("history", []) for turn in pair] + [text])
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if kind == "names":
        own, friend = re.search(r"My name is (\w+) and my friend is (\w+)", told).groups()
        return f"The name of your friend is {friend}." if re.search("friend[?.]$", text) else f"Your name is {own}."
    if kind == "places" or (kind == "unknown" and "Where" in text):
        people = dict(re.findall(r"(\w+) is ((?:in|by|on) [^.]+)\.", told))
        asked = re.search(r"Where is (\w+)\?", text)[1]
        return f"{asked} is {people[asked]}." if asked in people else "I do not know."
    if kind in ("colours", "unknown"):
        things = {thing: colour for colour, thing in re.findall(r"\ban? (\w+) (\w+)", told)}
        asked = re.search(r"colour is the (\w+)\?", text)[1]
        return f"The {asked} is {things[asked]}." if asked in things else "I do not know."
    if kind == "counting":
        return f"{text.split()[0]} has {len(re.findall(r' an? ', text))} things."
    if kind == "comparing":
        chosen = (max if re.search("larger|older", text) else min)(numbers)
        if "number" in text:
            return f"{chosen} is {re.search('larger|smaller', text)[0]}."
        name = re.search(rf"(\w+) is {chosen}\b", text)[1]
        return f"{name} is {re.search('older|younger', text)[0]}."
    if kind == "one-digit arithmetic":
        result = sum(numbers) if "more" in text else numbers[0] - numbers[1]
        thing = re.search(r"has \d (\w+)", text)[1]
        return f"{text.split()[0]} has {result} {thing}."
    if kind == "two-digit arithmetic":
        a, sign, b = re.search(r"(\d+) ([+-]) (\d+)", text).groups()
        return f"{a} {sign} {b} = {int(a) + int(b) if sign == '+' else int(a) - int(b)}"
    today, then = DAYS.index(re.search(r"Today is (\w+)", text)[1]), re.search(r"(tomorrow|yesterday|in \d|\d days ago)", text)[1]
    shift = {"tomorrow": 1, "yesterday": -1}.get(then) or (int(then[3:]) if then.startswith("in") else -int(then[0]))
    name, verb = re.search(r"\. (\w+) (\w+) ", text).groups()
    return f"{name} {verb} on {DAYS[(today + shift) % 7]}."


def test_every_answer_is_right(parts):
    wrong = [record for data in parts.values() for record in data.records if solved(record) != record["output"]]
    assert not wrong, wrong[:3]
