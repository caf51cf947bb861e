"""The byte-pair tokenizer against the `tokenizers` library: merges, ids and texts, on hand-made, random and real text."""

import json
import random
import subprocess
import sys

import pytest
from bounds import run_bounded
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization import byte_pair_training
from gpt_scratch.tokenization.byte_pair import END_OF_TEXT, PADDING, BytePairTokenizer, train_byte_level_bpe, train_byte_pair
from gpt_scratch.tokenization.byte_pair_training import count_pieces, learn_merges
from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer

TEXT = "One day, Anna lost her key. Tom had it!\n\n  \"It's 2019,\" he'll say — naïve façade 你好, 🙂🙂.\n" * 20


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
    whole = count_pieces([TEXT])
    monkeypatch.setattr(byte_pair_training._parts, "__defaults__", (50,))
    assert len(list(byte_pair_training._parts(TEXT))) > 10
    assert count_pieces([TEXT]) == whole


def test_of_too_many_different_words_the_rarest_are_left_out_and_that_is_said(monkeypatch, capsys):
    words = [f"{number:06d}" for number in range(20_000)]
    text = " ".join([*["often", "always"] * 50, *words, *["always"] * 50])
    whole = count_pieces([text])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(byte_pair_training, "MOST_CHARACTERS", 7_000)
    counts = count_pieces([text[start : start + 5_000] for start in range(0, len(text), 5_000)])
    assert sum(map(len, counts)) <= 7_000 and counts[" always"] == whole[" always"] and counts[" often"] == whole[" often"]
    said = capsys.readouterr().err
    assert "different words" in said and said.count("\n") == 1
    tokens, _ = byte_pair_training.learn_merges(counts, 400)
    assert b" always" in tokens and b" often" in tokens


@pytest.mark.slow
@pytest.mark.fault("30 MiB of different words, from which a tokenizer is trained", seconds=240, mebibytes=1200)
def test_a_text_of_different_words_is_learned_in_bounded_memory(tmp_path):
    code = "import random; from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe; d = random.Random(0)\n"
    code += "words = lambda: ''.join(d.choices('abcdefghijklmnopqrstuvwxyz', k=d.randint(5, 11)))\n"
    code += "texts = (' '.join(words() for _ in range(1000)) for _ in range(3500))\nprint(len(train_byte_level_bpe(texts, 8000)))"
    outcome = run_bounded([sys.executable, "-c", code], 240, 1200)
    assert outcome.exceeded is None and outcome.stdout == "8000\n", (outcome.exceeded, outcome.stderr[-500:])
    assert "different words" in outcome.stderr and "learning merges" in outcome.stderr


def test_ids_are_gpt2s_bytes_then_merges_then_special_tokens(shared_data):
    tokenizer = train_byte_pair([TEXT], 300)
    gpt2 = BytePairTokenizer.from_fast(load_gpt2_tokenizer(shared_data / "gpt2"))
    assert [tokenizer.tokens[id] for id in range(256)] == [gpt2.tokens[id] for id in range(256)]
    assert set(tokenizer.merges.values()) == set(range(256, 298))
    assert tokenizer.special_tokens == {END_OF_TEXT: 298, PADDING: 299}


def test_special_tokens_have_their_roles():
    tokenizer = train_byte_level_bpe([TEXT], 300, model_max_length=64)
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id) == (
        298,
        298,
        298,
        299,
    )
    assert tokenizer.model_max_length == 64
    assert len(tokenizer) == 300
    assert tokenizer("a<|endoftext|>b")["input_ids"][1] == 298


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return train_byte_pair([TEXT, *map(hostile_text, range(5))], 400)


