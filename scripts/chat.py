"""Chat with a finetuned model in the terminal.

    python scripts/chat.py runs/instruct
    python scripts/chat.py runs/instruct --weights int8
    python scripts/chat.py runs/instruct --temperature 0.7 --seed 1 --system "You answer in one sentence."

`/reset` clears the conversation, `/quit` or Ctrl-D ends it. The oldest exchanges are dropped when the model's context is full.
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

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.errors import UserError, printable, run_script
from gpt_scratch.inference.chat import Chat
from gpt_scratch.inference.decoding import prepare_as_asked
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.inference.streamed_linear import WEIGHTS
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.precision import use_fast_fp32_matmul


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or Hub name of a model with a chat template")
    parser.add_argument("--system", help="system message at the start of every conversation")
    parser.add_argument("--max_new_tokens", type=int, default=256, help="maximum number of tokens in a reply")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy, 1 leaves the model's distribution unchanged")
    parser.add_argument("--seed", type=int, help="the same seed and messages give the same replies")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "float32", "bfloat16", "float16"], help="dtype of the weights"
    )
    parser.add_argument(
        "--weights", default="auto", choices=("auto", *WEIGHTS, "none"), help="format of the weights; see generate.py --help"
    )
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> None:
    """Hold the conversation on standard input and output."""
    use_fast_fp32_matmul()
    model, tokenizer = load_language_model(args.model, args.dtype)
    prepared = prepare_as_asked(model, args.weights)
    max_new_tokens = min(args.max_new_tokens, model.config.max_position_embeddings // 2)
    chat = Chat(model, tokenizer, args.system, max_new_tokens, args.temperature, args.seed, prepared)
    print("/reset clears the conversation, /quit ends it")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError as error:
            print(f"(the text is not valid {error.encoding}: {error.reason})")
            continue
        if text == "/quit":
            return
        if text == "/reset":
            chat.reset()
            print("(forgotten)")
        elif text:
            try:
                chat.reply(text)
            except UserError as error:
                print(f"({printable(str(error))})")
            except KeyboardInterrupt:
                print("\n(stopped)")
                chat.messages.pop()


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
