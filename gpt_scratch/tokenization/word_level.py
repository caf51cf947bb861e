r"""Word-level tokenizers: a vocabulary of whole words, split by one of four rules, in a `tokenizer.json` that AutoTokenizer loads.

- `word`: the regular expression of *Build a Large Language Model (From Scratch)*, section 2.2: `([,.:;?_!"()\']|--|\s)`.
- `treebank`: NLTK's improved Treebank rules (`nltk.tokenize.NLTKWordTokenizer`), which split off clitics ("do n't") and turn quotation
  marks into `` and ''. NLTK's substitutions refer to their matches, which the normalizers of `tokenizers` cannot do; each is rewritten to
  insert spaces at positions found by lookaround. The words of a line equal those of nltk 3.10 (tested on real and random text); nltk is
  not needed. Lines are tokenized independently, as by the Treebank's original sed script: a period is split off only at the end of a line.
- `whitespace`: runs of non-space characters.
- `character`: every character is a token (nanoGPT's `shakespeare_char`).

A word outside the vocabulary becomes `<|unk|>`, which cannot be decoded. The first three rules lose line ends and runs of spaces.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from .byte_pair import END_OF_TEXT, PADDING

UNKNOWN = "<|unk|>"
SPECIAL_TOKENS = (END_OF_TEXT, UNKNOWN, PADDING)  # the first two in the book's order
RULES = ("word", "treebank", "whitespace", "character")

# White space for Python's str.split and `re`: Oniguruma's, and four ASCII separators.
SPACE = r"[\s\x1c-\x1f]"


def train_word_level(
    texts: Iterable[str], rule: str = "word", vocab_size: int | None = None, min_frequency: int = 1, model_max_length: int = 1024
) -> PreTrainedTokenizerFast:
    """Train a word-level tokenizer on `texts`.

    Ids: the words in alphabetical order, then `<|endoftext|>`, `<|unk|>` (both as in the book) and `<|pad|>`.

    Args:
        texts: training texts.
        rule: one of `RULES`.
        vocab_size: number of tokens, including special tokens; the most frequent words are kept, ties in alphabetical order. `None`: all.
        min_frequency: less frequent words are left out.
        model_max_length: longest input of the model, in tokens.

    Raises:
        UserError: an unknown rule, a vocabulary without room for a word, or no word that is frequent enough.

    >>> tokenizer = train_word_level(["It's the last he painted."])
    >>> tokenizer.decode(tokenizer("It's the first.")["input_ids"])
    "It's the <|unk|>."
    """
    if vocab_size is not None and vocab_size <= len(SPECIAL_TOKENS):
        raise UserError(f"vocab_size is {vocab_size}: {len(SPECIAL_TOKENS)} special tokens leave no room for words")
    backend = pipeline_of(rule)
    counts: Counter[str] = Counter()
    for text in texts:
        for part in re.split("|".join(map(re.escape, SPECIAL_TOKENS)), text):
            counts.update(cut_words(backend, part))
    words = [word for word, count in counts.items() if count >= min_frequency]
    if not words:
        raise UserError(f"no word occurs {min_frequency} times in the text" if counts else "there is no text to take words from")
    words.sort(key=lambda word: (-counts[word], word))
    if vocab_size is not None:
        words = words[: vocab_size - len(SPECIAL_TOKENS)]
    return _tokenizer(backend, sorted(words), model_max_length)


def word_level_from_list(
    path: str | os.PathLike, rule: str = "word", model_max_length: int = 1024, encoding: str = "utf-8-sig"
) -> tuple[PreTrainedTokenizerFast, list[str]]:
    """Make a tokenizer from a file with one word per line, in its order; also return the lines left out because `rule` would split them.

    Empty and repeated lines are skipped. Special tokens follow as in [`train_word_level`], wherever they occur in the file.

    Raises:
        UserError: a file that cannot be read or has no usable word, or an unknown rule.
    """
    try:
        lines = Path(path).read_text(encoding=encoding).splitlines()
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{path}: byte {error.start} is not {name}: pass its --encoding, or convert the file to UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    backend = pipeline_of(rule)
    words = [word for word in dict.fromkeys(map(str.strip, lines)) if word and word not in SPECIAL_TOKENS]
    left_out = [word for word in words if cut_words(backend, word) != [word]]
    kept = [word for word in words if word not in set(left_out)]
    if not kept:
        raise UserError(f"{path} has no word that the rule {rule!r} leaves whole: give one word a line")
    return _tokenizer(backend, kept, model_max_length), left_out


def cut_words(backend: Tokenizer, text: str) -> list[str]:
    """Split `text` into words, known or not, with the pipeline of `backend`."""
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]


def _tokenizer(backend: Tokenizer, words: list[str], model_max_length: int) -> PreTrainedTokenizerFast:
    vocabulary = {word: id for id, word in enumerate([*words, *SPECIAL_TOKENS])}
    backend.model = models.WordLevel(vocabulary, unk_token=UNKNOWN)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,  # the decoder does this by its own rules
    )


def pipeline_of(rule: str) -> Tokenizer:
    """The pipeline that splits text into words and joins them again, still without a vocabulary.

    Raises:
        UserError: an unknown rule.
    """
    if rule not in RULES:
        raise UserError(f"rule is {rule!r}: choose one of {', '.join(RULES)}")
    backend = Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    at_spaces = pre_tokenizers.Split(Regex(f"{SPACE}+"), "removed")
    if rule == "word":
        marks = pre_tokenizers.Split(Regex(r'[,.:;?_!"()\']|--'), "isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([at_spaces, marks])
        backend.decoder = _joined_by_spaces(_BOOK_JOINS)
    elif rule == "treebank":
        backend.normalizer = normalizers.Sequence(_treebank_steps())
        backend.pre_tokenizer = at_spaces
        backend.decoder = _joined_by_spaces(_TREEBANK_JOINS)
    elif rule == "character":
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        backend.decoder = decoders.Fuse()
    else:
        backend.pre_tokenizer = at_spaces
    return backend


# ---------------------------------------------------------------------------------------------------------------------------
# Decoding: words are joined with spaces, then spaces that do not belong in running text are removed.

_BOOK_JOINS = (
    (r" (?=[,.:;?!)'])", ""),
    (r"(?<=\() ", ""),
    (r"(?<=\p{L}') (?=(?:s|t|d|m|re|ve|ll)\b)", ""),
    # Opening and closing quotation marks are the same token: at the start and after a colon or dash it opens, elsewhere it closes.
    (r'(?<=\A") |(?<=(?:--|:) ") ', ""),
    (r'(?<!:)(?<!--) (?=")', ""),
)
_TREEBANK_JOINS = (
    (r"`` | ''(?![^ ])", '"'),
    (r" (?=[,.:;?!%)\]}»”’])", ""),
    (r"(?<=[(\[{«“‘$#]) ", ""),
    (r" (?=(?:n't|N'T|'(?:[sSmMdD]|ll|LL|re|RE|ve|VE))(?!\p{L}))", ""),
    (
        r"(?<=\b[gG]on|\b[wW]an) (?=na\b)|(?<=\b[gG]ot) (?=ta\b)|(?<=\b[gG]im|\b[lL]em) (?=me\b)|(?<=\A'| ') (?=(?:is|was|tis|twas)\b)",
        "",
    ),
)


def _joined_by_spaces(joins: tuple[tuple[str, str], ...]) -> decoders.Decoder:
    steps = [decoders.Replace(Regex(pattern), content) for pattern, content in joins]
    # WordPiece's decoder puts a space before every token but the first, unless it begins with the prefix; no token does.
    return decoders.Sequence([decoders.WordPiece(prefix="\uffff", cleanup=False), decoders.Fuse(), *steps])


# ---------------------------------------------------------------------------------------------------------------------------
# NLTK's rules, in NLTK's order; the comments show its substitutions (nltk/tokenize/destructive.py).


def _treebank_steps() -> list[normalizers.Normalizer]:
    def replace(pattern: str, content: str) -> normalizers.Normalizer:
        return normalizers.Replace(Regex(pattern), content)

    def space_at(*places: str) -> normalizers.Normalizer:
        return replace("|".join(places), " ")

    def space_around(character: str) -> normalizers.Normalizer:
        return space_at(f"(?={character})", f"(?<={character})")

    # A word character for the `regex` module, which NLTK uses for all rules but contractions, and for `re`, which it uses for those.
    word, re_word = r"[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]", r"[\p{L}\p{N}_]"
    other_cases = {"i": "İı", "k": "\u212a", "s": "ſ"}  # also matched when case is ignored

    def any_case(letters: str) -> str:
        return "".join(f"[{c}{c.upper()}{other_cases.get(c, '')}]" if c.isalpha() else c for c in letters)

    def contraction(first: str, second: str, then: str = f"(?!{re_word})") -> list[str]:
        """(?i)\\b(first)(second)\\b -> " \\1 \\2 " """
        first, second = any_case(first), any_case(second)
        starts_word = f"(?<!{re_word}{first})"
        return [
            f"(?<!{re_word})(?={first}{second}{then})",
            f"(?<={first}){starts_word}(?={second}{then})",
            f"(?<={first}{second})(?<!{re_word}{first}{second}){then}",
        ]

    def after_t(rest: str) -> list[str]:
        """(?i) ('t)(rest)\\b -> " \\1 \\2 " """
        t, rest = any_case("t"), any_case(rest)
        return [f"(?<= '{t})(?={rest}(?!{re_word}))", f"(?<= '{t}{rest})(?!{re_word})"]

    line_start, line_end = r"(?<![^\n])", r"(?![^\n])"
    # In a run of colons and commas, each match consumes two: split after an even number of them. (At most 100: a bound is faster.)
    even_marks = r"(?:\A|[^:,])(?:[:,]{2}){0,50}"
    return [
        # Starting quotes
        space_at("(?=[«“‘„])", "(?<=[«“‘„])", "(?<!`)(?=`)", "(?<=`)(?!`)"),  # ([«“‘„]|[`]+) -> " \1 "
        replace(f'{line_start}"', "``"),  # ^\" -> ``
        normalizers.Replace("``", " `` "),
        replace(r"(?<=[ (\[{<])(?:\"|'')", " `` "),  # ([ (\[{<])(\"|\'{2}) -> "\1 `` "
        # (?i)(?<!\w)(\')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w) -> "\1 "
        replace(rf"(?<!{word})'(?!(?:[rR][eE]|[vV][eE]|[lL][lL]|[mMtTsSſdDnN])(?!{word}))(?={word})", "' "),
        # Punctuation
        replace(
            rf"(?<=[^.\n])\.(?=[\])}}>\"'»”’ ]*[^\S\n]*{line_end})", " . "
        ),  # ([^\.])(\.)([\]\)}>"\'»”’ ]*+)\s*$ -> " \1 \2 \3 "
        space_at(rf"(?=[:,][^\d])(?<={even_marks})", rf"(?<=[:,])(?=[^\d])(?<={even_marks}[:,])"),  # ([:,])([^\d]) -> " \1 \2"
        space_at(f"(?=[:,]{line_end})", f"(?<=[:,]){line_end}"),  # ([:,])$ -> " \1 "
        space_at(r"(?<!\.)(?=\.\.)", r"(?<=\.\.)(?!\.)"),  # \.{2,} -> " \g<0> "
        space_around("[;@#$%&]"),
        space_around("[\u2012-\u2015]"),
        space_around("[?!]"),
        space_at("(?<=[^'\n])(?=' )"),  # ([^'])'[ ] -> "\1 ' "
        space_around("[*]"),
        space_around(r"[\]\[(){}<>]"),
        normalizers.Replace("--", " -- "),
        # Ending quotes
        replace(f"{line_start}|{line_end}", " "),
        space_around("[»”’]"),
        normalizers.Replace("''", " '' "),
        normalizers.Replace('"', " '' "),
        replace(r"\s+", " "),
        space_at("(?<=[^' ])(?='[sSmMdD]? )"),  # ([^' ])('[sS]|'[mM]|'[dD]|')[ ] -> "\1 \2 "
        space_at("(?<=[^' ])(?=(?:'ll|'LL|'re|'RE|'ve|'VE|n't|N'T) )"),
        # Contractions
        space_at(
            *contraction("can", "not"),
            *contraction("d", "'ye"),
            *contraction("gim", "me"),
            *contraction("gon", "na"),
            *contraction("got", "ta"),
            *contraction("lem", "me"),
            *contraction("more", "'n"),
            *contraction("wan", "na", then=f"(?={SPACE})"),
        ),
        space_at(*after_t("is"), *after_t("was")),
    ]
