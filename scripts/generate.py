"""Generate text with a language model of this package, or any other causal language model of transformers.

    python scripts/generate.py runs/quickstart --prompt "One day, Anna"
    python scripts/generate.py runs/quickstart --prompt "Tom" "Mia" --temperature 0.8 --top_k 50 --seed 7
    python scripts/generate.py runs/quickstart --prompt "" --num_beams 4 --max_new_tokens 80
    python scripts/generate.py runs/quickstart --prompt "One day" --stream --stop "." "!"
    python scripts/generate.py runs/large --prompt "One day" --max_new_tokens 500 --weights int8

Without sampling flags, decoding is greedy. Several prompts run as one batch.
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
from typing import Any

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.conflicts import check_generation
from gpt_scratch.errors import printable, run_script
from gpt_scratch.inference.decoding import generation_settings, prepare_as_asked
from gpt_scratch.inference.generation import generate_texts
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.inference.streamed_linear import WEIGHTS
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.precision import use_fast_fp32_matmul


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a causal language model with its tokenizer")
    parser.add_argument("--prompt", nargs="+", default=[""], help="texts to continue; an empty one starts a new document")
    parser.add_argument("--max_new_tokens", type=int, default=50, help="maximum number of new tokens")
    parser.add_argument(
        "--temperature",
        type=float,
        help="0 is greedy, without top_* and min_p; 1 leaves the distribution unchanged (but without --top_k it is cut to 50 tokens); "
        "default 0, or 1 with top_* or min_p",
    )
    parser.add_argument("--top_k", type=int, help="sample among the k most likely tokens; transformers' default is 50")
    parser.add_argument("--top_p", type=float, help="sample among the most likely tokens that together have probability p")
    parser.add_argument("--min_p", type=float, help="sample among tokens at least min_p times as likely as the likeliest")
    parser.add_argument("--num_beams", type=int, help="beam search with this many beams")
    parser.add_argument("--repetition_penalty", type=float, help="above 1 makes tokens that already occurred less likely")
    parser.add_argument("--no_repeat_ngram_size", type=int, help="n-grams of this size occur at most once")
    parser.add_argument("--seed", type=int, help="the same seed gives the same text")
    parser.add_argument("--stop", nargs="+", default=[], help="strings that end a text")
    parser.add_argument(
        "--parse_special_tokens",
        action="store_true",
        help="encode special tokens written in a prompt, such as <|endoftext|>, as tokens; default: as plain characters",
    )
    parser.add_argument("--stream", action="store_true", help="print the text as it is generated")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="dtype of the weights"
    )
    parser.add_argument(
        "--weights",
        default="auto",
        choices=("auto", *WEIGHTS, "none"),
        help="format of the weights, for faster generation; on a CPU in C, compiled on first use (some seconds; needs a C compiler). "
        "float32 gives the same text, bfloat16 and int8 nearly the same, int4 some loss of quality. auto: on a CPU, the checkpoint's own "
        "format; none: in PyTorch",
    )
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> list[str]:
    """Print each prompt with its continuation, and return the continuations."""
    optional = ("top_k", "top_p", "min_p", "num_beams", "repetition_penalty", "no_repeat_ngram_size")
    settings: dict[str, Any] = {name: getattr(args, name) for name in optional if getattr(args, name) is not None}
    temperature = args.temperature
    if temperature is None:
        temperature = 1.0 if {"top_k", "top_p", "min_p"} & settings.keys() else 0.0
    check_generation(args)
    use_fast_fp32_matmul()
    model, tokenizer = load_language_model(args.model, args.dtype)
    if prepare_as_asked(model, "none" if args.num_beams and args.weights == "auto" else args.weights):
        settings |= generation_settings(model)
    texts = generate_texts(
        model,
        tokenizer,
        args.prompt,
        args.max_new_tokens,
        temperature,
        args.seed,
        args.stream,
        args.stop,
        args.parse_special_tokens,
        **settings,
    )
    if not args.stream:
        for prompt, text in zip(args.prompt, texts):
            print(printable(prompt + text), end="\n\n")
    return texts


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
