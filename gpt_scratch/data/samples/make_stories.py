"""Writes `stories.jsonl`: short stories in plain words from a small grammar, for a model that must learn to write in minutes.

    python make_stories.py > stories.jsonl

Who appears in a story keeps name, pronoun and things to its end, so a model that has learned the text keeps them too. The seed
is fixed: the file is the same on every machine.
"""

import json
import random

PEOPLE = {
    "he": ["Tom", "Ben", "Max", "Leo", "Sam", "Jack", "Finn", "Paul", "Oscar", "Hugo", "Adam", "Felix"],
    "she": ["Anna", "Mia", "Lucy", "Emma", "Clara", "Nora", "Ella", "Ruth", "Alice", "Ida", "Vera", "Julia"],
}
ADJECTIVES = ["small", "old", "red", "blue", "green", "yellow", "shiny", "heavy", "soft", "broken", "golden", "wooden"]
THINGS = [
    "ball",
    "book",
    "lamp",
    "kite",
    "key",
    "boat",
    "hat",
    "drum",
    "cup",
    "clock",
    "bell",
    "coat",
    "map",
    "ring",
    "basket",
    "whistle",
]
PLACES = {
    "in": ["the garden", "the kitchen", "the forest", "the library", "the old barn", "the village", "the school"],
    "by": ["the river", "the lake", "the sea", "the mill", "the bridge", "the station"],
    "on": ["the hill", "the farm", "the beach", "the roof", "the market square"],
}
ANIMALS = ["dog", "cat", "bird", "fox", "horse", "rabbit", "goat", "duck", "mouse", "owl"]
SOUNDS = {"dog": "barked", "cat": "purred", "bird": "sang", "fox": "listened", "horse": "snorted", "rabbit": "hopped about",
          "goat": "bleated", "duck": "quacked", "mouse": "squeaked", "owl": "hooted"}  # fmt: skip
WEATHER = ["It was raining", "The sun was shining", "The wind was cold", "It had snowed all night", "The sky was grey",
           "It was a warm evening", "The morning was quiet", "A storm was coming"]  # fmt: skip
FEELINGS = ["happy", "tired", "proud", "sad", "hungry", "afraid", "curious", "surprised"]
FOOD = ["bread", "soup", "apples", "honey cake", "cheese", "pears", "warm milk", "pancakes"]
RELATIVES = ["mother", "father", "grandmother", "grandfather", "uncle", "aunt", "teacher", "neighbour"]
TIMES = [
    "One day",
    "One morning",
    "Last summer",
    "In the winter",
    "On Monday",
    "After school",
    "Before breakfast",
    "Late one night",
]


def person(rng: random.Random, not_this: str = "") -> tuple[str, str, str, str]:
    """A name with its pronouns: (name, subject, object, possessive)."""
    subject = rng.choice(["he", "she"])
    name = rng.choice([name for name in PEOPLE[subject] if name != not_this])
    return (name, "he", "him", "his") if subject == "he" else (name, "she", "her", "her")


def place(rng: random.Random) -> str:
    preposition = rng.choice(list(PLACES))
    return f"{preposition} {rng.choice(PLACES[preposition])}"


