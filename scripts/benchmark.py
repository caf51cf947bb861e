"""Benchmark speed and memory against transformers' GPT-2, and any other GPT with --rival, run alternately.

    python scripts/benchmark.py step                                    # 124M, 4x256, fp32, eager
    python scripts/benchmark.py step --shape 2x1024 8x128 --bf16 --compile
    python scripts/benchmark.py memory --shape 4x256 1x1024
    python scripts/benchmark.py generation --batch 1 8 --compile
    python scripts/benchmark.py generation --llama_cpp model.gguf --batch 1 8 --prompt 32 512   # needs llama-cpp-python
    python scripts/benchmark.py conversation --model runs/chat --weights int8   # seconds per turn of a chat
    python scripts/benchmark.py perplexity --model runs/quickstart --text held-out.txt  # quality with bf16, int8 and int4 weights
    python scripts/benchmark.py length                                  # time and memory from 256 to 4,096 tokens
    python scripts/benchmark.py vocabulary --n_layer 2                  # time and memory for vocabularies from 4,096 to 128,256
    python scripts/benchmark.py ceilings                                # peak throughput of this machine
    python scripts/benchmark.py trainer                                 # overhead of Trainer
    python scripts/benchmark.py data --text input.txt --tokenizer runs/tokenizer     # from text to batches
    python scripts/benchmark.py padding --bf16                          # short texts of varying length
    python scripts/benchmark.py start                                   # seconds to the first training step and token
    python scripts/benchmark.py gpu --output gpu.json                       # everything above that a GPU changes, in ten minutes
    python scripts/benchmark.py load                                    # training beside other busy processes
    python scripts/benchmark.py run --run_clm run_clm.py --text input.txt --tokenizer runs/tokenizer --shape 32x128 --steps 250
                                                                        # from the command to the saved model
    RAYON_NUM_THREADS=1 python scripts/benchmark.py tokenizers --text input.txt --vocab_sizes 1000 8000
    python scripts/benchmark.py loss --baseline runs/gpt2-1 runs/gpt2-2 --candidate runs/modern-1     # time to the loss of the baseline
    python scripts/benchmark.py step --rival nanogpt=adapter.py:build   # build(sizes) -> module(input_ids, labels) -> loss

A rival's module shifts the labels itself and may have its own optimizer (`configure_optimizer()`, instead of fused AdamW); `sizes` has
n_layer, n_head, n_embd, vocab_size, n_positions. Prints a table and, with --output, writes it as JSON with environment, versions, threads
and load. Absolute times depend on the machine and its load; compare the speedups.
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
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, groupby, product
from pathlib import Path
from typing import Any

from gpt_scratch.benchmarking.data_pipeline import data_pipeline
from gpt_scratch.benchmarking.generation import conversation, generation, perplexity_of_weights
from gpt_scratch.benchmarking.gpu_suite import gpu_suite
from gpt_scratch.benchmarking.harness import Factory, Sizes, ceilings, load_rival, machine, table
from gpt_scratch.benchmarking.llama_cpp import FORMATS, against_llama_cpp
from gpt_scratch.benchmarking.loaded_machine import MODELS, loaded_machine
from gpt_scratch.benchmarking.padding import padding_waste
from gpt_scratch.benchmarking.start import start_up
from gpt_scratch.benchmarking.time_to_loss import time_to_loss
from gpt_scratch.benchmarking.tokenizers import benchmark_tokenizers
from gpt_scratch.benchmarking.training import growth, peak_memory, trainer_overhead, training_step
from gpt_scratch.benchmarking.whole_run import whole_run
from gpt_scratch.command_line import shape
from gpt_scratch.data.readers import check_files, whole_text
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.files import write_json
from gpt_scratch.inference.decoding import prepare_for_decoding
from gpt_scratch.inference.loading import load_language_model, load_tokenizer
from gpt_scratch.inference.streamed_linear import WEIGHTS
from gpt_scratch.provenance import describe_environment
from gpt_scratch.ranges import check_flags

LENGTHS = (256, 512, 1024, 2048, 4096)
VOCABULARIES = (4096, 16384, 50257, 128256)  # the last is Llama 3's


Rows = list[dict[str, Any]]
Rivals = dict[str, Factory]


# ------------------------------------------------------------------------------------------------ one function per subject


def measure_step(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    settings = args.bf16, args.compile, args.repetitions, rivals
    return list(chain.from_iterable(training_step(sizes, batch, length, *settings) for batch, length in args.shape))


def measure_memory(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    places = rival_places(args)
    return list(chain.from_iterable(peak_memory(sizes, batch, length, args.bf16, places) for batch, length in args.shape))


def measure_length(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    settings = [(replace(sizes, n_positions=max(LENGTHS)), 1, length) for length in LENGTHS]
    return growth(settings, args.bf16, args.compile, args.repetitions, rivals, rival_places(args))


def measure_vocabulary(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    settings = [(replace(sizes, vocab_size=size), *args.shape[0]) for size in VOCABULARIES]
    return growth(settings, args.bf16, args.compile, args.repetitions, rivals, rival_places(args))


def rival_places(args: argparse.Namespace) -> dict[str, str]:
    """Name -> NAME=path:factory, for processes that load a rival themselves."""
    return {text.partition("=")[0]: text for text in args.rival}


def measure_generation(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.llama_cpp:
        settings = args.batch, args.prompt, args.new_tokens, args.repetitions, args.weights or list(FORMATS)
        return against_llama_cpp(args.llama_cpp, *settings)
    shapes = product(args.batch, args.prompt)
    return list(
        chain.from_iterable(generation(sizes, *shape, args.new_tokens, args.repetitions, args.compile) for shape in shapes)
    )


def measure_trainer(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    batch, length = args.shape[0]
    return trainer_overhead(sizes, batch, length, args.steps, args.repetitions)


def measure_perplexity(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.model is None or args.text is None:
        raise UserError("--model or --text is missing: give a trained model and a text that it has not seen")
    check_files([args.text])
    model, tokenizer = load_language_model(args.model, "float32")
    ids = tokenizer(whole_text(args.text), return_tensors="pt", verbose=False)["input_ids"]
    windows = list(ids.split(256, dim=1))[: args.windows]
    perplexity = perplexity_of_weights(model, [window for window in windows if window.shape[1] > 1])
    return [
        {"weights": name, "perplexity": value, "worse": value / perplexity["float32"] - 1} for name, value in perplexity.items()
    ]


def measure_conversation(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.model is None:
        raise UserError("--model is missing: give a model with a chat template")
    rows = []
    for weights in args.weights or WEIGHTS:
        model, tokenizer = load_language_model(args.model)
        turns = conversation(prepare_for_decoding(model, weights), tokenizer, args.turns, args.new_tokens, args.repetitions)
        rows += [{"weights": weights} | turn for turn in turns]
    return rows


def measure_data(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.tokenizer is None or args.text is None:
        raise UserError("--tokenizer or --text is missing: give a tokenizer and a text to cut into blocks")
    check_files([args.text])
    return data_pipeline(args.text, load_tokenizer(args.tokenizer), args.shape[0][1], args.repetitions)


def measure_gpu(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    length = 1024 if args.shape == [(4, 256)] else args.shape[0][1]
    settings = length, 10 * args.steps, args.new_tokens, args.repetitions, args.limit
    return gpu_suite(Path(__file__).resolve().parent, sizes, *settings, lambda rows: write_result(args.output, rows))


def measure_run(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.run_clm is None or args.tokenizer is None or args.text is None:
        raise UserError(
            "--run_clm, --tokenizer or --text is missing: give transformers' script, a tokenizer and a text to train on"
        )
    check_files([args.text])
    steps = args.steps, args.fast_steps or args.steps
    scripts = Path(__file__).resolve().parent
    return whole_run(
        scripts, args.run_clm, args.text, load_tokenizer(args.tokenizer), sizes, args.shape[0], *steps, args.repetitions
    )


def measure_padding(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    tasks = ("classification", "instruction")
    return list(chain.from_iterable(padding_waste(sizes, task, args.bf16, args.repetitions) for task in tasks))


def measure_loss(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if not (args.baseline and args.candidate):
        raise UserError("--baseline and --candidate are missing: give directories of finished runs")
    return time_to_loss(args.baseline, args.candidate)


def measure_tokenizers(args: argparse.Namespace, sizes: Sizes, rivals: Rivals) -> Rows:
    if args.text is None:
        raise UserError("--text is missing: give a text file for the tokenizers")
    check_files([args.text])
    return benchmark_tokenizers(whole_text(args.text), tuple(args.vocab_sizes), max(5, args.repetitions))


SUBJECTS: dict[str, Callable[[argparse.Namespace, Sizes, Rivals], Rows]] = {
    "step": measure_step,
    "memory": measure_memory,
    "generation": measure_generation,
    "length": measure_length,
    "vocabulary": measure_vocabulary,
    "trainer": measure_trainer,
    "run": measure_run,
    "gpu": measure_gpu,
    "load": lambda args, sizes, rivals: loaded_machine(Path(__file__).resolve().parent, args.models, args.repetitions),
    "start": lambda args, sizes, rivals: start_up(Path(__file__).resolve().parent, args.repetitions),
    "ceilings": lambda args, sizes, rivals: ceilings(),
    "tokenizers": measure_tokenizers,
    "loss": measure_loss,
    "padding": measure_padding,
    "perplexity": measure_perplexity,
    "conversation": measure_conversation,
    "data": measure_data,
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--shape", nargs="+", type=shape, default=[(4, 256)], help="training batches as ROWSxTOKENS")
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="generation: prompts per batch")
    parser.add_argument("--turns", type=int, default=10, help="conversation: questions")
    parser.add_argument("--prompt", nargs="+", type=int, default=[32], help="generation: tokens in the prompt")
    parser.add_argument(
        "--new_tokens", type=int, default=128, help="generation: tokens to generate; conversation: at most, per reply"
    )
    parser.add_argument("--llama_cpp", help="generation: a GGUF file; compare with llama.cpp on its weights")
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=list(FORMATS),
        help="conversation, and generation with --llama_cpp: formats to compare; default: all",
    )
    parser.add_argument("--bf16", action="store_true", help="bf16 autocast")
    parser.add_argument("--compile", action="store_true", help="torch.compile all models; generation: also our prepared models")
    parser.add_argument("--repetitions", type=int, default=5, help="measurements of each model, after one warm-up")
    parser.add_argument("--steps", type=int, default=8, help="trainer, run: steps per run; gpu: a tenth of them")
    parser.add_argument("--fast_steps", type=int, help="run: steps of the fast recipe; default: --steps")
    parser.add_argument("--limit", type=float, default=480, help="gpu: seconds after which no further section begins")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="load: models to train")
    parser.add_argument("--run_clm", help="run: transformers' examples/pytorch/language-modeling/run_clm.py")
    parser.add_argument(
        "--text",
        help="text file; tokenizers: to train on and encode; perplexity: to predict; data: to split into blocks; run: to train on",
    )
    parser.add_argument("--tokenizer", help="data, run: a tokenizer's directory or Hub name")
    parser.add_argument("--model", help="perplexity, conversation: a trained model's directory")
    parser.add_argument("--windows", type=int, default=32, help="perplexity: number of windows of 256 tokens")
    parser.add_argument("--vocab_sizes", nargs="+", type=int, default=[1000, 8000], help="tokenizers: vocabulary sizes to train")
    parser.add_argument("--baseline", nargs="+", default=[], help="loss: directories of finished pretraining runs, one per seed")
    parser.add_argument("--candidate", nargs="+", default=[], help="loss: directories of the runs to compare with the baseline")
    parser.add_argument("--rival", nargs="+", default=[], help="NAME=path/to/file.py:factory")
    for name in ("n_layer", "n_head", "n_embd", "vocab_size"):
        parser.add_argument(
            f"--{name}", type=int, default=getattr(Sizes(), name), help="size of the model; default: that of GPT-2 small"
        )
    parser.add_argument("--output", help="JSON file to write")
    return check_flags(parser.parse_args(argv))


def check_llama_cpp(args: argparse.Namespace) -> None:
    """Refuse flags that would have no effect.

    Raises:
        UserError: names the flag.
    """
    if args.llama_cpp and args.subject != "generation":
        raise UserError("--llama_cpp is for the subject generation")
    if args.weights and args.subject not in ("generation", "conversation"):
        raise UserError("--weights is for the subjects generation and conversation")
    if args.weights and args.subject == "generation" and not args.llama_cpp:
        raise UserError("--weights needs --llama_cpp: without it, generation compares all formats with --compile")
    sizes = vars(Sizes())
    given = [name for name, default in sizes.items() if getattr(args, name, default) != default]
    given += [name for name in ("compile", "rival") if getattr(args, name)]
    if args.llama_cpp and given:
        raise UserError(f"--{given[0]} has no effect with --llama_cpp: leave it out")


def main(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure, and return the rows of the table."""
    check_llama_cpp(args)
    longest = max(*(length for _, length in args.shape), max(args.prompt) + args.new_tokens)
    sizes = Sizes(args.n_layer, args.n_head, args.n_embd, args.vocab_size, max(1024, longest))
    rows = SUBJECTS[args.subject](args, sizes, dict(load_rival(text) for text in args.rival))
    for _, section in groupby(rows, key=lambda row: row.get("section")):
        print(table(list(section)))
    write_result(args.output, rows)
    return rows


def write_result(path: str | None, rows: Rows) -> None:
    """The rows with machine, peak throughput and versions as JSON."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        result = {"rows": rows, "machine": machine(), "ceilings": ceilings(), "environment": describe_environment()}
        write_json(Path(path), result)


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
