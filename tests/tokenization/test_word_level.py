"""Word-level tokenizers against the rules they restate: the book's `re.split`, NLTK's tokenizer, `str.split`."""

import json
import random
import re
import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.word_level import RULES, cut_words, pipeline_of, train_word_level, word_level_from_list

TEXT = "Anna lost her key. \"It's gone!\" she said -- and didn't cry (much).\nTom had it: $5, he wouldn't give it back...\n"

# What the rules look at, their borders, and what they must leave alone.
FRAGMENTS = [
    "'", "`", "\"", ",", ":", ".", ";", "@", "-", "--", "—", "«", "»", "“", "”", "‘", "’", "„", "(", ")", "[", "]", "<",
    ">", "{", "}", "?", "!", "*", "&", "%", "$", "#", "_", "..", "...", ",,", ",:", "''", "``", "1", "a", "b", "s", "t",
    "n", "é", "²", "Ⓐ", "ſ", "İ", "ı", "can", "not", "cannot", "Cannot", "Gimme", "gonna", "gotta", "d'ye", "wanna",
    "wan", "na", "'tis", "'twas", "more'n", "n't", "N'T", "'s", "'S", "'ll", "'LL", "'re", "'ve", "'d", "'m", "LL",
]  # fmt: skip
FRAGMENTS += [" ", "  ", "\n", "\t", "\r\n", "\x1c", "\x85", "\xa0", "\u0301", "\u2003", ".\n", ",\n"]


def random_text(seed: int) -> str:
    rng = random.Random(seed)
    return "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 16)))


def book_words(text):
    """The book, section 2.2."""
    return [item.strip() for item in re.split(r'([,.:;?_!"()\']|--|\s)', text) if item.strip()]


def nltk_words(text):
    nltk_tokenize = pytest.importorskip("nltk.tokenize")
    tokenizer = nltk_tokenize.NLTKWordTokenizer()
    return [word for line in text.split("\n") for word in tokenizer.tokenize(line)]


REFERENCES = {"word": book_words, "treebank": nltk_words, "whitespace": str.split, "character": list}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.thorough
def test_words_of_random_text_are_the_references(rule):
    backend = pipeline_of(rule)
    for text in map(random_text, range(3000)):
        assert cut_words(backend, text) == REFERENCES[rule](text), repr(text)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["the-verdict.txt", "SMSSpamCollection.tsv"])
def test_words_of_real_text_are_the_references(shared_data, rule, name):
    text = (shared_data / name).read_text(encoding="utf-8")[:200_000]
    assert cut_words(pipeline_of(rule), text) == REFERENCES[rule](text)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["tinyshakespeare/input.txt", "wikitext-2/valid.txt"])
def test_words_of_long_text_are_the_references(shared_data, rule, name):
    text = (shared_data / name).read_text(encoding="utf-8")
    assert cut_words(pipeline_of(rule), text) == REFERENCES[rule](text)


def test_nltks_documented_example():
    text = "Good muffins cost $3.88 (roughly 3,36 euros)\nin New York.  Please buy me\ntwo of them.\nThanks."
    assert cut_words(pipeline_of("treebank"), text) == [
        "Good", "muffins", "cost", "$", "3.88", "(", "roughly", "3,36", "euros", ")", "in", "New", "York.", "Please", "buy", "me",
        "two", "of", "them", ".", "Thanks", ".",
    ]  # fmt: skip  # as nltk line by line: "them" loses its period, which nltk leaves there when given all lines at once


def test_the_books_published_ids(shared_data):
    text = (shared_data / "the-verdict.txt").read_text(encoding="utf-8")
    tokenizer = train_word_level([text])
    # 1,130 words, and the book's two special tokens after them; the padding token is ours.
    assert (tokenizer.eos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id, len(tokenizer)) == (1130, 1131, 1132, 1133)
    ids = tokenizer("Hello, do you like tea? <|endoftext|> In the sunlit terraces of the palace.")["input_ids"]
    assert ids == [1131, 5, 355, 1126, 628, 975, 10, 1130, 55, 988, 956, 984, 722, 988, 1131, 7]
    assert tokenizer.decode(ids) == "<|unk|>, do you like tea? <|endoftext|> In the sunlit terraces of the <|unk|>."
    sentence = '"It\'s the last he painted, you know," Mrs. Gisburn said with pardonable pride.'
    ids = tokenizer(sentence)["input_ids"]
    assert ids == [1, 56, 2, 850, 988, 602, 533, 746, 5, 1126, 596, 5, 1, 67, 7, 38, 851, 1108, 754, 793, 7]
    assert tokenizer.decode(ids) == sentence


