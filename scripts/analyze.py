"""Inspect a model or training runs.

    python scripts/analyze.py attention runs/quickstart --text "One day, Anna went to the river." --layer 0 --head 1
    python scripts/analyze.py tokens runs/quickstart --text "One day, Anna went to the river." --top 5
    python scripts/analyze.py lens runs/quickstart --text "One day, Anna went"
    python scripts/analyze.py temperature runs/quickstart --text "One day, Anna" --temperatures 1 0.1 5
    python scripts/analyze.py summary runs/quickstart --batch 8 --flops 1e11
    python scripts/analyze.py runs runs/quickstart runs/other --labels first second --x num_input_tokens_seen

attention: maps of all heads, one head with its tokens, rollout over all layers, entropies.
tokens: rank and surprise of each token, as coloured text. lens: predictions of each layer. temperature: sampling settings.
summary: parameters, memory, FLOPs, time. runs: curves of finished runs, from trainer_state.json.
Plots are written to --output (PNG and SVG; runs: PNG and PDF), numbers to the terminal, or as JSON with --json.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.analysis.attention import (
    attention_entropy,
    attention_maps,
    attention_rollout,
    check_indices,
    plot_attention,
    plot_attention_grid,
    token_texts,
)
from gpt_scratch.analysis.next_token import (
    lens_table,
    logit_lens,
    plot_lens,
    plot_surprise,
    plot_temperatures,
    sampling_distribution,
    score_tokens,
    write_surprise_html,
)
from gpt_scratch.analysis.runs import plot_histories, read_history
from gpt_scratch.analysis.summary import summarize_model, summary_table
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.inference.generation import encode_prompts
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.ranges import check_flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name in ("attention", "tokens", "lens", "temperature", "summary"):
        subject = subjects.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        subject.add_argument("model", help="directory or Hub name of a causal language model")
        subject.add_argument("--json", action="store_true", help="print the figures as JSON")
        if name != "summary":
            subject.add_argument("--text", required=True, help="input text")
            subject.add_argument(
                "--parse_special_tokens",
                action="store_true",
                help="encode special tokens written in the text as tokens; default: as plain characters",
            )
            subject.add_argument(
                "--output", default=f"analysis-{name}", help="prefix of the file names, or a folder that ends with /"
            )
        if name == "attention":
            subject.add_argument("--layer", type=int, default=0, help="layer of the single map, counted from 0")
            subject.add_argument("--head", type=int, default=0, help="head of the single map, counted from 0")
        if name in ("tokens", "temperature"):
            subject.add_argument("--top", type=int, default=5, help="most likely tokens to show")
        if name == "temperature":
            subject.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 0.1, 5.0], help="to compare")
            subject.add_argument("--top_k", type=int, help="keep the k most likely tokens")
            subject.add_argument("--top_p", type=float, help="keep the most likely tokens up to this total probability")
        if name == "summary":
            subject.add_argument("--batch", type=int, default=8, help="rows in a training batch")
            subject.add_argument("--length", type=int, help="tokens per row; default: the model's context length")
            subject.add_argument("--tokens", type=float, help="tokens to train on; default: 20 per parameter")
            subject.add_argument("--flops", type=float, help="sustained FLOP per second of the device")
    runs = subjects.add_parser("runs", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    runs.add_argument("runs", nargs="+", help="directories with trainer_state.json or metrics.json, or these files")
    runs.add_argument("--labels", nargs="+", help="a name for each run; default: its directory")
    runs.add_argument("--x", default="step", choices=["step", "epoch", "num_input_tokens_seen"], help="horizontal axis")
    runs.add_argument("--title", default="", help="heading")
    runs.add_argument("--output", default="runs-compared", help="file to write, without its suffix, or a folder that ends with /")
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Print the results, write the plots and return the results."""
    if args.subject != "summary":
        args.output = prepare_output(args.output, args.subject)
    if args.subject == "runs":
        labels = args.labels or [Path(name).name for name in args.runs]
        if len(labels) != len(args.runs) or len(set(labels)) != len(labels):
            raise UserError(f"{len(set(labels))} different labels for {len(args.runs)} runs: give each its own with --labels")
        return _written(plot_histories(dict(zip(labels, map(read_history, args.runs))), args.output, args.x, args.title))
    model, tokenizer = load_language_model(args.model)
    if args.subject == "summary":
        summary = summarize_model(model, args.batch, args.length, args.tokens, args.flops)
        print(json.dumps(summary, indent=1) if args.json else summary_table(summary))
        return summary
    if getattr(args, "top", 1) > model.config.vocab_size:
        raise UserError(f"--top is {args.top}: the model has {model.config.vocab_size:,} tokens")
    ids = encode_prompts([args.text], tokenizer, model.device, args.parse_special_tokens)["input_ids"]
    tokens = token_texts(tokenizer, ids[0].tolist())
    figures, files = SUBJECTS[args.subject](args, model, tokenizer, ids, tokens)
    if args.json:
        print(json.dumps(figures, ensure_ascii=False, indent=1))
    return figures | _written(files)


