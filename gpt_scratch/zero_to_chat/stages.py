"""The stages as processes: each with its directory and its log, run once, resumed after a kill, with a line that says how far it is.

OUTPUT/plan.json        what was asked for; another plan needs another directory
OUTPUT/stages/NAME.json seconds, processor seconds and peak memory of a stage, over all its attempts
OUTPUT/logs/NAME.log    what its process printed
OUTPUT/data, text.jsonl, tokenizer, pretrained, instructed, reinforced, evaluation
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.instruction import read_conversations, to_messages
from ..errors import INTERRUPTED_STATUS, PREEMPTED_STATUS, Preempted, UserError, one_line
from ..files import atomic_path, read_json_object, write_json
from ..provenance import peak_bytes
from ..training.lock import lock_output_directory
from .sizes import QUESTIONS_A_STEP, REPLIES, REPLY_TOKENS, Size, seconds_of_stages

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
SAMPLES = Path(__file__).resolve().parents[1] / "data" / "samples"
STYLE = "chatml"
DIALOGUES = ("train", "reinforcement", "validation", "test")
MODELS = {"pretrained": "pretraining", "instructed": "instruction tuning", "reinforced": "reinforcement"}  # directory: after what
EVERY = 2.0  # seconds between two looks at a log
LINE = 30.0  # seconds between two lines of progress where there is no terminal
STEP = re.compile(r"^step ([\d,]+) of ([\d,]+)", re.MULTILINE)


@dataclass
class Files:
    """What the stages read: the bundled text and generated dialogues, or the user's."""

    pretraining: str = str(SAMPLES / "stories.jsonl")
    dialogues: dict[str, str] = field(default_factory=dict)  # of each part of DIALOGUES; empty: generated


@dataclass
class Stage:
    """A process and what it leaves behind.

    Args:
        name: of its log and record, and in the line of progress.
        command: after the interpreter.
        done: exists when the stage has finished, whole; of a training script it is the card, which is written last.
        trains: its checkpoints lie in the directory of `done`, and it is resumed from them.
        before: called before the process starts.
        after: called when it has ended well.
        seconds: estimated.
    """

    name: str
    command: list[str]
    done: Path
    trains: bool = False
    before: Callable[[], None] | None = None
    after: Callable[[], None] | None = None
    seconds: float = 10.0


