"""Training a tokenizer takes bounded memory on any text."""

import sys

import pytest
from bounds import run_bounded

from gpt_scratch.tokenization import byte_pair_training
from gpt_scratch.tokenization.byte_pair_training import count_pieces


def test_the_rarest_of_too_many_words_are_left_out_with_a_note(monkeypatch, capsys):
    words = [f"{number:06d}" for number in range(20_000)]
    text = " ".join([*["often", "always"] * 50, *words, *["always"] * 50])
    whole = count_pieces([text])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(byte_pair_training, "MAX_CHARACTERS", 7_000)
    counts = count_pieces([text[start : start + 5_000] for start in range(0, len(text), 5_000)])
    assert sum(map(len, counts)) <= 7_000 and counts[" always"] == whole[" always"] and counts[" often"] == whole[" often"]
    said = capsys.readouterr().err
    assert "different words" in said and said.count("\n") == 1
    tokens, _ = byte_pair_training.learn_merges(counts, 400)
    assert b" always" in tokens and b" often" in tokens


@pytest.mark.slow
@pytest.mark.fault("30 MiB of different words, from which a tokenizer is trained", seconds=300, mebibytes=1600)
def test_a_text_of_different_words_is_learned_in_bounded_memory(tmp_path):
    code = "import random; from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe; d = random.Random(0)\n"
    code += "words = lambda: ''.join(d.choices('abcdefghijklmnopqrstuvwxyz', k=d.randint(5, 11)))\n"
    code += "texts = (' '.join(words() for _ in range(1000)) for _ in range(3500))\nprint(len(train_byte_level_bpe(texts, 8000)))"
    outcome = run_bounded([sys.executable, "-c", code], 300, 1600)
    assert outcome.exceeded is None and outcome.stdout == "8000\n", (outcome.exceeded, outcome.stderr[-500:])
    assert "different words" in outcome.stderr and "learning merges" in outcome.stderr