def prepare_output(output: str, subject: str) -> str:
    """The prefix of the file names; in a folder (an existing one, or with a trailing `/`) it is the subject's name. Creates the folder.

    Raises:
        UserError: the folder cannot be created.
    """
    path = Path(output) / subject if output.endswith(("/", os.sep)) or Path(output).is_dir() else Path(output)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: {path.parent} cannot be made: {error.strerror or error}") from error
    return str(path)


def _written(files: Sequence[Path]) -> dict[str, Any]:
    print("\n".join(f"written: {file}" for file in files), file=sys.stderr)
    return {"files": [str(file) for file in files]}


def attention(args, model, tokenizer, ids, tokens) -> tuple[dict[str, Any], list[Path]]:
    """Plot all heads, a single map and the rollout; print the entropies."""
    maps = attention_maps(model, ids)
    check_indices("layer", [args.layer], maps.shape[0])
    check_indices("head", [args.head], maps.shape[1])
    entropy = attention_entropy(maps)
    if not args.json:
        print("entropy in nats, a row per layer, a column per head:")
        print("\n".join("  ".join(f"{value:5.2f}" for value in row) for row in entropy.tolist()))
    title = f"layer {args.layer}, head {args.head}"
    files = plot_attention_grid(maps, tokens, f"{args.output}-grid")
    files += plot_attention(maps[args.layer, args.head], tokens, f"{args.output}-head", title)
    files += plot_attention(attention_rollout(maps)[-1], tokens, f"{args.output}-rollout", "attention rollout of all layers")
    return {"tokens": tokens, "entropy": entropy.tolist()}, files


def next_tokens(args, model, tokenizer, ids, tokens) -> tuple[dict[str, Any], list[Path]]:
    """Rank and surprisal of each token."""
    places, after = score_tokens(model, tokenizer, ids, args.top)
    if not args.json:
        for place in places:
            figures = "" if place.rank is None else f"rank {place.rank:>6}  {place.surprise:5.1f} bits  "
            print(f"{place.token:>16}  {figures}{', '.join(f'{token} {p:.1%}' for token, p in place.expected)}")
        print(f"{'next':>16}  {', '.join(f'{token} {p:.1%}' for token, p in after)}")
    files = [
        write_surprise_html(places, f"{args.output}.html", args.model),
        *plot_surprise(places, args.output, title=args.model),
    ]
    return {"places": [asdict(place) for place in places], "next": after}, files


def lens(args, model, tokenizer, ids, tokens) -> tuple[dict[str, Any], list[Path]]:
    """The most likely token after each layer."""
    scores = logit_lens(model, ids)
    cells = lens_table(scores, tokenizer)
    if not args.json:
        for number, row in enumerate(cells):
            print(f"{'embedding' if number == 0 else f'layer {number - 1}':>10}  {'  '.join(token for token, _ in row)}")
    return {"tokens": tokens, "most_likely": cells}, plot_lens(scores, tokenizer, tokens, args.output)


@torch.no_grad()
def temperature(args, model, tokenizer, ids, tokens) -> tuple[dict[str, Any], list[Path]]:
    """The distribution of the next token with different sampling settings."""
    logits = model(input_ids=ids).logits[0, -1].float().cpu()
    figures = {}
    for value in args.temperatures:
        probabilities, best = sampling_distribution(logits, value, args.top_k, args.top_p).topk(args.top)
        figures[str(value)] = list(zip(token_texts(tokenizer, best.tolist()), probabilities.tolist()))
        if not args.json:
            print(f"temperature {value:g}: {', '.join(f'{token} {p:.1%}' for token, p in figures[str(value)])}")
    best = logits.topk(10).indices.tolist()
    every = dict(zip(best, token_texts(tokenizer, best)))
    names = [every.get(i, "") for i in range(len(logits))]
    kept = "".join(f", top-{name[-1]} {value:g}" for name in ("top_k", "top_p") if (value := getattr(args, name)) is not None)
    title = f"after {shortened(args.text)!r}{kept}"
    return {"likely": figures}, plot_temperatures(
        logits, names, args.output, args.temperatures, title=title, top_k=args.top_k, top_p=args.top_p
    )


def shortened(text: str, length: int = 60) -> str:
    """The last `length` characters of a text, on which the next token depends most."""
    return text if len(text) <= length else f"...{text[-length:]}"


SUBJECTS = {"attention": attention, "tokens": next_tokens, "lens": lens, "temperature": temperature}


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