@pytest.mark.parametrize("rule", RULES)
def test_decoding_reads_as_it_was_written(rule):
    tokenizer = train_word_level([TEXT], rule)
    decoded = tokenizer.decode(tokenizer(TEXT)["input_ids"])
    if rule == "word":  # opens after a colon or dash only: '. "It' is read as a closing mark
        assert (
            decoded
            == "Anna lost her key.\" It's gone!\" she said -- and didn't cry (much). Tom had it: $5, he wouldn't give it back..."
        )
    else:
        assert decoded == (TEXT if rule == "character" else " ".join(TEXT.split()))


def test_treebank_decoding_joins_what_the_rules_cut():
    text = "\"Yes,\" she cannot, they're gonna say 'tis [so] & 10% more; I don't wanna... Gimme 5!"
    tokenizer = train_word_level([text], "treebank")
    assert "n't" in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text.replace("cannot", "can not")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.thorough
def test_saved_tokenizer_loads_in_a_fresh_process(rule, tmp_path):
    tokenizer = train_word_level([TEXT], rule, model_max_length=77)
    tokenizer.save_pretrained(tmp_path)
    sentence = 'Anna didn\'t cry; Tom "lost" it.<|endoftext|>'
    if rule != "word":  # one start of Python is enough
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert loaded(sentence)["input_ids"] == tokenizer(sentence)["input_ids"]
        return
    code = (
        "import sys, json, transformers; t = transformers.AutoTokenizer.from_pretrained(sys.argv[1]); ids = t(sys.argv[2])['input_ids'];"
        "assert 'gpt_scratch' not in sys.modules; print(json.dumps([ids, t.decode(ids), t.model_max_length]))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code, str(tmp_path), sentence], capture_output=True, text=True, check=True)
    ids = tokenizer(sentence)["input_ids"]
    assert json.loads(run.stdout) == [ids, tokenizer.decode(ids), 77]


def test_the_most_frequent_words_are_kept():
    text = "b b b a a a c c d <|endoftext|> d-d e"
    vocabulary = train_word_level([text], "whitespace", vocab_size=6).get_vocab()
    assert vocabulary == {"a": 0, "b": 1, "c": 2, "<|endoftext|>": 3, "<|unk|>": 4, "<|pad|>": 5}
    vocabulary = train_word_level([text], "whitespace", min_frequency=3).get_vocab()
    assert vocabulary == {"a": 0, "b": 1, "<|endoftext|>": 2, "<|unk|>": 3, "<|pad|>": 4}
    assert "d-d" in train_word_level([text], "whitespace").get_vocab()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": [TEXT], "rule": "words"}, "rule is 'words': choose one of word, treebank, whitespace"),
        ({"texts": [TEXT], "vocab_size": 3}, "no room for words"),
        ({"texts": [TEXT], "min_frequency": 100}, "no word occurs 100 times"),
        ({"texts": ["", " \n"]}, "no text to take words from"),
    ],
)
def test_impossible_training_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        train_word_level(**arguments)


def test_a_word_list(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("the\ncat\n\nthe\ndon't\n<|unk|>\nsat \nmat\ntwo words\n", encoding="utf-8")
    tokenizer, left_out = word_level_from_list(path, "word")
    assert left_out == ["don't", "two words"]
    assert tokenizer.get_vocab() == {"the": 0, "cat": 1, "sat": 2, "mat": 3, "<|endoftext|>": 4, "<|unk|>": 5, "<|pad|>": 6}
    assert tokenizer("the dog sat.")["input_ids"] == [0, 5, 2, 5]
    tokenizer, left_out = word_level_from_list(path, "whitespace")
    assert left_out == ["two words"]
    assert tokenizer("don't")["input_ids"] == [tokenizer.get_vocab()["don't"]]


def test_unusable_word_lists_are_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        word_level_from_list(tmp_path / "none.txt")
    (tmp_path / "words.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="byte 3 is not UTF-8: pass its --encoding"):
        word_level_from_list(tmp_path / "words.txt")
    assert "café" in word_level_from_list(tmp_path / "words.txt", encoding="latin-1")[0].get_vocab()
    (tmp_path / "words.txt").write_bytes(b"\xef\xbb\xbfcat\n")
    assert "cat" in word_level_from_list(tmp_path / "words.txt")[0].get_vocab()
    (tmp_path / "words.txt").write_text("two words\n", encoding="utf-8")
    with pytest.raises(UserError, match="no word that the rule 'word' leaves whole"):
        word_level_from_list(tmp_path / "words.txt")
