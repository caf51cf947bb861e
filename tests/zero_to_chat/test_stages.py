"""Stages as processes: run once, resumed after a kill, ended with their caller, reported in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt_scratch.errors import Preempted, UserError
from gpt_scratch.zero_to_chat.sizes import make_size
from gpt_scratch.zero_to_chat.stages import (
    Files,
    Progress,
    Stage,
    duration,
    make_stages,
    open_output,
    run_stages,
    write_tokenizer_text,
)

ROOT = Path(__file__).resolve().parents[2]


def stage(folder: Path, code: str, name: str = "one", **settings) -> Stage:
    """A stage of a few lines of Python, run in `folder`, which leaves DONE there."""
    text = f"import os, sys, time, signal\nos.chdir({str(folder)!r})\n{code}"
    return Stage(name, ["-c", text], folder / "DONE", **settings)


def test_a_finished_stage_is_not_run_again_and_its_cost_is_kept(tmp_path):
    said: list[str] = []
    one = stage(tmp_path, "open('DONE', 'a').write('x'); print('said')")
    run_stages(tmp_path, [one], said.append)
    run_stages(tmp_path, [one], said.append)
    assert (tmp_path / "DONE").read_text() == "x"
    assert said[0].startswith("[1/1] one: ") and said[1] == "[1/1] one: done"
    assert (tmp_path / "logs" / "one.log").read_text() == "said\n"
    record = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert record["attempts"] == 1 and record["seconds"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak of a process is read from /proc")
def test_the_peak_of_a_stage_is_its_own(tmp_path):
    """This process, which has imported torch, is larger than a stage that imports nothing."""
    run_stages(tmp_path, [stage(tmp_path, "held = b'x' * 50 * 2**20; time.sleep(1); open('DONE', 'w')")], str)
    record = json.loads((tmp_path / "stages" / "one.json").read_text())
    assert 50 * 2**20 < record["peak_bytes"] < 100 * 2**20


def test_a_stage_that_fails_is_one_line_with_its_error_and_log(tmp_path):
    with pytest.raises(UserError, match=r"one ended with status 2: error: no room; see .*one\.log"):
        run_stages(tmp_path, [stage(tmp_path, "print('error: no room'); print('more'); sys.exit(2)")], str)
    with pytest.raises(UserError, match="ended without"):
        run_stages(tmp_path, [stage(tmp_path, "pass")], str)


def test_a_stage_with_checkpoints_is_resumed(tmp_path):
    code = "open('DONE', 'w').write(' '.join(sys.argv[1:]))"
    run_stages(tmp_path, [stage(tmp_path, code, trains=True)], str)
    assert (tmp_path / "DONE").read_text() == ""
    (tmp_path / "DONE").unlink()
    (tmp_path / "checkpoint-5").mkdir()
    run_stages(tmp_path, [stage(tmp_path, code, trains=True)], str)
    assert (tmp_path / "DONE").read_text() == "--resume_from_checkpoint latest"
    assert json.loads((tmp_path / "stages" / "one.json").read_text())["attempts"] == 2


def test_a_stage_that_was_stopped_says_so_and_keeps_its_status(tmp_path):
    for code, status in (("sys.exit(143)", 143), ("sys.exit(130)", 130), ("os.kill(os.getpid(), signal.SIGTERM)", 143)):
        with pytest.raises(Preempted, match="stopped in one: the same command resumes there") as stopped:
            run_stages(tmp_path, [stage(tmp_path, code)], str)
        assert stopped.value.status == status


CALLER = """
import sys
from pathlib import Path
from gpt_scratch.errors import run_script
from gpt_scratch.zero_to_chat.stages import Stage, run_stages
folder = Path(sys.argv[1])
code = f'''import os, signal, sys, time
def end(*_):
    open({str(folder / "asked")!r}, "w").close()
    sys.exit(143)
signal.signal(signal.SIGTERM, end)
open({str(folder / "pid")!r} + ".new", "w").write(str(os.getpid()))
os.replace({str(folder / "pid")!r} + ".new", {str(folder / "pid")!r})
time.sleep(60)'''
run_script(lambda: run_stages(folder, [Stage("one", ["-c", code], folder / "DONE")]))
"""


def wait_for(condition, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow  # it starts the package in a process of its own
@pytest.mark.skipif(sys.platform != "linux", reason="prctl and /proc are Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stage_ends_with_its_caller(tmp_path, number):
    """SIGTERM is passed on, so that the stage saves; after SIGKILL nothing goes on writing."""
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(tmp_path)], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        wait_for((tmp_path / "pid").is_file)
        stage_process = int((tmp_path / "pid").read_text())
        caller.send_signal(number)
        assert caller.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_for(lambda: not is_alive(stage_process))
        assert (tmp_path / "asked").is_file() == (number == signal.SIGTERM)
    finally:
        caller.kill()
        caller.wait()


def test_another_plan_needs_another_directory(tmp_path):
    folder = tmp_path / "run"
    open_output(folder, {"size": "tiny", "seed": 1})
    open_output(folder, {"size": "tiny", "seed": 1})
    with pytest.raises(UserError, match="was made with seed 1, and now it is 2"):
        open_output(folder, {"size": "tiny", "seed": 2})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").touch()
    with pytest.raises(UserError, match=r"holds other files, and no plan\.json"):
        open_output(tmp_path / "other", {"size": "tiny"})
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["letter.txt"]


def test_progress_shows_stage_share_and_time_left(tmp_path):
    log = tmp_path / "log"
    log.write_text("step 7 of 9 of an earlier attempt\n")
    shown = Progress(log, log.stat().st_size, Stage("one", [], tmp_path, seconds=100), "[1/2] one", 3600)
    assert shown.line(20) == "[1/2] one: 20 s so far, about 80 s to go, 61 min for all stages"
    with open(log, "a") as file:
        file.write("loading\nstep 10 of 1,000 (epoch 0.1): loss 1\n")
    assert shown.line(50).startswith("[1/2] one: step 10 of 1,000, 50 s so far, about 50 s to go")
    with open(log, "a") as file:
        file.write("step 50 of 1,000 (epoch 0.2): loss 1\n")  # 40 steps in 30 seconds, however long it took to begin
    assert shown.line(80) == "[1/2] one: step 50 of 1,000, 80 s so far, about 12 min to go, 72 min for all stages"
    assert [duration(seconds) for seconds in (1, 120, 7200, 10**6)] == ["1 s", "2 min", "2.0 h", "11.6 days"]


def test_every_stage_reads_what_the_one_before_it_writes(tmp_path):
    stages = make_stages(tmp_path, make_size("tiny", 240_000, exercises=True), Files(), 1, 5000.0, 4)
    names = [one.name for one in stages]
    assert names == ["data", "text", "tokenizer", "pretraining", "evaluation after pretraining", "instruction tuning",
                     "evaluation after instruction tuning", "reinforcement", "evaluation after reinforcement"]  # fmt: skip
    made = {str(one.done if one.done.suffix == "" else one.done.parent) for one in stages}
    read = {
        w
        for one in stages
        for flag, w in zip(one.command, one.command[1:])
        if flag in ("--tokenizer_name", "--model_name_or_path", "--model")
    }
    assert read <= made and len(read) == 4
    trained = [one.command[one.command.index("--train_file") + 1] for one in stages if one.name in ("tokenizer", "pretraining")]
    assert trained == [str(stages[1].done)] * 2
    without = make_stages(tmp_path, make_size("tiny", 240_000), Files("own.txt"), 1, 5000.0, 4)
    assert [one.name for one in without] == [name for name in names if name != "text"] and "own.txt" in without[2].command
    assert all(Path(one.command[0]).is_file() for one in stages)
    assert not any(tmp_path.iterdir())  # nothing is written before a stage runs


def test_the_flags_of_the_stages_are_flags_of_their_scripts(tmp_path):
    """Read as each script reads them before it starts: an unknown flag or a wrong value would end a stage after an hour."""
    from gpt_scratch.command_line import TABLE, build_parser, read_flags

    table = json.loads(TABLE.read_text(encoding="utf-8"))
    for one in make_stages(tmp_path, make_size("small", 240_000), Files(), 1, 5000.0, 4)[1:]:
        name, *words = Path(one.command[0]).stem, *one.command[1:]
        described = table["scripts"][name]
        if "methods" in described:
            method = next(word for word in words if word in described["methods"])
            assert words[0] == method
            described, words = described["methods"][method], words[1:]
        values = read_flags(build_parser(described, table["groups"], name, None), words)
        assert values["seed"] == 1 if "seed" in values and name != "evaluate_instructions" else True


def test_the_tokenizer_is_trained_on_the_dialogues_too(tmp_path):
    row = {"history": [["Hi", "Hello"]], "instruction": "Who?", "output": "Me.", "category": "names"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    write_tokenizer_text(str(tmp_path / "rows.jsonl"), tmp_path / "text.jsonl")
    text = json.loads((tmp_path / "text.jsonl").read_text(encoding="utf-8"))["text"]
    assert text == "user\nHi\nassistant\nHello\nuser\nWho?\nassistant\nMe."


@pytest.mark.parametrize(("package", "message"), [("trl", r"gpt_scratch\[trl\]"), ("gradio", r"--page needs gradio: .*\[demo\]")])
def test_a_package_that_a_later_stage_needs_is_asked_for_first(script, tmp_path, monkeypatch, package, message):
    monkeypatch.setitem(sys.modules, package, None)
    module = script("zero_to_chat")
    with pytest.raises(UserError, match=message):
        module.main(module.parse(["--page", "--output_dir", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()
