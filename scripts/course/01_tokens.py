# %% [markdown]
# # Lesson 1: Text to tokens
#
# About 15 minutes. You need: Python, and what a regular expression is.
#
# After this lesson you can
#
# - turn text into numbers and back, with a vocabulary of words and a token for unknown words,
# - explain why models use pieces of words instead, and learn such pieces by byte-pair encoding in thirty lines,
# - encode any text, in any language, without an unknown token.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
small = False  # the tests set this to True, and the lesson then reads fewer stories

# %%
import json
import re
from collections import Counter

import matplotlib.pyplot as plt
import regex  # like re, and knows Unicode's classes: \p{L} is any letter, \p{N} any digit

lines = (root / "gpt_scratch" / "data" / "samples" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
texts = [json.loads(line)["text"] for line in lines[: 60 if small else 2400]]
print(len(texts), "stories; the first one:\n")
print(texts[0])

# %% [markdown]
# ## 1. Words
#
# A model computes with numbers. So text is split into pieces, each distinct piece gets a number, and the text becomes the list of these numbers. A piece
# in this sense is called a **token**, its number an **id**, and the list of all tokens the **vocabulary**.
#
# The simplest way is to split into words. Punctuation gets tokens of its own, since "dog," and "dog" should not be two words.

# %%
WORD = re.compile(
    r"""--|[,.:;?_!"()']|(?:(?!--)[^\s,.:;?_!"()'])+"""
)  # a double dash, a punctuation mark, or a run of any other characters except spaces


def split_words(text):
    """The words and punctuation marks of `text`, without spaces."""
    return WORD.findall(text)


print(split_words('Anna said, "It\'s here!"'))

# %% [markdown]
# Now the vocabulary: all words that occur, sorted, numbered from 0. A later text may contain words that are not in it. For these we keep
# a token `<|unk|>`. Another, `<|endoftext|>`, marks where a text ends.


# %%
def word_vocabulary(texts):
    """word -> id"""
    words = sorted({word for text in texts for word in split_words(text)})
    return {word: number for number, word in enumerate([*words, "<|endoftext|>", "<|unk|>"])}


def encode_words(text, vocabulary):
    """text -> ids; unknown words become <|unk|>"""
    return [vocabulary.get(word, vocabulary["<|unk|>"]) for word in split_words(text)]


vocabulary = word_vocabulary(texts)
names = {number: word for word, number in vocabulary.items()}
ids = encode_words("Anna saw a xylophone.", vocabulary)
print(len(vocabulary), "words;", ids, "->", " ".join(names[number] for number in ids))

# %% [markdown]
# "xylophone" is lost: nobody can tell from `<|unk|>` which word it was. And a vocabulary of all English words has hundreds of thousands of rows, most of them
# rare, so that a model hardly ever sees them in training.
#
# ## 2. Bytes
#
# The other extreme: every text is stored as bytes (UTF-8), and there are only 256 of them. Nothing is ever unknown. But texts become long, and a single byte
# means little.

# %%
for text in ("Anna", "é", "🙂"):
    print(text, list(text.encode()))

# %% [markdown]
# ## 3. Byte-pair encoding: the middle way
#
# Start with bytes. Find the pair of adjacent tokens that occurs most often, and make it a new token. Repeat. Frequent words are merged into one
# token; rare ones stay in several pieces; any text can be written with bytes.
#
# By hand: the words `low` 5 times, `lower` 2 times, `newest` 6 times, `widest` 3 times.
#
# | step | most frequent pair | times | new token |
# |---|---|---|---|
# | 1 | e s | 6 + 3 = 9 | es |
# | 2 | es t | 9 | est |
# | 3 | l o | 5 + 2 = 7 | lo |
# | 4 | lo w | 7 | low |
#
# In step 1, "e s" and "s t" both occur 9 times. A rule must break such ties: here the pair with the smaller ids wins.
#
# Two details of GPT-2 (Radford et al. 2019, section 2.2). Text is first split into pieces, roughly words with the space before them, and pairs are never formed
# across pieces; so "dog." and "dog!" share the token " dog". And the 256 bytes have their own order: first those that are
# visible characters, then the rest.

# %%
PIECE = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = VISIBLE + [byte for byte in range(256) if byte not in VISIBLE]  # id -> byte
print(PIECE.findall("Anna's dog can't see 12 stars!"))


# %%
def merge(ids, pair, union):
    """Replace every occurrence of `pair` in `ids` by `union`, from left to right."""
    merged = []
    for number in ids:
        if merged and (merged[-1], number) == pair:
            merged[-1] = union
        else:
            merged.append(number)
    return merged


def learn_merges(counts, vocabulary_size):
    """Pieces and their counts -> {pair of ids: id of the merged token}, in the order learned."""
    words = {piece: [BYTES.index(byte) for byte in piece.encode()] for piece in counts}
    merges = {}
    while 256 + len(merges) < vocabulary_size:
        pairs = Counter()
        for piece, ids in words.items():
            for pair in zip(ids, ids[1:]):
                pairs[pair] += counts[piece]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break  # no pair occurs twice any more
        merges[best] = 256 + len(merges)
        words = {piece: merge(ids, best, merges[best]) for piece, ids in words.items()}
    return merges


def encode(text, merges):
    """text -> ids: in each piece, the merge that was learned first comes first."""
    result = []
    for piece in PIECE.findall(text):
        ids = [BYTES.index(byte) for byte in piece.encode()]
        while known := [merges[pair] for pair in zip(ids, ids[1:]) if pair in merges]:
            union = min(known)
            ids = merge(ids, next(pair for pair, number in merges.items() if number == union), union)
        result += ids
    return result


def token_bytes(merges):
    """id -> its bytes"""
    content = {number: bytes([byte]) for number, byte in enumerate(BYTES)}
    for (left, right), union in merges.items():
        content[union] = content[left] + content[right]
    return content


# %% [markdown]
# First the four words from the table, then the stories.

# %%
merges = learn_merges({"low": 5, "lower": 2, "newest": 6, "widest": 3}, 260)
print([token_bytes(merges)[union].decode() for union in merges.values()])

counts = Counter(piece for text in texts for piece in PIECE.findall(text))
merges = learn_merges(counts, 400 if small else 1000)
content = token_bytes(merges)
print(len(merges), "merges; the first:", [content[union].decode() for union in list(merges.values())[:12]])
for text in ("One day, Anna saw a xylophone.", "Ein Bär 🙂"):
    ids = encode(text, merges)
    print(ids, [content[number].decode(errors="replace") for number in ids])

# %% [markdown]
# Words that the stories use often are single tokens, with the space before them. "xylophone", which they never use, is spelled out almost letter by letter, and nothing is lost. "�" stands for a
# byte that is only a part of a character.
#
# What does it save? The plot shows how many tokens the first stories need, for each number of merges.

# %% tags=["figure"]
sample = "\n".join(texts[:20])
points = [0, 10, 25, 50, 100, 200, 400, len(merges)]
lengths = [len(encode(sample, dict(list(merges.items())[:number]))) for number in points]
figure, axis = plt.subplots(figsize=(6, 3))
axis.plot(points, lengths, marker="o")
axis.set(xlabel="merges learned", ylabel="tokens of twenty stories", ylim=(0, None))
figure.tight_layout()
plt.show()

# %% [markdown]
# The first merges save most. A larger vocabulary makes texts shorter but the model's table of token vectors larger (lesson 6).
#
# ## 4. Compare with the package
#
# The package has a word-level tokenizer and a byte-pair encoding. Both are trained on the same stories. All ids must be equal, on texts with
# unknown words, other alphabets and emoji. The package's vocabulary also contains two special tokens, so we ask it for two tokens more.

# %% tags=["compare"]
from gpt_scratch.tokenization.byte_pair import train_byte_pair
from gpt_scratch.tokenization.word_level import train_word_level

samples = [texts[1], "Anna found a xylophone -- didn't she?", "Ein Bär 🙂 isst 3 Äpfel.\n\n  Ende", "Привет, мир!"]
their_words = train_word_level(texts)
assert {word: number for word, number in their_words.get_vocab().items() if word != "<|pad|>"} == vocabulary
for text in samples:
    assert encode_words(text, vocabulary) == their_words(text)["input_ids"], text

theirs = train_byte_pair(texts, vocab_size=len(merges) + 256 + 2)
assert list(theirs.merges.items()) == list(merges.items())
for text in samples:
    assert encode(text, merges) == theirs.encode(text) == theirs.to_fast()(text)["input_ids"], text
print(f"{len(vocabulary)} words and {len(merges)} merges are the same, and so are the ids of {len(samples)} texts")

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/01_tokens.py`.
#
# **Exercise 1.** With pencil and paper: the pieces `hug` 3 times, `pug` 2 times, `hub` 2 times. The first merge is `hu` (5 times; `ug` occurs 5 times too, and h comes before u).
# Which token is learned second?

# %% tags=["exercise"]
second = ...  # a string

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == "hug":
        return "Right: `hu g` occurs 3 times, `u g` only 2 times now, in `pug`"
    if answer == "ug":
        return "Wrong: after the first merge, `hug` is `hu g`; `u g` is left in `pug` only, 2 times"
    return "Wrong: write the pieces as `hu g` (3), `p u g` (2), `hu b` (2) and count the pairs again"


print(check_1(second))

# %% [markdown]
# **Exercise 2.** Write the inverse: ids to text. Test it on "🙂", whose four bytes may be spread over several tokens.


# %% tags=["exercise"]
def decode(ids, content):
    """ids -> text; `content` gives the bytes of each id"""
    ...


# %% tags=["check"]


def check_2(function):
    text = "Ein Bär 🙂"
    if (given := function(encode(text, {}), content)) is None:
        return "Exercise 2: no answer yet"
    if given == text:
        return "Right: first join all bytes, then decode once"
    if isinstance(given, bytes):
        return "Wrong: these are bytes; `.decode()` makes text of them"
    if "�" in given:
        return "Wrong: � shows that you decoded each token by itself; a character of several bytes must be put together first"
    return f"Wrong: {text!r} came back as {given!r}"


try:
    print(check_2(decode))
except UnicodeDecodeError:
    print("Wrong: a token may hold only part of a character, and cannot be decoded by itself; join the bytes of all tokens first")

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | words | `gpt_scratch/tokenization/word_level.py`, `train_word_level` |
# | splitting into pieces | `gpt_scratch/tokenization/pretokenization.py`, `split_gpt2` |
# | learning merges, without recounting all pairs after each | `gpt_scratch/tokenization/byte_pair_training.py`, `learn_merges` |
# | encoding and decoding | `gpt_scratch/tokenization/byte_pair.py`, `BytePairTokenizer` |
# | training one from the command line | `scripts/train_tokenizer.py` |
#
# **Sources.** Sennrich et al. 2016, arXiv:1508.07909, section 3.2 (byte-pair encoding for text; the four words are in its algorithm 1);
# Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2 (on bytes); Gage 1994, "A New Algorithm for Data Compression".