def make_stages(output: Path, size: Size, files: Files, seed: int, tokens_per_second: float, samples: int) -> list[Stage]:
    """All stages in their order.

    Args:
        tokens_per_second: of training, measured.
        samples: replies drawn to each test question for accuracy by majority; 0 for none.
    """
    data = output / "data"
    parts = files.dialogues or {part: str(data / f"dialogues_{part}.jsonl") for part in DIALOGUES}
    seconds = seconds_of_stages(size, tokens_per_second)
    conversations = output / "tokenizer_text.jsonl"
    text = str(output / "text.jsonl") if size.exercises else files.pretraining
    stages = []
    if not files.dialogues:
        unfinished = output / ".unfinished-data"
        command = [str(SAMPLES / "make_dialogues.py"), str(unfinished), "--train", str(size.dialogues)]
        command += ["--reinforcement", str(size.questions)]
        stages.append(
            Stage(
                "data",
                command,
                data,
                before=lambda: shutil.rmtree(unfinished, ignore_errors=True),
                after=lambda: os.replace(unfinished, data),
                seconds=5,
            )
        )
    if size.exercises:
        mixed = output / ".unfinished-text.jsonl"
        command = [str(SAMPLES / "make_exercises.py"), str(mixed), "--stories", files.pretraining, "--count", str(size.exercises)]
        stages.append(Stage("text", command, Path(text), after=lambda: os.replace(mixed, text), seconds=5))
    stages.append(
        Stage(
            "tokenizer",
            [
                *_script("train_tokenizer", output / "tokenizer"),
                *("--train_file", text, str(conversations), "--vocab_size", str(size.vocabulary)),
                *("--special_tokens", "<|im_start|>", "--prompt_style", STYLE, "--model_max_length", str(size.positions)),
            ],
            output / "tokenizer",
            before=lambda: write_tokenizer_text(parts["train"], conversations),
            seconds=30,
        )
    )
    stages.append(
        Stage(
            "pretraining",
            [
                *_script("pretrain", output / "pretrained"),
                *("--train_file", text, "--tokenizer_name", str(output / "tokenizer")),
                *("--block_size", str(size.positions), "--config_overrides", json.dumps(size.config_overrides())),
                *("--optimizer", "muon", "--muon_learning_rate", f"{2 * size.rates['pretraining']:g}"),
                *("--adam_beta2", "0.95", "--weight_decay", "0.1", "--sample_tokens", "40", "--sample_temperature", "0.7"),
                *_training(size.pretraining_steps, size.rows, size.rates["pretraining"], seed),
            ],
            output / "pretrained" / "README.md",
            trains=True,
            seconds=seconds["pretraining"],
        )
    )
    stages.append(_evaluation(output, "pretrained", parts["test"], seed))
    stages.append(
        Stage(
            "instruction tuning",
            [
                *_script("finetune_instructions", output / "instructed"),
                *("--split", "files", "--train_file", parts["train"], "--validation_file", parts["validation"]),
                *("--test_file", parts["test"], "--model_name_or_path", str(output / "pretrained")),
                # Not grouped by length: dialogues of one kind are of like length, and a step would be of one kind.
                *("--prompt_style", STYLE, "--mask_prompt"),
                *("--optimizer", "muon", "--muon_learning_rate", f"{2 * size.rates['instructions']:g}"),
                *("--adam_beta2", "0.95", "--sample_tokens", str(REPLY_TOKENS)),
                *_training(size.instruction_steps, size.dialogue_rows, size.rates["instructions"], seed),
            ],
            output / "instructed" / "README.md",
            trains=True,
            seconds=seconds["instructions"],
        )
    )
    stages.append(_evaluation(output, "instructed", parts["test"], seed))
    recipe = SCRIPTS / "configs" / "preferences" / "grpo_exact_match.yaml"
    script, folder = _script("finetune_preferences", output / "reinforced")[:1], output / "reinforced"
    stages.append(
        Stage(
            "reinforcement",
            [
                *(*script, "grpo", str(recipe), "--output_dir", str(folder), "--reward", "exact_match"),
                *("--train_file", parts["reinforcement"], "--validation_file", parts["validation"]),
                *("--model_name_or_path", str(output / "instructed"), "--prompt_style", STYLE),
                *("--num_generations", str(REPLIES), "--per_device_train_batch_size", str(QUESTIONS_A_STEP * REPLIES)),
                *("--max_steps", str(size.reinforcement_steps), "--save_steps", str(_share(size.reinforcement_steps, 10))),
                *("--learning_rate", f"{size.rates['reinforcement']:g}", "--seed", str(seed), "--disable_tqdm", "true"),
                *([] if _has_gpu() else ["--use_cpu"]),
            ],
            folder / "README.md",
            trains=True,
            seconds=seconds["reinforcement"],
        )
    )
    stages.append(_evaluation(output, "reinforced", parts["test"], seed, samples))
    return stages


