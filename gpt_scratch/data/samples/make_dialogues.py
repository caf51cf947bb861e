"""Writes short dialogues with one right answer each, for a model that must learn to answer in minutes, and to be scored without a judge.

    python make_dialogues.py FOLDER                                 # the bundled sizes
    python make_dialogues.py FOLDER --train 40000 --reinforcement 20000

FOLDER/dialogues_{train,reinforcement,validation,test}.jsonl: `instruction` and `output`, with an earlier exchange in `history`, and the
kind of the question in `category`. Each kind makes up an equal part. `train` is to learn from; `reinforcement` is asked while a reward is
learned, `validation` and `test` are held out. Three kinds are asked in other words, too, which `train` never shows: a model that has
learned the kind but not the words is right now and then, which is what a reward can strengthen, so `reinforcement` asks these alone.
`train` has four wordings of counting and small sums, since with one, a model says "I do not know." to all others. What is asked is
assigned to a part before it is worded, so that 23 + 45, in whatever words, is in one file only. The same seed and sizes give the same
files on every machine, and a larger file begins with the rows of a smaller one.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

from make_stories import PEOPLE, PLACES, THINGS

NAMES = [name for names in PEOPLE.values() for name in names]
WHERE = [f"{preposition} {place}" for preposition, places in PLACES.items() for place in places]
COLOURS = ["red", "blue", "green", "yellow", "white", "black", "brown", "grey"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FRUIT = ["apples", "pears", "plums", "nuts", "cakes", "eggs", "stones", "shells"]
VERBS = [("comes", "came", "come"), ("leaves", "left", "leave"), ("calls", "called", "call"), ("writes", "wrote", "write"),
         ("sings", "sang", "sing"), ("swims", "swam", "swim")]  # fmt: skip
UNKNOWN = "I do not know."
PARTS = {"train": 60, "reinforcement": 25, "validation": 5, "test": 10}  # per cent of all facts
BUNDLED = {"train": 6400, "reinforcement": 3200, "validation": 400, "test": 800}

Turns = list[str]  # user, assistant, user, assistant
Fact = tuple[object, ...]  # what is asked, whatever the words
Kind = Callable[[random.Random], tuple[Fact, Turns]]


def a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def names(rng: random.Random) -> tuple[Fact, Turns]:
    own, friend, thing = *rng.sample(NAMES, 2), rng.choice(THINGS)
    mine = rng.random() < 0.5
    question, answer = (
        ("What is my name?", f"Your name is {own}.")
        if mine
        else ("What is the name of my friend?", f"The name of your friend is {friend}.")
    )
    told = f"My name is {own} and my friend is {friend}."
    turns = rng.choice(
        [[f"Hello! {told}", f"Hello, {own}!", question], [f"{told} We have {a(thing)}. {question}"], [f"{told} {question}"]]
    )
    return (own, friend, mine), [*turns, answer]


def places(rng: random.Random) -> tuple[Fact, Turns]:
    people = rng.sample(NAMES, rng.choice([2, 3]))
    where = rng.sample(WHERE, len(people))
    asked = rng.randrange(len(people))
    told = " ".join(f"{name} is {place}." for name, place in zip(people, where))
    return (*people, *where, asked), [f"{told} Where is {people[asked]}?", f"{people[asked]} is {where[asked]}."]


def colours(rng: random.Random) -> tuple[Fact, Turns]:
    name, things, shades = rng.choice(NAMES), rng.sample(THINGS, 2), rng.sample(COLOURS, 2)
    asked = rng.randrange(2)
    told = f"{name} has {a(shades[0] + ' ' + things[0])} and {a(shades[1] + ' ' + things[1])}."
    return (name, *things, *shades, asked), [
        f"{told} What colour is the {things[asked]}?",
        f"The {things[asked]} is {shades[asked]}.",
    ]


def counting(rng: random.Random) -> tuple[Fact, Turns]:
    name, things = rng.choice(NAMES), rng.sample(THINGS, rng.choice([2, 3, 4, 5, 6]))
    told = f"{name} has {listed([a(thing) for thing in things])}."
    return (name, *things), [f"{told} How many things does {name} have?", f"{name} has {len(things)} things."]


def comparing(rng: random.Random) -> tuple[Fact, Turns]:
    first, second = rng.sample(range(1, 100), 2)
    more = rng.random() < 0.5
    larger = (max if more else min)(first, second)
    fact = (min(first, second), max(first, second), more)
    if rng.random() < 0.5:
        word = "larger" if more else "smaller"
        return fact, [f"Which number is {word}, {first} or {second}?", f"{larger} is {word}."]
    people, word = rng.sample(NAMES, 2), "older" if more else "younger"
    told = f"{people[0]} is {first} years old and {people[1]} is {second}."
    return fact, [f"{told} Who is {word}?", f"{people[0] if larger == first else people[1]} is {word}."]


def small_sums(rng: random.Random) -> tuple[Fact, Turns]:
    """Sums and differences of numbers below 10, in words; the name and the thing belong to the question."""
    name, thing, first, second = rng.choice(NAMES), rng.choice(FRUIT), rng.randint(1, 9), rng.randint(1, 9)
    if rng.random() < 0.5:
        told, result = f"{name} has {first} {thing} and gets {second} more.", first + second
    else:
        first, second = max(first, second), min(first, second)
        told, result = f"{name} has {first} {thing} and gives {second} away.", first - second
    return (name, thing, told), [f"{told} How many {thing} does {name} have now?", f"{name} has {result} {thing}."]


def large_sums(rng: random.Random) -> tuple[Fact, Turns]:
    """Sums and differences of numbers from 10 to 99; 23 + 45 and 45 + 23 are one fact."""
    first, second = rng.randint(10, 99), rng.randint(10, 99)
    sign = rng.choice("+-")
    if sign == "-":
        first, second = max(first, second), min(first, second)
    result = first + second if sign == "+" else first - second
    question = rng.choice(["What is {}?", "How much is {}?", "Please tell me what {} is."]).format(f"{first} {sign} {second}")
    return (sign, min(first, second), max(first, second)), [question, f"{first} {sign} {second} = {result}"]


def days(rng: random.Random) -> tuple[Fact, Turns]:
    today, name, shift = rng.randrange(7), rng.choice(NAMES), rng.choice([-3, -2, -1, 1, 2, 3, 4])
    then = (today + shift) % 7
    when = f"in {shift} days" if shift > 0 else f"{-shift} days ago"
    when = {"in 1 days": "tomorrow", "1 days ago": "yesterday"}.get(when, when)
    present, past, verb = rng.choice(VERBS)
    form, auxiliary = (present, "does") if shift > 0 else (past, "did")
    return (today, name, shift, verb), [
        f"Today is {DAYS[today]}. {name} {form} {when}. On which day {auxiliary} {name} {verb}?",
        f"{name} {form} on {DAYS[then]}.",
    ]


def unknown(rng: random.Random) -> tuple[Fact, Turns]:
    """The stories of the other kinds, asked for what they do not say."""
    if rng.random() < 0.5:
        (*fact, _), (told, _) = places(rng)  # without what that question asks for, which is no part of this one
        told, _, _ = told.rpartition(" Where is")
        other = rng.choice([name for name in NAMES if name not in told])
        return (*fact, other), [f"{told} Where is {other}?", UNKNOWN]
    (*fact, _), (told, _) = colours(rng)
    told, _, _ = told.rpartition(" What colour")
    other = rng.choice([thing for thing in THINGS if thing not in told])
    return (*fact, other), [f"{told} What colour is the {other}?", UNKNOWN]


KINDS: dict[str, Kind] = {
    "names": names,
    "places": places,
    "colours": colours,
    "counting": counting,
    "comparing": comparing,
    "one-digit arithmetic": small_sums,
    "two-digit arithmetic": large_sums,
    "days": days,
    "unknown": unknown,
}


# Kind: its question as a pattern, and the words in which it is asked.
Wordings = dict[str, list[tuple[str, list[str]]]]
# In training as well; one wording alone would teach that any other question has no answer.
TAUGHT: Wordings = {
    "counting": [
        (
            r"How many things does (\w+) have\?",
            [
                r"\g<0>",
                r"Tell me how many things \1 has.",
                r"What is the number of things that \1 has?",
                r"Count what \1 has.",
            ],
        )
    ],
    "one-digit arithmetic": [
        (
            r"How many (\w+) does (\w+) have now\?",
            [
                r"\g<0>",
                r"Tell me how many \1 \2 has now.",
                r"What is the number of \1 that \2 has now?",
                r"Count what \2 has now.",
            ],
        )
    ],
}
# Only in reinforcement and the held-out parts.
OTHER: Wordings = {
    "names": [
        (r"What is my name\?", ["Who am I?", "Do you know my name?", "Say my name."]),
        (
            r"What is the name of my friend\?",
            ["Who is my friend?", "Do you know the name of my friend?", "Say the name of my friend."],
        ),
    ],
    "counting": [(r"How many things does (\w+) have\?", [r"Count the things of \1.", "How many things are there?"])],
    "one-digit arithmetic": [(r"How many (\w+) does \w+ have now\?", [r"How many \1 are there now?", r"Count the \1."])],
}
REWORDED = ", reworded"  # ends the name of a kind


def in_words(kind: str, wordings: Wordings) -> Kind:
    """The questions of a kind, each in one of the wordings."""

    def make(rng: random.Random) -> tuple[Fact, Turns]:
        fact, (*earlier, question, answer) = KINDS[kind](rng)
        for pattern, words in wordings.get(kind, []):
            question = re.sub(pattern, rng.choice(words), question)
        return fact, [*earlier, question, answer]

    return make


def kinds_of(part: str) -> dict[str, Kind]:
    """What is asked in a part: `train` shows the plain kinds, `reinforcement` asks the others, the held-out parts ask both."""
    plain = {kind: in_words(kind, TAUGHT) for kind in KINDS}
    others = {kind + REWORDED: in_words(kind, OTHER) for kind in OTHER if kind in KINDS}
    return {"train": plain, "reinforcement": others}.get(part, plain | others)


def part_of(kind: str, fact: Fact, seed: int) -> str:
    """The part that a fact belongs to, the same in every run and for every size."""
    number = int.from_bytes(hashlib.sha256(f"{seed} {kind} {fact}".encode()).digest()[:4], "big") % 100
    for part, share in PARTS.items():
        if number < share:
            return part
        number -= share
    raise AssertionError("the shares are 100 per cent")


def dialogues(part: str, count: int, seed: int = 1) -> list[dict]:
    """`count` records of a part, the kinds in turn, each prompt once; fewer of `train` where a kind has no more.

    Raises:
        ValueError: a kind has fewer questions than are asked for, in another part than `train`.
    """
    kinds = kinds_of(part)
    sizes = {kind: count // len(kinds) + (i < count % len(kinds)) for i, kind in enumerate(kinds)}
    made: dict[str, list[dict]] = {}
    for kind, make in kinds.items():
        rng, idle = random.Random(f"{seed} {part} {kind}"), 0
        rows: list[dict] = []
        seen: set[tuple[str, ...]] = set()
        while len(rows) < sizes[kind]:
            fact, turns = make(rng)
            prompt = tuple(turns[:-1])
            if part_of(kind.removesuffix(REWORDED), fact, seed) != part or prompt in seen:
                idle += 1
                if idle > 100_000 and part == "train":
                    print(f"all {len(rows):,} questions of the kind {kind!r} are in train, fewer than its share", file=sys.stderr)
                    break
                if idle > 100_000:
                    raise ValueError(f"there are no {sizes[kind]:,} different questions of the kind {kind!r} for {part}")
                continue
            idle = 0
            seen.add(prompt)
            *earlier, question, answer = turns
            history = {"history": [earlier]} if earlier else {}
            rows.append({**history, "instruction": question, "output": answer, "category": kind})
        made[kind] = rows
    return [rows[i] for i in range(max(sizes.values())) for rows in made.values() if i < len(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the four files are written")
    parser.add_argument("--seed", type=int, default=1, help="1 makes the bundled files")
    for part, count in BUNDLED.items():
        parser.add_argument(f"--{part}", type=int, default=count, help=f"records; default {count}")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        rows = dialogues(part, getattr(args, part), args.seed)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (args.folder / f"dialogues_{part}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
