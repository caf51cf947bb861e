"""Train a small chat model from scratch: tokenizer, pretraining, instruction tuning, reinforcement, evaluation, report, conversation.

    python scripts/zero_to_chat.py                                       # tiny, 26 minutes on one CPU core
    python scripts/zero_to_chat.py --size small --output_dir runs/chat-small
    python scripts/zero_to_chat.py --dry_run                             # the rule, and the cost of each size here and on a GPU

Each stage runs one of the scripts in a process, with its own directory and a log in OUTPUT_DIR/logs. Finished stages are not repeated, and
after an interruption the same command resumes. Accuracy on held-out questions is measured after each stage. OUTPUT_DIR/report.md and
report.html contain inputs, cost and results of each stage. The model is OUTPUT_DIR/reinforced.

Own data: --pretraining_file (text), and four files of instruction records (--instruction_file, --reinforcement_file,
--validation_file, --test_file), each with a single correct answer.
"""

if __name__ == "__main__":
    import _flags

    _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt_scratch.conflicts import DEPTHS, check_zero_to_chat
from gpt_scratch.data.instruction import read_conversations, shared_prompts
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.hub.cards import write_chat_card
from gpt_scratch.progress import named
from gpt_scratch.ranges import check_flags
from gpt_scratch.zero_to_chat.report import collect, first_lines, write_report
from gpt_scratch.zero_to_chat.sizes import (
    Size,
    make_size,
    measured_speed,
    seconds_of_stages,
    training_bytes,
    training_flops,
)
from gpt_scratch.zero_to_chat.stages import DIALOGUES, Files, duration, make_stages, open_output, run_stages

BYTES_A_TOKEN = 3.5  # approximately, for English text with these vocabularies
GPU = ("one H100", 400e12)  # bf16 FLOP/s sustained in efficient training: 40 % of the peak
GPU_LEAST = 0.05, 0.02  # minimum seconds for a training step and for a generated token, even for a tiny model: not measured
OWN = dict(zip(DIALOGUES, ("instruction_file", "reinforcement_file", "validation_file", "test_file")))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny", help=f"{', '.join(DEPTHS)}, or a number of layers; default tiny")
    parser.add_argument("--output_dir", help="directory of the run; default runs/chat-SIZE")
    parser.add_argument("--pretraining_file", help="text to pretrain on; default: the bundled stories")
    parser.add_argument(
        "--instruction_file", help="records to learn from, with the three files below; default: generated dialogues"
    )
    parser.add_argument("--reinforcement_file", help="questions for reinforcement")
    parser.add_argument("--validation_file", help="records to validate on")
    parser.add_argument("--test_file", help="records on which each stage is measured")
    parser.add_argument("--samples", type=int, default=8, help="replies sampled per test question at the end; default 8")
    parser.add_argument("--seed", type=int, default=123, help="seed of every stage; default 123")
    parser.add_argument("--page", action="store_true", help="end with the web page instead of the chat in the terminal")
    parser.add_argument("--no_chat", action="store_true", help="end after the report")
    parser.add_argument("--dry_run", action="store_true", help="print the rule and the cost of each size, and run nothing")
    return check_flags(parser.parse_args(argv))


def read_own(args: argparse.Namespace) -> dict[str, str]:
    """The user's dialogues by part; empty if they are generated.

    Raises:
        UserError: they cannot be read, or a test question also occurs in the training data.
    """
    if not args.instruction_file:
        return {}
    files = {part: str(Path(getattr(args, name)).resolve()) for part, name in OWN.items()}
    data = {part: read_conversations(file) for part, file in files.items()}
    for part in ("train", "reinforcement"):
        if shared := shared_prompts(data["test"], data[part]):
            raise UserError(
                f"{data['test'].places[shared[0]]} is also a question of --{OWN[part]} ({len(shared):,} are): accuracy on them would say "
                "nothing; leave them out of one"
            )
    return files


def sized(args: argparse.Namespace, name: str, files: Files) -> Size:
    """The size given by the rule for the available data."""
    text = sum(path.stat().st_size for path in [Path(files.pretraining)]) / BYTES_A_TOKEN
    if not files.dialogues:
        return make_size(name, text, exercises=files.pretraining == Files().pretraining)
    counts = {part: len(read_conversations(files.dialogues[part])) for part in ("train", "reinforcement")}
    return make_size(name, text, counts["train"], counts["reinforcement"])