def _script(name: str, folder: Path) -> list[str]:
    return [str(SCRIPTS / f"{name}.py"), "--output_dir", str(folder)]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _share(steps: int, parts: int) -> int:
    return max(1, steps // parts)


def _training(steps: int, rows: int, rate: float, seed: int) -> list[str]:
    """Flags that the stages with Trainer share: five evaluations, ten checkpoints, of which the last is kept."""
    return [
        *("--max_steps", str(steps), "--per_device_train_batch_size", str(rows), "--per_device_eval_batch_size", "64"),
        *("--learning_rate", f"{rate:g}", "--lr_scheduler_type", "cosine", "--warmup_steps", "0.05", "--seed", str(seed)),
        *("--eval_strategy", "steps", "--eval_steps", str(_share(steps, 5)), "--eval_on_start", "true"),
        *("--save_strategy", "steps", "--save_steps", str(_share(steps, 10)), "--save_total_limit", "1"),
        *("--logging_steps", str(_share(steps, 50)), "--disable_tqdm", "true"),
    ]


def _evaluation(output: Path, model: str, test_file: str, seed: int, samples: int = 0) -> Stage:
    replies = output / "evaluation" / f"{model}.json"
    command = [
        *(str(SCRIPTS / "evaluate_instructions.py"), "--model", str(output / model), "--data_file", test_file),
        *("--output", str(replies), "--prompt_style", STYLE, "--max_new_tokens", str(REPLY_TOKENS), "--batch_size", "128"),
        *(("--samples", str(samples), "--seed", str(seed)) if samples else ()),
    ]
    return Stage(f"evaluation after {MODELS[model]}", command, replies.with_suffix(".metrics.json"), seconds=30 + 4 * samples)


def write_tokenizer_text(dialogues: str, path: Path) -> None:
    """What is said in the dialogues, a row each, with the name of the role as the template writes it: to train the tokenizer on."""
    records = read_conversations(dialogues, kept_keys=("category",)).records
    texts = ["\n".join(f"{m['role']}\n{m['content']}" for m in to_messages(record, STYLE)) for record in records]
    with atomic_path(path) as temporary:
        temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------------ running


def open_output(output: Path, plan: dict[str, Any]) -> None:
    """Make the directory, or continue in one that was made by the same plan; keeps other runs out of it.

    Raises:
        UserError: it holds something else, or was made by another plan; names the difference.
    """
    foreign = output.exists() and (not output.is_dir() or any(entry.name != ".run.lock" for entry in output.iterdir()))
    if foreign and not (output / "plan.json").is_file():
        raise UserError(f"--output_dir {output} holds other files, and no plan.json: choose another directory")
    output.mkdir(parents=True, exist_ok=True)
    lock_output_directory(str(output))
    path = output / "plan.json"
    if not path.is_file():
        write_json(path, plan)
        return
    try:
        before = read_json_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): choose another --output_dir") from error
    for name in sorted(plan.keys() | before.keys()):
        if json.dumps(plan.get(name)) != json.dumps(before.get(name)):
            raise UserError(
                f"{output} was made with {name} {json.dumps(before.get(name))}, and now it is {json.dumps(plan.get(name))}: choose another "
                "--output_dir, or the same flags"
            )


def run_stages(output: Path, stages: Sequence[Stage], report: Callable[[str], None] = print) -> None:
    """Run the stages that have not finished, one after the other.

    Raises:
        UserError: a stage fails; names its log. Preempted: SIGTERM or Ctrl-C; the stage has saved a checkpoint.
    """
    for number, stage in enumerate(stages):
        heading = f"[{number + 1}/{len(stages)}] {stage.name}"
        if stage.done.exists():
            report(f"{heading}: done")
            continue
        later = sum(one.seconds for one in stages[number + 1 :] if not one.done.exists())
        _run(output, stage, heading, later, report)


def _run(output: Path, stage: Stage, heading: str, later: float, report: Callable[[str], None]) -> None:
    slug = stage.name.replace(" ", "-")
    log, record_path = output / "logs" / f"{slug}.log", output / "stages" / f"{slug}.json"
    for folder in (log.parent, record_path.parent, output / "evaluation"):
        folder.mkdir(exist_ok=True)
    command = list(stage.command)
    if stage.trains and any(stage.done.parent.glob("checkpoint-*")):
        command += ["--resume_from_checkpoint", "latest"]
        report(f"{heading}: resuming")
    if stage.before is not None:
        stage.before()
    record = read_json_object(record_path) if record_path.is_file() else {"seconds": 0.0, "cpu_seconds": 0.0, "peak_bytes": 0}
    record |= {"name": stage.name, "attempts": record.get("attempts", 0) + 1, "estimated_seconds": stage.seconds}
    before, start = record["seconds"], time.monotonic()
    with open(log, "a", encoding="utf-8") as file:
        begin = file.tell()
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": _path()},
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )
        try:
            shown = Progress(log, begin, stage, heading, later)
            ended = _wait(process, shown, start, report, lambda s: write_json(record_path, record | {"seconds": before + s}))
        except BaseException:
            process.kill()  # whatever went wrong here: nobody would look after it
            process.wait()
            raise
    record |= {"seconds": before + time.monotonic() - start}
    record["cpu_seconds"] += ended.cpu_seconds
    record["peak_bytes"] = max(record["peak_bytes"], ended.peak_bytes)
    write_json(record_path, record)
    status = ended.status
    if -status in (signal.SIGTERM, signal.SIGINT):  # a stage that does not train ends by the signal itself
        status = 128 - status
    if status in (PREEMPTED_STATUS, INTERRUPTED_STATUS):
        raise Preempted(f"stopped in {stage.name}: the same command resumes there", status)
    if status != 0:
        raise UserError(f"{stage.name} ended with status {status}: {_last_error(log)}; see {log}")
    if stage.after is not None:
        stage.after()
    if not stage.done.exists():
        raise UserError(f"{stage.name} ended without {stage.done}: see {log}")
    report(f"{heading}: {duration(record['seconds'])}")


