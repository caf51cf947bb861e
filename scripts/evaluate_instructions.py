r"""Replies of a finetuned model to held-out prompts, how good they are, and the verdict of another model.

Replies, exact match, ROUGE-L, loss and perplexity:

    python scripts/evaluate_instructions.py --model runs/instruct --data_file runs/instruct/test.json --output replies.json

With a judge behind any OpenAI-compatible server (key in the variable JUDGE_API_KEY), here scripts/serve.py:

    python scripts/serve.py DIRECTORY_OF_THE_JUDGE --port 8000
    python scripts/evaluate_instructions.py --model runs/instruct --data_file runs/instruct/test.json --output replies.json \
        --judge_url http://127.0.0.1:8000/v1 --judge_model DIRECTORY_OF_THE_JUDGE

Replies that were written before, judged by Ollama:

    python scripts/evaluate_instructions.py --replies_file replies.json --judge_api ollama --judge_url http://localhost:11434 \
        --judge_model llama3 --rubric 1-5

Replies are written as a list of the records with `model_response`, the published format; figures to NAME.metrics.json; the judge's answers
to NAME.verdicts.jsonl, one by one as they come: a run that was killed resumes there.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # a copy of this file alone, which starts more slowly
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and mistakes, before torch and transformers are imported


import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.conflicts import check_evaluation
from gpt_scratch.data.instruction import (
    Conversations,
    InstructionCollator,
    encode_conversations,
    prompt_ids,
    read_conversations,
    reply_text,
)
from gpt_scratch.data.opening import Faults, Reading
from gpt_scratch.data.records import INPUT_SEPARATORS
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.evaluation.judge import RUBRICS, Judge, judge_replies, summarize
from gpt_scratch.evaluation.perplexity import evaluate_loss
from gpt_scratch.evaluation.replies import generate_replies, score_replies
from gpt_scratch.files import write_json
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.ranges import check_flags


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or Hub name of the model that replies")
    parser.add_argument(
        "--data_file",
        help="records to reply to (Alpaca, messages, ShareGPT, prompt and completion), such as the test.json of a finetuning",
    )
    parser.add_argument("--replies_file", help="records with replies already, in place of --model and --data_file")
    parser.add_argument("--reply_key", default="model_response", help="key of the reply in --replies_file")
    Reading.add_flags(parser)
    parser.add_argument(
        "--ignore_keys", nargs="+", default=[], help="keys of records and messages that are not used, whatever they hold"
    )
    parser.add_argument("--output", help="file for the replies; default: REPLIES_FILE's name is used for the figures")
    parser.add_argument(
        "--prompt_style", default="alpaca", choices=sorted(INPUT_SEPARATORS), help="how instruction and input are joined"
    )
    parser.add_argument("--max_new_tokens", type=int, default=256, help="tokens of a reply at most")
    parser.add_argument("--batch_size", type=int, default=8, help="prompts answered at once")
    parser.add_argument("--dtype", default="float32", choices=["auto", "float32", "bfloat16", "float16"], help="of the weights")
    parser.add_argument("--judge_url", help="server of the judge, e.g. http://127.0.0.1:8000/v1 or http://localhost:11434")
    parser.add_argument("--judge_model", help="name of the judge on that server")
    parser.add_argument("--judge_api", default="openai", choices=["openai", "ollama"], help="what the server speaks")
    parser.add_argument("--rubric", default="0-100", choices=sorted(RUBRICS), help="scale of the judge")
    parser.add_argument("--judge_seed", type=int, default=123, help="seed sent with each question; temperature is 0")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds that one answer of the judge may take")
    parser.add_argument("--retries", type=int, default=4, help="further attempts, after 1, 2, 4, ... seconds")
    parser.add_argument("--concurrency", type=int, default=1, help="questions under way at once")
    return check_flags(parser.parse_args(argv))


def records_to_reply_to(args: argparse.Namespace) -> Conversations:
    """The records of --data_file, with a reply of an earlier model under --reply_key or without.

    Raises:
        UserError: records that cannot be read.
    """
    return read_conversations(args.data_file, "train", Reading.of(args), args.ignore_keys, [args.reply_key])


def read_replies(args: argparse.Namespace) -> Conversations:
    """Records with replies.

    Raises:
        UserError: a record without the key.
    """
    key = args.reply_key
    data = read_conversations(args.replies_file, "train", Reading.of(args), args.ignore_keys, [key])
    for record, place in zip(data.records, data.places):
        if not isinstance(record.get(key), str):
            raise UserError(f"{place} has no text {key!r}: its keys are {', '.join(record)}; pass --reply_key")
    return data


def check_texts(data: Conversations) -> None:
    """Refuse records of token ids, and those without a reply: metrics and judge need the prompt and a reference.

    Raises:
        UserError: names the rows.
    """
    faults = Faults()
    for record, place in zip(data.records, data.places):
        name, _, number = place.rpartition(" row ")
        if "input_ids" in record:
            faults.add(name, "row", number, "it holds token ids: replies are evaluated on records of text")
        elif not reply_text(record, "alpaca").strip():
            faults.add(name, "row", number, "its reply is empty: there is nothing to compare with")
    faults.check()


def reply_and_measure(args: argparse.Namespace, data: Conversations) -> tuple[list[str], dict]:
    """Replies of the model, written to the output file, with loss, perplexity and how many ended by themselves."""
    model, tokenizer = load_language_model(args.model, args.dtype)
    if not tokenizer.chat_template:
        raise UserError(f"{args.model} has no chat template: finetune it with scripts/finetune_instructions.py")
    prompts = []
    for record, place in zip(data.records, data.places):
        try:
            prompts.append(prompt_ids(record, tokenizer, args.prompt_style))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
    replies = generate_replies(model, tokenizer, prompts, args.max_new_tokens, args.batch_size)
    records = [{**record, "model_response": reply.text} for record, reply in zip(data.records, replies)]
    write_json(args.output, records)
    metrics = {
        "ended_by_eos": sum(reply.ended for reply in replies),
        "reply_tokens": sum(reply.tokens for reply in replies),
        "max_new_tokens": args.max_new_tokens,
    }
    if "generation" in tokenizer.chat_template:
        limit = model.config.max_position_embeddings
        rows = encode_conversations(data, tokenizer, args.prompt_style, True, limit, skip_unusable=True).rows.sort("length")
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        measured = evaluate_loss(model, rows, args.batch_size, InstructionCollator(pad), "measuring the references")
        metrics |= {"response_loss": measured["loss"], "response_perplexity": measured["perplexity"]}
    return [reply.text for reply in replies], metrics


def measured_before(path: Path, metrics: dict) -> dict:
    """What an earlier call wrote of the same replies, as their losses, which take the model: scores are equal to the last digit."""
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return earlier if metrics.items() <= earlier.items() else {}


def main(args: argparse.Namespace) -> dict:
    """Print and return the figures; raises `UserError` on bad input, and when the judge cannot be asked."""
    check_evaluation(args)
    data = records_to_reply_to(args) if args.model else read_replies(args)
    check_texts(data)
    metrics: dict = {"records": len(data)}
    if args.model:
        replies, measured = reply_and_measure(args, data)
        metrics |= measured
        print(f"replies: {len(replies)}, of which {metrics['ended_by_eos']} end by themselves; written to {args.output}")
    else:
        replies = [record[args.reply_key] for record in data.records]
    metrics |= score_replies(replies, [reply_text(record, "alpaca") for record in data.records])
    stem = Path(args.output or args.replies_file).with_suffix("")
    metrics = measured_before(Path(f"{stem}.metrics.json"), metrics) | metrics
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
    return metrics


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
