"""Train a tokenizer from scratch on text files, or convert one of minbpe, the book or OpenAI's GPT-2.

    python scripts/train_tokenizer.py --train_file my_text.txt --vocab_size 4000 --output_dir runs/tokenizer
    python scripts/train_tokenizer.py --type word --train_file the-verdict.txt --output_dir runs/words
    python scripts/train_tokenizer.py --type character --train_file input.txt --output_dir runs/characters
    python scripts/train_tokenizer.py --type treebank --word_list words.txt --validation_file my_text.txt --output_dir runs/words
    python scripts/train_tokenizer.py --from_files toy.model --validation_file my_text.txt --output_dir runs/minbpe
    python scripts/train_tokenizer.py --from_files vocab.json bpe_merges.txt --validation_file my_text.txt --output_dir runs/book
    python scripts/train_tokenizer.py --from_files encoder.json vocab.bpe --validation_file my_text.txt --output_dir runs/gpt2

bpe is GPT-2's byte-level kind, which loses nothing; word (the book's regular expression), treebank (NLTK's rules) and whitespace have
whole words; character (nanoGPT's shakespeare_char) has single characters. The output directory holds a tokenizer.json:
`AutoTokenizer.from_pretrained(DIR)` and every `--tokenizer_name` take it.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_scratch.conflicts import check_tokenizer
from gpt_scratch.data.instruction import CHAT_TEMPLATES, set_prompt_style
from gpt_scratch.data.language_modeling import SPLITS_BY, documents_from_files, split_documents, texts_of
from gpt_scratch.data.opening import Reading, check_files, warn_of_shared_files
from gpt_scratch.errors import run_script
from gpt_scratch.files import atomic_directory
from gpt_scratch.ranges import check_flags
from gpt_scratch.tokenization.byte_pair import END_OF_TEXT, PADDING, train_byte_level_bpe
from gpt_scratch.tokenization.byte_pair_files import read_book_bpe, read_minbpe
from gpt_scratch.tokenization.gpt2 import FILE_NAMES, read_gpt2_files
from gpt_scratch.tokenization.portable import save_tokenizer
from gpt_scratch.tokenization.report import TokenizerReport, report_on
from gpt_scratch.tokenization.word_level import RULES, train_word_level, word_level_from_list


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="bpe", choices=["bpe", *RULES], help="kind of tokenizer; default bpe")
    parser.add_argument(
        "--train_file", nargs="+", help="text to train on: txt, jsonl, json, csv, tsv or parquet; a folder or glob of them"
    )
    parser.add_argument("--word_list", help="instead of --train_file: a file with one word per line (word, treebank, whitespace)")
    parser.add_argument(
        "--from_files",
        nargs="+",
        help="instead of --train_file: minbpe's .model file, the book's two JSON files, or GPT-2's encoder.json and vocab.bpe",
    )
    parser.add_argument("--validation_file", nargs="+", help="held-out text; default: the last part of the training text")
    parser.add_argument(
        "--validation_split_percentage",
        type=float,
        default=10,
        help="percentage of the characters to hold out without --validation_file; default 10",
    )
    parser.add_argument(
        "--split_by",
        default="documents",
        choices=SPLITS_BY,
        help="where the held-out text begins: at the nearest end of a document, or at the exact character; default documents",
    )
    Reading.add_flags(parser)
    parser.add_argument("--text_column", default="text", help="column that holds the text; default text")
    parser.add_argument(
        "--vocab_size", type=int, help="tokens, including special ones; default 8000 for bpe, all words otherwise"
    )
    parser.add_argument("--min_frequency", type=int, help="minimum occurrences of a pair or word; default 2 for bpe, 1 otherwise")
    parser.add_argument(
        "--special_tokens",
        nargs="+",
        default=[],
        help="additional special tokens, e.g. of a chat template: '<|im_start|>' (bpe)",
    )
    parser.add_argument("--prompt_style", choices=sorted(CHAT_TEMPLATES), help="chat template to save with the tokenizer")
    parser.add_argument("--model_max_length", type=int, default=1024, help="longest input of the model, in tokens; default 1024")
    parser.add_argument("--example", nargs="+", help="texts to show split into tokens; default: two lines of the held-out text")
    parser.add_argument("--output_dir", required=True, help="directory to write, atomically")
    parser.add_argument("--overwrite", action="store_true", help="replace an --output_dir that this package wrote")
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> TokenizerReport:
    """Create and save the tokenizer; print and return its report on held-out text."""
    check_arguments(args)
    read = [*(args.train_file or []), *(args.validation_file or []), *(args.from_files or []), args.word_list]
    with atomic_directory(args.output_dir, args.overwrite, read) as directory:
        train, validation = read_texts(args)
        tokenizer = make_tokenizer(args, train)
        if args.prompt_style:
            set_prompt_style(tokenizer, args.prompt_style)
        report = report_on(tokenizer, texts_of(validation), args.example or first_lines(validation))
        save_tokenizer(tokenizer, directory)
    print(report)
    print(f"\nsaved in {args.output_dir}")
    return report


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse wrong combinations of flags before anything is read.

    Raises:
        UserError: names the flags.
    """
    check_tokenizer(args)
    check_files([*(args.train_file or []), *(args.validation_file or [])])


def read_texts(args: argparse.Namespace):
    """Training text (`None` without --train_file) and held-out text, as Arrow data sets."""
    reading = Reading.of(args)
    train = documents_from_files(args.train_file, args.text_column, reading=reading) if args.train_file else None
    if args.validation_file:
        warn_of_shared_files(args.train_file or (), args.validation_file)
        return train, documents_from_files(args.validation_file, args.text_column, reading=reading)
    return split_documents(train, args.validation_split_percentage, args.split_by)


def make_tokenizer(args: argparse.Namespace, train):
    """Train a tokenizer, or read the files given instead of training text."""
    length = args.model_max_length
    if args.from_files and tuple(Path(name).name for name in args.from_files) in FILE_NAMES:
        vocabulary, merges = map(Path, args.from_files)
        return read_gpt2_files(vocabulary, merges, length)
    if args.from_files:
        found = read_minbpe(*args.from_files) if len(args.from_files) == 1 else read_book_bpe(*args.from_files)
        return found.to_fast(length)
    if args.word_list:
        tokenizer, left_out = word_level_from_list(args.word_list, args.type, length, args.encoding or "utf-8-sig")
        if left_out:
            print(
                f"{len(left_out):,} entries of {args.word_list} are left out, as --type {args.type} cuts them: {left_out[0]!r}, ..."
            )
        return tokenizer
    if args.type == "bpe":
        frequency = 2 if args.min_frequency is None else args.min_frequency
        special = (END_OF_TEXT, PADDING, *args.special_tokens)
        return train_byte_level_bpe(texts_of(train), args.vocab_size or 8000, frequency, special, length)
    frequency = 1 if args.min_frequency is None else args.min_frequency
    return train_word_level(texts_of(train), args.type, args.vocab_size, frequency, length)


def first_lines(documents, count: int = 2) -> list[str]:
    """The first lines that are neither empty nor long, as examples."""
    lines = (line.strip() for line in documents[0]["text"][:10_000].splitlines())
    return [line[:120] for line in lines if line][:count]


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