@dataclass
class Ended:
    """Exit status of a process and what it took."""

    status: int
    cpu_seconds: float
    peak_bytes: int


def _wait(
    process: subprocess.Popen, progress: "Progress", start: float, report: Callable[[str], None], note: Callable[[float], None]
) -> Ended:
    """Wait for a process, with progress until it ends. SIGTERM and Ctrl-C are passed on.

    Args:
        start: by the monotonic clock.
        note: is given the seconds so far now and then, since this process may be killed.
    """
    received: list[int] = []

    def pass_on(number: int, _frame: Any) -> None:
        received.append(number)
        if number == signal.SIGTERM or not os.isatty(0):  # a terminal sends Ctrl-C to both
            process.send_signal(number)

    previous = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    shown, peak = time.monotonic(), None
    try:
        while True:
            peak = peak_bytes(process.pid) or peak
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                process.returncode = os.waitstatus_to_exitcode(status)
                peak = peak or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
                return Ended(process.returncode, usage.ru_utime + usage.ru_stime, peak)
            time.sleep(min(EVERY, 0.1 + (time.monotonic() - start) / 10))
            if time.monotonic() - shown >= (EVERY if sys.stderr.isatty() else LINE):
                shown = time.monotonic()
                note(shown - start)
                show_progress(progress.line(shown - start), report)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Progress:
    """Which stage, how far, and how long still, this stage and all: by the pace of the steps in its log, before these by the estimate.

    Args:
        begin: where this attempt begins in the log.
        later: estimated seconds of the stages after this one.
    """

    def __init__(self, log: Path, begin: int, stage: Stage, heading: str, later: float):
        self.log, self.begin, self.stage, self.heading, self.later = log, begin, stage, heading, later
        self.first: tuple[float, int] | None = None  # seconds and step when a step was first seen

    def line(self, seconds: float) -> str:
        """What there is to say `seconds` after the start."""
        with open(self.log, "rb") as file:
            file.seek(self.begin)
            steps = STEP.findall(file.read().decode("utf-8", "replace"))
        left, where = max(0.0, self.stage.seconds - seconds), ""
        if steps:
            now, last = (int(number.replace(",", "")) for number in steps[-1])
            where = f"step {now:,} of {last:,}, "
            self.first = self.first or (seconds, now)
            if now > self.first[1]:
                left = (last - now) * (seconds - self.first[0]) / (now - self.first[1])
        times = f"{duration(seconds)} so far, about {duration(left)} to go, {duration(left + self.later)} for all stages"
        return f"{self.heading}: {where}{times}"


def show_progress(line: str, report: Callable[[str], None]) -> None:
    """On one line of a terminal, else a line each time."""
    if sys.stderr.isatty():
        print(f"\r{line:<{shutil.get_terminal_size().columns - 1}}", end="\r", file=sys.stderr, flush=True)
    else:
        report(line)


def duration(seconds: float) -> str:
    """A number of seconds, to be read.

    >>> duration(42), duration(3 * 60 + 5), duration(7500), duration(10**6)
    ('42 s', '3 min', '2.1 h', '11.6 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172_800 else f"{seconds / 86400:.1f} days"


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return one_line((errors or lines or ["it printed nothing"])[-1], 400)


def _path() -> str:
    """The package of this process is the one that the stages import."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _die_with_parent() -> None:
    """prctl(PR_SET_PDEATHSIG, SIGKILL): a stage whose caller was killed must not go on writing where the next call resumes."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
