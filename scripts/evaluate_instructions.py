r"""Evaluate replies of a finetuned model to held-out prompts, with metrics and optionally another model as judge.

Replies, exact match, ROUGE-L, loss and perplexity:

    python scripts/evaluate_instructions.py --model runs/instruct --data_file runs/instruct/test.json --output replies.json

With a judge on an OpenAI-compatible server (key in the variable JUDGE_API_KEY), here scripts/serve.py:

    python scripts/serve.py DIRECTORY_OF_THE_JUDGE --port 8000
    python scripts/evaluate_instructions.py --model runs/instruct --data_file runs/instruct/test.json --output replies.json \
        --judge_url http://127.0.0.1:8000/v1 --judge_model DIRECTORY_OF_THE_JUDGE

Existing replies, judged by Ollama:

    python scripts/evaluate_instructions.py --replies_file replies.json --judge_api ollama --judge_url http://localhost:11434 \
        --judge_model llama3 --rubric 1-5

Several replies to each question, with majority voting and best-of-n by a reward:

    python scripts/evaluate_instructions.py --model runs/chat --data_file gpt_scratch/data/samples/dialogues_test.jsonl \
        --prompt_style chatml --output replies.json --samples 16 --best_of format

Replies are written as a list of the records with `model_response`, the published format; metrics to NAME.metrics.json; the judge's answers
one by one to NAME.verdicts.jsonl, from which an interrupted run resumes. If records have a kind (--kind_key), accuracy is also reported by
kind, with Wilson intervals; a reply is correct if it equals the reference, ignoring case, and ends with the end-of-text token.
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
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.conflicts import check_evaluation
from gpt_scratch.data.instruction import (
    Conversations,
    InstructionCollator,
    encode_conversations,
    prompt_ids,
    prompt_messages,
    read_conversations,
    reply_text,
    to_messages,
)
from gpt_scratch.data.opening import Faults, Reading
from gpt_scratch.data.padding import by_length
from gpt_scratch.data.records import INPUT_SEPARATORS
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.evaluation.accuracy import accuracy, accuracy_against_samples, accuracy_by_kind, as_table
from gpt_scratch.evaluation.judge import RUBRICS, Judge, judge_replies, summarize
from gpt_scratch.evaluation.perplexity import bits_per_byte, evaluate_loss
from gpt_scratch.evaluation.replies import exact_match, generate_replies, score_replies
from gpt_scratch.evaluation.rewards import check_references, load_rewards
from gpt_scratch.files import atomic_path, read_json_object, write_json
from gpt_scratch.inference.generation import remaining_positions
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.plots import plot_or_warn, save_lines
from gpt_scratch.ranges import check_flags
from gpt_scratch.tokenization.special_tokens import describe_special_tokens


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub name of the model that replies")
    parser.add_argument(
        "--data_file",
        help="records to reply to (Alpaca, messages, ShareGPT, prompt/completion), e.g. a finetuning run's test.json",
    )
    parser.add_argument("--replies_file", help="records that already have replies, instead of --model and --data_file")
    parser.add_argument("--reply_key", default="model_response", help="key of the reply in --replies_file")
    Reading.add_flags(parser)
    parser.add_argument(
        "--ignore_keys", nargs="+", default=[], help="keys of records and messages to ignore, whatever they contain"
    )
    parser.add_argument("--output", help="file for the replies; required with --model, otherwise it only names the metrics")
    parser.add_argument(
        "--prompt_style", default="alpaca", choices=sorted(INPUT_SEPARATORS), help="how instruction and input are joined"
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="maximum number of tokens in a reply")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts per batch")
    parser.add_argument(
        "--dtype", default="float32", choices=["auto", "float32", "bfloat16", "float16"], help="dtype of the weights"
    )
    parser.add_argument(
        "--kind_key", help="key of a record's kind, for accuracy by kind; default: category, if the records have it"
    )
    parser.add_argument("--samples", type=int, help="also sample this many replies per question, for accuracy by majority vote")
    parser.add_argument("--temperature", type=float, default=0.7, help="temperature of --samples; default 0.7")
    parser.add_argument("--seed", type=int, default=123, help="seed of --samples; default 123")
    parser.add_argument(
        "--best_of",
        help="with --samples: best of n by exact_match, arithmetic, format, length or path/to/file.py:function",
    )
    parser.add_argument("--judge_url", help="server of the judge, e.g. http://127.0.0.1:8000/v1 or http://localhost:11434")
    parser.add_argument("--judge_model", help="name of the judge on that server")
    parser.add_argument("--judge_api", default="openai", choices=["openai", "ollama"], help="API of the judge's server")
    parser.add_argument("--rubric", default="0-100", choices=sorted(RUBRICS), help="scale of the judge's scores")
    parser.add_argument("--judge_seed", type=int, default=123, help="seed sent with each request; temperature is 0")
    parser.add_argument("--timeout", type=float, default=60.0, help="maximum seconds for one answer of the judge")
    parser.add_argument("--retries", type=int, default=4, help="further attempts, after 1, 2, 4, ... seconds")
    parser.add_argument("--concurrency", type=int, default=1, help="concurrent requests")
    return check_flags(parser.parse_args(argv))


def records_to_reply_to(args: argparse.Namespace) -> Conversations:
    """The records of --data_file, with or without an earlier model's reply under --reply_key.

    Raises:
        UserError: the records cannot be read.
    """
    return read_conversations(args.data_file, "train", Reading.of(args), args.ignore_keys, kept_keys(args))


def kept_keys(args: argparse.Namespace) -> list[str]:
    """Keys of a record that are used here, besides those of the conversation."""
    return [args.reply_key, *([args.kind_key] if args.kind_key else [])]


def read_replies(args: argparse.Namespace) -> Conversations:
    """Records with replies.

    Raises:
        UserError: a record without the key.
    """
    key = args.reply_key
    data = read_conversations(args.replies_file, "train", Reading.of(args), args.ignore_keys, kept_keys(args))
    for record, place in zip(data.records, data.places):
        if not isinstance(record.get(key), str):
            raise UserError(f"{place} has no text {key!r}: its keys are {', '.join(record)}; pass --reply_key")
    return data


def check_texts(data: Conversations) -> None:
    """Refuse records of token ids and records without a reply, since metrics and judge need prompt and reference as text.

    Raises:
        UserError: there are such records; names the rows.
    """
    faults = Faults()
    for record, place in zip(data.records, data.places):
        name, _, number = place.rpartition(" row ")
        if "input_ids" in record:
            faults.add(name, "row", number, "it holds token ids: replies are evaluated on records of text")
        elif not reply_text(record, "alpaca").strip():
            faults.add(name, "row", number, "its reply is empty: there is nothing to compare with")
    faults.check()


def kinds_of(args: argparse.Namespace, data: Conversations) -> list[str] | None:
    """The kind of each record, if they have one.

    Raises:
        UserError: a record lacks the key that the user named.
    """
    key = args.kind_key or "category"
    missing = [place for record, place in zip(data.records, data.places) if not isinstance(record.get(key), str)]
    if missing and args.kind_key:
        raise UserError(f"{missing[0]} has no text {key!r}: {len(missing):,} of {len(data):,} records lack the --kind_key")
    return None if missing else [record[key] for record in data.records]


def draw_and_measure(
    args: argparse.Namespace,
    data: Conversations,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
) -> dict:
    """Sample `--samples` replies per question, write them next to the output, and measure accuracy against their number."""
    rewards = load_rewards([args.best_of]) if args.best_of else []
    references = [reply_text(record, args.prompt_style) for record in data.records]
    check_references(rewards, references, data.places)
    set_seed(args.seed)
    repeated = [prompt for prompt in prompts for _ in range(args.samples)]
    drawn = generate_replies(model, tokenizer, repeated, args.max_new_tokens, args.batch_size, True, args.temperature)
    groups = [drawn[i : i + args.samples] for i in range(0, len(drawn), args.samples)]
    right = [[r.ended and exact_match(r.text, expected) for r in group] for group, expected in zip(groups, references)]
    scores = None
    if rewards:
        messages = [prompt_messages(record, args.prompt_style) for record in data.records]
        scores = [
            [rewards[0](asked, reply.text, expected, reply.ended) for reply in group]
            for group, asked, expected in zip(groups, messages, references)
        ]
    stem = Path(args.output).with_suffix("")
    with atomic_path(f"{stem}.samples.jsonl") as temporary:
        lines = [
            json.dumps({**record, "samples": [reply.text for reply in group]}) for record, group in zip(data.records, groups)
        ]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    curve = accuracy_against_samples([[reply.text for reply in group] for group in groups], right, scores, args.seed)
    labels = {"majority": "majority", "best": f"best by {rewards[0].name}" if rewards else "", "any": "any of them is correct"}
    plot_or_warn(save_lines, curve, labels, "samples", f"{stem}.samples", "sampled replies", "accuracy")
    return {"samples": {"number": args.samples, "temperature": args.temperature, "best_of": args.best_of, "curve": curve}}


def loss_of_references(
    args: argparse.Namespace, data: Conversations, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict:
    """Loss, perplexity and bits per byte of the references; prints how many records are left out or truncated."""
    limit = model.config.max_position_embeddings
    try:
        encoded = encode_conversations(data, tokenizer, args.prompt_style, True, limit, skip_unusable=True)
    except UserError as error:
        print(f"the loss of the references is not measured: {error}")
        return {}
    if encoded.left_out or encoded.cut:
        print(
            f"loss of the references: of {len(data):,} records, {encoded.left_out:,} are left out, since a reply is empty or beyond the "
            f"model's {limit:,} positions, and {encoded.cut:,} are truncated"
        )
    rows = by_length(encoded.rows)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    measured = evaluate_loss(model, rows, args.batch_size, InstructionCollator(pad), "measuring the references")
    metrics = {"response_loss": measured["loss"], "response_perplexity": measured["perplexity"]}
    if not encoded.cut and not encoded.left_out:
        said = [m["content"] for r in data.records for m in to_messages(r, args.prompt_style) if m["role"] == "assistant"]
        size = sum(len(text.encode()) for text in said)
        metrics["response_bits_per_byte"] = bits_per_byte(measured["loss"], int(measured["predicted_tokens"]), size)
    return metrics


def reply_and_measure(args: argparse.Namespace, data: Conversations, kinds: list[str] | None) -> tuple[list[str], dict]:
    """Generate the model's replies, write them to the output file, and measure loss, perplexity, accuracy and completed replies."""
    model, tokenizer = load_language_model(args.model, args.dtype)
    if not tokenizer.chat_template:
        raise UserError(f"{args.model} has no chat template: finetune it with scripts/finetune_instructions.py")
    prompts, faults = [], Faults()
    for record, place in zip(data.records, data.places):
        try:
            prompts.append(prompt_ids(record, tokenizer, args.prompt_style))
            remaining_positions(model, len(prompts[-1]))
        except UserError as error:
            name, _, number = place.rpartition(" row ")
            faults.add(name, "row", number, str(error))
    faults.check()
    texts = (message["content"] for record in data.records for message in to_messages(record, args.prompt_style))
    if written := describe_special_tokens(texts, tokenizer):
        print(written)
    replies = generate_replies(model, tokenizer, prompts, args.max_new_tokens, args.batch_size)
    records = [{**record, "model_response": reply.text} for record, reply in zip(data.records, replies)]
    write_json(args.output, records)
    metrics = {
        "ended_by_eos": sum(reply.ended for reply in replies),
        "reply_tokens": sum(reply.tokens for reply in replies),
        "max_new_tokens": args.max_new_tokens,
    }
    if "generation" in tokenizer.chat_template:
        metrics |= loss_of_references(args, data, model, tokenizer)
    references = [reply_text(record, args.prompt_style) for record in data.records]
    right = [reply.ended and exact_match(reply.text, expected) for reply, expected in zip(replies, references)]
    metrics |= figures_of_accuracy(right, kinds)
    if args.samples:
        metrics |= draw_and_measure(args, data, model, tokenizer, prompts)
    return [reply.text for reply in replies], metrics