def a(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def lost_and_found(rng: random.Random) -> list[str]:
    name, he, him, his = person(rng)
    thing, adjective, animal, where = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(ANIMALS), place(rng)
    relative = rng.choice(RELATIVES)
    return [
        f"{rng.choice(TIMES)}, {name} could not find {his} {adjective} {thing}.",
        f"{he.capitalize()} looked under the bed, behind the door and {place(rng)}.",
        f'{his.capitalize()} {relative} said, "Where did you see it last?"',
        f"{name} thought for a while and then ran to look {where}.",
        rng.choice(
            [
                f"There sat {a(animal)} with the {thing} between its feet.",
                f"The {thing} lay {where}, and {a(animal)} slept beside it.",
                f"{a(animal).capitalize()} was playing with the {thing}.",
            ]
        ),
        f"The {animal} {SOUNDS[animal]} and gave it back.",
        f"{name} was {rng.choice(['very happy', 'so glad', 'no longer sad'])} and took the {adjective} {thing} home.",
    ]


def a_gift(rng: random.Random) -> list[str]:
    name, he, him, his = person(rng)
    friend, she, her, hers = person(rng, not_this=name)
    thing, adjective, food = rng.choice(THINGS), rng.choice(ADJECTIVES), rng.choice(FOOD)
    return [
        f"{name} and {friend} were friends.",
        f"{rng.choice(TIMES)}, {name} wanted to give {friend} a present.",
        f"{he.capitalize()} had no money, so {he} made {a(adjective + ' ' + thing)} with {his} own hands.",
        rng.choice(
            [
                f"It took {him} {rng.choice(['two', 'three', 'four', 'five'])} days.",
                f"{his.capitalize()} {rng.choice(RELATIVES)} helped {him} a little.",
                "It was not easy, and it broke twice.",
            ]
        ),
        f'When {friend} saw the {thing}, {she} {rng.choice(["laughed", "smiled", "clapped", "jumped"])} and said, "Thank you, {name}!"',
        f"Then {she} brought {food}, and they ate together {place(rng)}.",
    ]


def a_journey(rng: random.Random) -> list[str]:
    name, he, him, his = person(rng)
    animal, first, second = rng.choice(ANIMALS), place(rng), place(rng)
    feeling = rng.choice(FEELINGS)
    return [
        f"{rng.choice(WEATHER)} when {name} left the house.",
        f"{he.capitalize()} wanted to visit {his} {rng.choice(RELATIVES)}, who lived {first}.",
        f"On the way {he} met {a(rng.choice(ADJECTIVES[:2]) + ' ' + animal)}.",
        f'"Where are you going?" asked the {animal}.',
        f'"To a house {first}," said {name}. "Come with me if you like."',
        rng.choice(
            [
                f"So they walked together and rested {second}.",
                f"They went slowly, because the {animal} was {feeling}.",
                f"The {animal} knew a short way that led past a place {second}.",
            ]
        ),
        f"In the evening they arrived, and there was {rng.choice(FOOD)} for both of them.",
    ]


def a_question(rng: random.Random) -> list[str]:
    name, he, him, his = person(rng)
    relative, thing, animal = rng.choice(RELATIVES), rng.choice(THINGS), rng.choice(ANIMALS)
    question, answer = rng.choice(
        [
            ("Why is the sky dark at night?", "Because the sun shines on the other side of the world."),
            ("Why do birds fly south?", "Because the winter here is cold, and they like the warm wind."),
            (f"Who made the first {thing}?", "Somebody who needed one and had no shop nearby."),
            ("How deep is the sea?", "Deeper than any rope that we have."),
            ("Can a fish sleep?", "Yes, but it does not close its eyes."),
            (f"What does {a(animal)} dream of?", f"Of food, I think, and of another {animal}."),
            ("Where does the river go?", "Down the hill, through the town, and into the sea."),
            ("Why do leaves fall?", "So that the tree can sleep and make new ones in spring."),
        ]
    )
    return [
        f"{name} liked to ask questions.",
        f"{rng.choice(TIMES)}, {he} sat {place(rng)} with {his} {relative}.",
        f'"{question}" asked {name}.',
        f"{his.capitalize()} {relative} thought about it.",
        f'"{answer}"',
        rng.choice(
            [
                f"{name} wrote it down, so that {he} would not forget.",
                f"{name} was {rng.choice(FEELINGS)} and asked the next question.",
                f"That night {name} told it to {his} {animal}, and the {animal} {SOUNDS[animal]}.",
            ]
        ),
    ]


def a_helper(rng: random.Random) -> list[str]:
    name, he, him, his = person(rng)
    animal, where, food = rng.choice(ANIMALS), place(rng), rng.choice(FOOD)
    colour = rng.choice(ADJECTIVES[2:6])
    return [
        f"{rng.choice(WEATHER)}, and {a(animal)} stood {where}.",
        f"Its foot was hurt, and it could not {rng.choice(['walk', 'run', 'go home'])}.",
        f"{name} saw it and felt {rng.choice(['sorry', 'sad', 'afraid'])}.",
        f"{he.capitalize()} took {his} {colour} scarf and put it around the foot.",
        f"Every day {he} brought {food} and sat with the {animal}.",
        f"After a week the {animal} {SOUNDS[animal]} and could walk again.",
        rng.choice(
            [
                f"Now it follows {name} everywhere.",
                f"{name} waved, and it went back to its home.",
                f"It still comes to the window, and {name} gives it {food}.",
            ]
        ),
    ]


def main(count: int = 2400, seed: int = 1) -> None:
    rng = random.Random(seed)
    kinds = [lost_and_found, a_gift, a_journey, a_question, a_helper]
    for _ in range(count):
        print(json.dumps({"text": " ".join(rng.choice(kinds)(rng))}))


if __name__ == "__main__":
    main()
