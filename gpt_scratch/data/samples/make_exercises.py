"""Writes stories mixed with exercises: texts that say everything twice, for a model that must learn in minutes to look up a fact.

    python make_exercises.py text.jsonl --stories stories.jsonl --count 25600

A quarter of the exercises are lists of words, written twice; half state pairs of words in one of a few phrasings ("Anna: red, Tom: blue.")
and then again, in another order and often in another phrasing; a quarter do so with the places and colours of make_dialogues.py. A small
model that has not seen such text answers a question about a story with something from the story, but not with what belongs to the name
that was asked for. Each fact is said exactly twice: a third time could be copied from the second, without looking up the first. Facts
that a held-out question asks for are left out. The same seed and count give the same file on every machine.
"""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from make_dialogues import COLOURS, DAYS, FRUIT, NAMES, WHERE, a, listed, part_of
from make_stories import THINGS

KEYS = [*NAMES, *THINGS]
VALUES = [*COLOURS, *DAYS, *FRUIT, *(where.split()[-1] for where in WHERE)]
PHRASES = [
    *("{key} {value}", "{key} {value}", "{key}: {value}", "{key} is {value}", "{key} has the {value}", "{key} saw the {value}"),
    *(
        "{key} is by the {value}",
        "{key} is in the {value}",
        "{key} is on the {value}",
        "the {key} is {value}",
        "the {value} {key}",
    ),
]


def repeated_list(rng: random.Random) -> str:
    """Anna, drum, red. Anna, drum, red."""
    line = ", ".join(rng.sample(KEYS + VALUES, rng.randint(4, 12))) + "."
    return f"{line} {line}"


def pairs(rng: random.Random) -> str:
    """Anna: red, drum: Monday. drum: Monday, Anna: red. In half of the texts, the second time is in another phrasing."""
    count = rng.randint(2, 4)
    keys, values = rng.sample(KEYS, count), rng.sample(VALUES, count)
    phrase, separator = rng.choice(PHRASES), rng.choice([", ", ". ", " and "])
    other = rng.choice(PHRASES) if rng.random() < 0.5 else phrase

    def written(form: str, chosen: list[int]) -> str:
        return separator.join(form.format(key=keys[i], value=values[i]) for i in chosen) + "."

    return f"{written(phrase, list(range(count)))} {written(other, rng.sample(range(count), count))}"


def places(rng: random.Random, seed: int) -> str | None:
    """Ida is by the sea. Tom is on the hill. Tom is on the hill. Ida is by the sea. `None` if a held-out question asks for it."""
    people = rng.sample(NAMES, rng.choice([2, 3, 4]))
    where = rng.sample(WHERE, len(people))
    if any(part_of("places", (*people, *where, asked), seed) != "train" for asked in range(len(people))):
        return None
    facts = [f"{name} is {place}." for name, place in zip(people, where)]
    return " ".join([*facts, *rng.sample(facts, len(facts))])


def colours(rng: random.Random, seed: int) -> str | None:
    """Ida has a red ball and a blue cup. The cup is blue. The ball is red. `None` if a held-out question asks for it."""
    name, count = rng.choice(NAMES), rng.choice([2, 3, 4])
    things, shades = rng.sample(THINGS, count), rng.sample(COLOURS, count)
    if any(part_of("colours", (name, *things, *shades, asked), seed) != "train" for asked in range(count)):
        return None
    story = f"{name} has {listed([a(f'{shade} {thing}') for shade, thing in zip(shades, things)])}."
    facts = [f"The {thing} is {shade}." for shade, thing in zip(shades, things)]
    return " ".join([story, *rng.sample(facts, len(facts))])


def exercises(count: int, seed: int = 1) -> list[str]:
    """`count` texts.

    Args:
        seed: also that of the dialogues, which determines what their held-out questions are.
    """
    rng = random.Random(f"{seed} exercises")
    kinds: list[Callable[[], str | None]] = [
        lambda: repeated_list(rng), lambda: pairs(rng), lambda: pairs(rng), lambda: rng.choice([places, colours])(rng, seed)
    ]  # fmt: skip
    texts: list[str] = []
    while len(texts) < count:
        text = rng.choice(kinds)()
        if text is not None:
            texts.append(text)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="file to write")
    parser.add_argument("--stories", type=Path, required=True, help="jsonl file of stories to mix with the exercises")
    parser.add_argument("--count", type=int, required=True, help="number of exercises")
    parser.add_argument("--seed", type=int, default=1, help="that of the dialogues")
    args = parser.parse_args()
    rows = [json.loads(line)["text"] for line in args.stories.read_text(encoding="utf-8").splitlines()]
    rows += exercises(args.count, args.seed)
    random.Random(f"{args.seed} order").shuffle(rows)
    args.output.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