def describe_cost(size: Size, speed: float, here: str, *least: float) -> str:
    """Estimated time of the training stages at a given speed, and memory; `least` as in [`seconds_of_stages`]."""
    seconds = seconds_of_stages(size, speed, *least)
    if least:
        speed = min(speed, size.pretraining_tokens / size.pretraining_steps / least[0])
    stages = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items())
    return (
        f"  {here}: {speed:,.0f} tokens/s, {duration(sum(seconds.values()))} ({stages}); a training step takes about "
        f"{training_bytes(size) / 2**20:,.0f} MiB"
    )


def dry_run(args: argparse.Namespace, files: Files) -> str:
    """The rule, and the model and cost of each size on this machine (the speed of `tiny` is measured) and on a GPU."""
    from gpt_scratch.zero_to_chat import sizes

    assert sizes.__doc__ is not None
    lines = [sizes.__doc__.split("\n\n", 1)[1].rstrip()]
    measured: tuple[float, float] | None = None
    for name in dict.fromkeys([*DEPTHS, args.size]):
        size = sized(args, name, files)
        flops = training_flops(size)
        if measured is None:
            with named("measuring the speed of this machine"):
                measured = measured_speed(size), flops
        speed = measured[0] * measured[1] / flops
        lines += [size.describe(), describe_cost(size, speed, "here, from the speed of the first")]
        lines.append(describe_cost(size, GPU[1] / flops, f"{GPU[0]}, estimated at up to {GPU[1] / 1e12:.0f} TFLOP/s", *GPU_LEAST))
        if name == "124M":
            plenty = make_size(name, float("inf"))
            hours = plenty.pretraining_tokens * flops / GPU[1] / 3600
            lines.append(
                f"  with enough text: {plenty.pretraining_tokens / 1e9:.1f}B tokens, pretraining {hours:.1f} h on {GPU[0]}, "
                f"{duration(plenty.pretraining_tokens / speed)} here"
            )
    return "\n".join(lines)


def main(args: argparse.Namespace) -> dict[str, Any]:
    """Run the unfinished stages, write the report and return it, then start a conversation."""
    check_zero_to_chat(args)
    dialogues = read_own(args)
    text = str(Path(args.pretraining_file).resolve()) if args.pretraining_file else Files().pretraining
    if not Path(text).is_file():
        raise UserError(f"--pretraining_file {args.pretraining_file}: one file is needed, and there is none")
    files = Files(text, dialogues)
    if args.dry_run:
        print(dry_run(args, files))
        return {}
    output = Path(args.output_dir or f"runs/chat-{args.size}").resolve()
    size = sized(args, args.size, files)
    plan = {"size": args.size, "seed": args.seed, "samples": args.samples, "pretraining_file": os.path.basename(text)}
    plan |= {OWN[part]: os.path.basename(dialogues[part]) for part in DIALOGUES if part in dialogues}
    plan |= {"exercises": size.exercises}
    open_output(output, plan)
    print(size.describe())
    with named("measuring the speed of this machine"):
        speed = measured_speed(size)
    print(describe_cost(size, speed, "measured here"), flush=True)
    stages = make_stages(output, size, files, args.seed, speed, args.samples)
    run_stages(output, stages, lambda line: print(line, flush=True))
    report = collect(output, size, stages, command_of(args))
    write_report(output, report)
    write_chat_card(str(output / "reinforced"), report)
    for line in first_lines(report):
        print(line)
    print(f"the report: {output / 'report.md'}, {output / 'report.html'}; the model: {output / 'reinforced'}", flush=True)
    if not args.no_chat:
        talk(output / "reinforced", args.page)
    return report


def command_of(args: argparse.Namespace) -> str:
    """The command that repeats the run, without folders of this machine."""
    words = ["python", "scripts/zero_to_chat.py", "--size", args.size, "--seed", str(args.seed), "--samples", str(args.samples)]
    for name in ("pretraining_file", *OWN.values()):
        if getattr(args, name):
            words += [f"--{name}", os.path.basename(getattr(args, name))]
    return shlex.join(words)


def talk(model: Path, page: bool) -> None:
    """Become the process of the page, or of the conversation if there is a terminal; otherwise print how to start one."""
    scripts = Path(__file__).resolve().parent
    if page or sys.stdin.isatty():
        command = [str(scripts / "demo.py"), "--model", str(model)] if page else [str(scripts / "chat.py"), str(model)]
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *command])  # a child would survive a signal to this process
    print(f"talk with it: python scripts/chat.py {model}")


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
