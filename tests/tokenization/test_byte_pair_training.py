"""Learning merges, against the trainer of tokenizers: on hand-made, random and real text."""

import json

import pytest
from hostile_text import TEXT, hostile_text
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import BytePairTokenizer, train_byte_pair
from gpt_scratch.tokenization.byte_pair_training import count_pieces, learn_merges


def train_with_tokenizers(texts, vocab_size, min_frequency=2) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def assert_equal_training(texts, vocab_size, min_frequency=2) -> BytePairTokenizer:
    theirs = train_with_tokenizers(texts, vocab_size, min_frequency)
    ours = train_byte_pair(texts, vocab_size, min_frequency, special_tokens=())
    expected = json.loads(theirs.to_str())["model"]
    assert [[ours.tokens[left], ours.tokens[right]] for left, right in ours.merges] == expected["merges"]
    assert {token: id for id, token in ours.tokens.items()} == expected["vocab"]
    for text in texts:
        assert ours.encode(text) == theirs.encode(text).ids
    return ours


@pytest.mark.parametrize("seed", range(60))
def test_merges_and_ids_equal_tokenizers_on_hostile_text(seed):
    texts = [hostile_text(seed), hostile_text(seed + 1000)]
    ours = assert_equal_training(texts, vocab_size=256 + 150, min_frequency=seed % 4)
    assert [ours.decode(ours.encode(text)) for text in texts] == texts


@pytest.mark.parametrize("step", range(1, 8))
def test_runs_of_one_character_are_merged_as_tokenizers_does(step):
    # "aaaa" holds "aa" three times but merges it twice, and "aaa" once, from the left: where counts easily go wrong.
    run = " ".join("a" * (step * place % 13 + 1) for place in range(1, 60))
    assert_equal_training([run], vocab_size=280, min_frequency=0)


@pytest.mark.parametrize("vocab_size", [1000, 8000])
@pytest.mark.parametrize("name", ["the-verdict.txt", "tinyshakespeare/input.txt"])
@pytest.mark.thorough
def test_merges_and_ids_equal_tokenizers_on_real_text(shared_data, name, vocab_size):
    text = (shared_data / name).read_text(encoding="utf-8")
    assert_equal_training([text], vocab_size)


def test_training_by_hand():
    # newest 6 + widest 3: "es" 9 times; then "est" 9; then lo 7 and ow 7 (low, lower), where "lo" has the smaller ids.
    tokens, merges = learn_merges({"low": 5, "lower": 2, "newest": 6, "widest": 3}, vocab_size=260)
    assert tokens[256:] == [b"es", b"est", b"lo", b"low"]
    byte = tokens.index
    assert merges == {
        (byte(b"e"), byte(b"s")): 256,
        (256, byte(b"t")): 257,
        (byte(b"l"), byte(b"o")): 258,
        (258, byte(b"w")): 259,
    }


def test_pairs_rarer_than_min_frequency_are_not_merged():
    counts = {"ab": 3, "cd": 2, "ef": 1}
    assert learn_merges(counts, 300, min_frequency=3)[0][256:] == [b"ab"]
    assert learn_merges(counts, 300, min_frequency=2)[0][256:] == [b"ab", b"cd"]
    assert learn_merges(counts, 300, min_frequency=0)[0][256:] == [b"ab", b"cd", b"ef"]
    assert learn_merges(counts, 257, min_frequency=0)[0][256:] == [b"ab"]


def test_pieces_are_counted_over_parts_of_a_text(monkeypatch):
    from gpt_scratch.tokenization import byte_pair_training

    whole = count_pieces([TEXT])
    monkeypatch.setattr(byte_pair_training._parts, "__defaults__", (50,))
    assert len(list(byte_pair_training._parts(TEXT))) > 10
    assert count_pieces([TEXT]) == whole


@pytest.mark.parametrize(
    ("vocab_size", "texts", "message"),
    [(257, [TEXT], "needs at least 258"), (2_000_000, [TEXT], "at most"), (300, ["", ""], "no text"), (300, [], "no text")],
)
def test_impossible_training_is_refused(vocab_size, texts, message):
    with pytest.raises(UserError, match=message):
        train_byte_pair(texts, vocab_size)


def test_garbage_collection_is_on_again_after_an_error():
    import gc

    with pytest.raises(UserError):
        train_byte_pair([], 300)
    assert gc.isenabled()