@pytest.fixture(scope="module")
def fast(tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bpe") / "tokenizer"
    tokenizer.save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


@pytest.mark.parametrize("seed", range(30))
def test_ids_and_texts_equal_auto_tokenizer(tokenizer, fast, seed):
    text = (
        hostile_text(seed) + random.Random(seed).choice([END_OF_TEXT, "<|endoftext", PADDING + END_OF_TEXT, ""]) + TEXT[seed:99]
    )
    ids = tokenizer.encode(text)
    assert ids == fast(text)["input_ids"]
    assert tokenizer.decode(ids) == text == fast.decode(ids)
    assert tokenizer.decode(ids, skip_special_tokens=True) == fast.decode(ids, skip_special_tokens=True)
    # Cut anywhere, also within a character: the two agree on the replacement characters.
    cut = random.Random(seed).sample(range(400), k=100)
    assert tokenizer.decode(cut) == fast.decode(cut)
    assert tokenizer.encode(text, split_special_tokens=True) == fast(text, split_special_tokens=True)["input_ids"]


def test_saved_tokenizer_loads_in_a_fresh_process_without_this_package(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    code = (
        "import sys, transformers; t = transformers.AutoTokenizer.from_pretrained(sys.argv[1]);"
        "assert 'gpt_scratch' not in sys.modules; print(t(sys.argv[2])['input_ids'])"
    )
    arguments = [sys.executable, "-I", "-c", code, str(tmp_path / "tokenizer"), TEXT[:90] + END_OF_TEXT]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == tokenizer.encode(TEXT[:90] + END_OF_TEXT)
    assert sorted(path.name for path in (tmp_path / "tokenizer").iterdir()) == [
        ".gpt_scratch.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_gpt2_from_scratch_gives_openais_ids(shared_data):
    gpt2 = load_gpt2_tokenizer(shared_data / "gpt2")
    tokenizer = BytePairTokenizer.from_fast(gpt2)
    assert tokenizer.encode("Hello, do you like tea? <|endoftext|> In the sunlit terraces of someunknownPlace.") == [
        15496, 11, 466, 345, 588, 8887, 30, 220, 50256, 554, 262, 4252, 18250, 8812, 2114, 286, 617, 34680, 27271, 13,
    ]  # fmt: skip  # the book, section 2.6
    for text in [(shared_data / "the-verdict.txt").read_text(encoding="utf-8"), TEXT, *map(hostile_text, range(30))]:
        assert tokenizer.encode(text) == gpt2(text)["input_ids"]


def test_the_longer_of_two_special_tokens_wins():
    tokenizer = train_byte_pair([TEXT], 300, special_tokens=("<|e|>", "<|e|><|e|>", "a b"))
    fast = tokenizer.to_fast()
    text = "x<|e|><|e|><|e|> a b"
    assert (
        tokenizer.encode(text) == fast(text)["input_ids"] == [tokenizer.encode("x")[0], 298, 297, tokenizer.encode(" ")[0], 299]
    )


def test_a_long_piece_is_quick_and_equal(tokenizer, fast):
    text = "".join(random.Random(0).choices("annaTomkey", k=30_000))  # 30 kB without a space: quadratic algorithms take minutes
    assert tokenizer.encode(text) == fast(text)["input_ids"]
    assert not tokenizer._pieces.get(text)  # nor is it kept


def test_the_cache_is_bounded(tokenizer, monkeypatch):
    monkeypatch.setattr(type(tokenizer._pieces), "CAPACITY", 10)
    tokenizer._pieces.clear()
    text = " ".join(f"word{chr(97 + number % 26)}{chr(97 + number // 26)}" for number in range(200))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert 0 < len(tokenizer._pieces) <= 10


def test_empty_text(tokenizer):
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


def test_lone_surrogates_are_refused(tokenizer):
    with pytest.raises(UserError, match=r"lone surrogate, '\\ud83d', at character 3"):
        tokenizer.encode("abc\ud83d def")
    with pytest.raises(UserError, match="lone surrogate"):
        train_byte_pair(["abc\ud83d def"], 300)


def test_unknown_ids_are_refused(tokenizer):
    with pytest.raises(UserError, match="no token 400: its ids go from 0 to 399"):
        tokenizer.decode([1, 400])


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


def test_forms_that_cannot_be_saved_are_refused():
    base = train_byte_pair([TEXT], 260)
    with pytest.raises(UserError, match="without holes"):
        BytePairTokenizer({**base.tokens, 1000: "<|x|>"}, base.merges, {"<|x|>": 1000}).to_fast()
    with pytest.raises(UserError, match="tokens 0 and 260 are both '!'"):
        BytePairTokenizer({**base.tokens, 260: "!"}, base.merges, {}).to_fast()