def figures_of_accuracy(right: list[bool], kinds: list[str] | None) -> dict:
    """Accuracy over all questions, and by kind."""
    return {"accuracy": accuracy(right)} | ({"accuracy_by_kind": accuracy_by_kind(right, kinds)} if kinds else {})


def measured_before(path: Path, metrics: dict) -> dict:
    """Metrics of an earlier call for the same replies, recognized by equal scores: they include losses, which need the model."""
    try:
        earlier = read_json_object(path)
    except (OSError, ValueError):  # there is none, or it is no longer readable
        return {}
    return earlier if metrics.items() <= earlier.items() else {}


def main(args: argparse.Namespace) -> dict:
    """Print and return the metrics; raises `UserError` on bad input, or if the judge cannot be reached."""
    check_evaluation(args)
    data = records_to_reply_to(args) if args.model else read_replies(args)
    check_texts(data)
    kinds = kinds_of(args, data)
    metrics: dict = {"records": len(data)}
    if args.model:
        replies, measured = reply_and_measure(args, data, kinds)
        metrics |= measured
        print(f"replies: {len(replies)}, of which {metrics['ended_by_eos']} end by themselves; written to {args.output}")
    else:
        replies = [record[args.reply_key] for record in data.records]
    references = [reply_text(record, "alpaca") for record in data.records]
    metrics |= score_replies(replies, references)
    stem = Path(args.output or args.replies_file).with_suffix("")
    metrics = measured_before(Path(f"{stem}.metrics.json"), metrics) | metrics
    if "accuracy" not in metrics:  # for replies known only by their text
        metrics |= figures_of_accuracy(list(map(exact_match, replies, references)), kinds)
    write_json(f"{stem}.metrics.json", metrics)
    if args.judge_url:
        judge = Judge(
            args.judge_url,
            args.judge_model,
            args.judge_api,
            args.rubric,
            seed=args.judge_seed,
            timeout=args.timeout,
            retries=args.retries,
        )
        verdicts = judge_replies(judge, data.records, replies, f"{stem}.verdicts.jsonl", args.concurrency)
        metrics["judge"] = {"model": Path(args.judge_model).name, "rubric": args.rubric, **summarize(verdicts)}
        for verdict in [verdict for verdict in verdicts if verdict.score is None][:5]:
            print(verdict.unanswered or f"no usable score in the answer {verdict.answer[:80]!r}")
        write_json(f"{stem}.metrics.json", metrics)
    print(json.dumps(metrics, indent=2))
    if "accuracy_by_kind" in metrics:
        print(as_table({**metrics["accuracy_by_kind"], "all": metrics["accuracy"]}))
    return metrics


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
