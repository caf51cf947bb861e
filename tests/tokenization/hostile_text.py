"""Texts that tokenizers disagree on."""

import random

TEXT = "One day, Anna lost her key. Tom had it!\n\n  \"It's 2019,\" he'll say — naïve façade 你好, 🙂🙂.\n" * 20


def hostile_text(seed: int) -> str:
    """Long runs, few characters, white space of all kinds, scripts, emoji, control characters, letters of the newest Unicode."""
    rng = random.Random(seed)
    alphabets = (
        "a",
        "ab",
        "aab-",
        "ab \n",
        "-= \t",
        "é你🙂a ",
        "\u0558\u0c5ca1²\u3000\u00a0\x1c\x85 '",
        "'stremlld S",
        "\x00\x7f\uffff\U0010ffff ~",
    )
    words = ["".join(rng.choices(rng.choice(alphabets), k=rng.randint(1, 12))) for _ in range(30)]
    return rng.choice(["", " "]).join(rng.choices(words, k=120))
