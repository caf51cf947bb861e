"""Runs that are killed, pre-empted or left without disk space end, once resumed, with the weights of the run that was left alone."""

import os
import random
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from survival_runner import RUNS, Runner, assert_same, curve, write_inputs

from gpt_scratch.errors import INTERRUPTED_STATUS, PREEMPTED_STATUS, UserError
from gpt_scratch.training.checkpoints import MANIFEST, UNFINISHED, damage, newest_complete_checkpoint
from gpt_scratch.training.run import checkpoint_to_resume

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks"), pytest.mark.thorough]

SEED = int(os.environ.get("GPT_SCRATCH_SEED", random.SystemRandom().randrange(10**6)))  # of the random kills
KILLS = int(os.environ.get("GPT_SCRATCH_KILLS", 5))  # of each run


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    root = tmp_path_factory.mktemp("survival")
    runner = Runner(root, write_inputs(root))
    yield runner
    print(f"\n| place | tried | survived |\n|---|---|---|\n{runner.table()}")
    runner.process.stdin.close()
    runner.process.wait(30)


@pytest.mark.parametrize(
    "place",
    [
        "weights",
        "named",
        *(pytest.param(place, marks=pytest.mark.slow) for place in ("optimizer", "state", "flushed", "removed")),
    ],
)
def test_killed_while_saving(runner, tmp_path, place):
    """Nothing of the unfinished checkpoint is used, and the one before it is complete."""
    output = tmp_path / "run"
    killed = runner("pretrain", output, kill={"place": place, "step": 9})
    assert killed["status"] == -9, killed["log"][-3000:]
    newest = 9 if place in ("named", "removed") else 6
    assert newest_complete_checkpoint(str(output)) == str(output / f"checkpoint-{newest}")
    done = runner.resume("pretrain", output)
    assert done["status"] == 0, done["log"][-3000:]
    runner.assert_same(output, "pretrain")


@pytest.mark.parametrize(
    ("name", "place", "step"),
    [
        ("pretrain", "sigterm", 7),
        pytest.param("pretrain", "sigterm", 8, marks=pytest.mark.slow),  # an evaluation is due
        ("pretrain", "evaluation_sigterm", 8),
        pytest.param("pretrain", "two_sigterms", 5, marks=pytest.mark.slow),
        pytest.param("best", "sigterm", 2, marks=pytest.mark.slow),
        pytest.param("best", "sigterm", 10, marks=pytest.mark.slow),  # the last step of an epoch
        pytest.param("streaming", "sigterm", 10, marks=pytest.mark.slow),  # in the second pass over the text
        pytest.param("classifier", "sigterm", 7, marks=pytest.mark.slow),
        pytest.param("instructions", "sigterm", 7, marks=pytest.mark.slow),
    ],
)
def test_preemption(runner, tmp_path, name, place, step):
    output = tmp_path / "run"
    stopped = runner(name, output, kill={"place": place, "step": step})
    step += place == "evaluation_sigterm"  # that evaluation belongs to a step that has ended
    assert stopped["status"] == PREEMPTED_STATUS, stopped["log"][-3000:]
    last = stopped["log"].splitlines()[-1]
    assert last.startswith(f"stopped by SIGTERM after step {step} of ") and f"checkpoint-{step} is saved" in last
    assert newest_complete_checkpoint(str(output)) == str(output / f"checkpoint-{step}")
    assert not (output / "model.safetensors").exists()  # an unfinished run does not look like a finished one
    done = runner.resume(name, output)
    assert done["status"] == 0, done["log"][-3000:]
    runner.assert_same(output, name)


@pytest.mark.parametrize("name", ["pretrain", "lora_packed"])
def test_ctrl_c(runner, tmp_path, name):
    """Saves like SIGTERM; a second one ends the run at once, and it resumes from the checkpoint before."""
    output = tmp_path / "run"
    stopped = runner(name, output, kill={"place": "ctrl_c", "step": 5})
    assert stopped["status"] == INTERRUPTED_STATUS and "Traceback" not in stopped["log"], stopped["log"][-3000:]
    assert stopped["log"].splitlines()[-1].startswith("stopped by Ctrl-C after step 5 of ")
    assert newest_complete_checkpoint(str(output)) == str(output / "checkpoint-5")
    stopped = runner.resume(name, output, kill={"place": "two_ctrl_cs", "step": 8})
    assert stopped["status"] == INTERRUPTED_STATUS and "Traceback" not in stopped["log"], stopped["log"][-3000:]
    assert stopped["log"].splitlines()[-1] == "stopped by Ctrl-C"
    assert newest_complete_checkpoint(str(output)) == str(output / "checkpoint-6")
    assert runner.resume(name, output)["status"] == 0
    runner.assert_same(output, name)


def test_killed_while_a_checkpoint_is_replaced(runner, tmp_path):
    """After SIGTERM at a step with an evaluation there is a checkpoint before it, which gives way to the one after it."""
    output = tmp_path / "run"
    assert runner("pretrain", output, kill={"place": "replacing", "step": 8})["status"] == -9
    assert not (output / "checkpoint-8").exists()
    assert newest_complete_checkpoint(str(output)) == str(output / "checkpoint-8")
    assert runner.resume("pretrain", output)["status"] == 0
    runner.assert_same(output, "pretrain")  # the evaluation was made up for, with the random numbers that it draws


@pytest.mark.parametrize("name", ["pretrain", "stopped"])
def test_a_finished_run_that_is_resumed_takes_no_more_steps(runner, tmp_path, name):
    """As when it is killed in its last evaluation; also one that was stopped early."""
    output = tmp_path / "run"
    shutil.copytree(runner.whole(name), output)
    (output / "model.safetensors").unlink()
    assert runner.resume(name, output)["status"] == 0
    assert_same(output, runner.whole(name))
    assert len(curve(output)) < 15  # 60 steps would have been as many


def test_a_full_disk_while_saving(runner, tmp_path):
    output = tmp_path / "run"
    stopped = runner("pretrain", output, kill={"place": "full", "step": 6})
    assert stopped["status"] == 2
    last = stopped["log"].splitlines()[-1]
    assert last.startswith("error: checkpoint-6 could not be written") and "No space left on device" in last
    assert "earlier checkpoints are unchanged" in last and "Traceback" not in stopped["log"]
    assert [path.name for path in output.iterdir() if "checkpoint" in path.name] == ["checkpoint-3"]
    assert runner.resume("pretrain", output)["status"] == 0
    runner.assert_same(output, "pretrain")


def test_a_disk_that_really_is_full(runner, tmp_path):
    """On a file system of 1.5 MiB, with room for two checkpoints and not for three."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        output = disk / "run"
        stopped = runner("pretrain", output)
        assert stopped["status"] == 2, stopped["log"][-3000:]
        assert "could not be written" in stopped["log"].splitlines()[-1] and "Traceback" not in stopped["log"]
        saved = newest_complete_checkpoint(str(output))
        assert saved and not (output / UNFINISHED).exists()
        assert all(damage(checkpoint) is None for checkpoint in output.glob("checkpoint-*"))
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert runner.resume("pretrain", output)["status"] == 0
        runner.assert_same(output, "pretrain")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


@pytest.fixture
def disk(tmp_path):
    """A file system of 20 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(path)], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=False)


@pytest.mark.parametrize("name", ["pretrain", "lora_packed"])
def test_a_disk_that_fills_in_the_final_saves(runner, tmp_path, disk, name):
    """A tmpfs that is really full: nothing looks finished, and the last checkpoint is complete."""
    output = disk / "run"
    stopped = runner(name, output, kill={"place": "fill", "step": 0, "disk": str(disk)})
    assert stopped["status"] == 2 and "Traceback" not in stopped["log"], stopped["log"][-3000:]
    last = stopped["log"].splitlines()[-1]
    assert last.startswith("error: ") and "No space left on device" in last and "--resume_from_checkpoint latest" in last
    assert not list(output.glob("*.safetensors")) and not (output / UNFINISHED).exists() and not (output / "README.md").exists()
    (disk / "filler").unlink()
    assert runner.resume(name, output)["status"] == 0
    runner.assert_same(output, name)


def test_a_folder_that_turns_read_only(runner, tmp_path):
    output = tmp_path / "run"
    stopped = runner("pretrain", output, kill={"place": "read_only", "step": 8, "disk": str(output)})
    for folder in (output, *(path for path in output.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    assert stopped["status"] == 2 and "Traceback" not in stopped["log"], stopped["log"][-3000:]
    last = stopped["log"].splitlines()[-1]
    assert last.startswith("error: ") and "Permission denied" in last
    assert newest_complete_checkpoint(str(output)) == str(output / "checkpoint-6")
    assert runner.resume("pretrain", output)["status"] == 0
    runner.assert_same(output, "pretrain")


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        ("trainer_state.json", "trainer_state.json is missing"),
        ("optimizer.pt", "optimizer.pt is missing"),
        ("half of model.safetensors", "model.safetensors has"),
        (MANIFEST, None),  # one of a plain Trainer
        ("half of .manifest.json", ".manifest.json is broken"),
    ],
)
def test_an_incomplete_checkpoint_is_skipped(runner, tmp_path, capsys, harm, told):
    output = tmp_path / "run"
    shutil.copytree(runner.whole("pretrain"), output)
    older, newest = output / "checkpoint-12", output / "checkpoint-14"
    half, _, name = harm.rpartition(" ")
    if half:
        os.truncate(newest / name, (newest / name).stat().st_size // 2)
    else:
        (newest / name).unlink()
    assert newest_complete_checkpoint(str(output)) == str(older if told else newest)
    assert (f"checkpoint-14 is incomplete ({told}" in capsys.readouterr().out) == bool(told)
    if told:
        with pytest.raises(UserError, match="checkpoint"):
            checkpoint_to_resume(str(output), str(newest))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def survive(runner: Runner, name: str, folder: Path, rng: random.Random) -> None:
    """A run is killed KILLS times at random places and moments, and resumes each time from a complete checkpoint."""
    whole, output = runner.whole(name), folder / "run"
    last = max(step for step, _ in curve(whole))
    seconds = runner(name, folder / "timed")["seconds"]
    kills, attempt = 0, 0
    while kills < KILLS:
        attempt += 1
        assert attempt < 8 * KILLS, "it ends before it is killed"
        reached = newest_complete_checkpoint(str(output))
        start, saved = (int(reached.rpartition("-")[2]), size(Path(reached))) if reached else (0, 0)
        if attempt % 2:
            how = {"after": rng.uniform(0.2, 1.0) * seconds}
        else:
            place = rng.choice(["step", "weights", "optimizer", "state", "flushed", "named", "removed"])
            place = "step" if place == "weights" and name == "lora_packed" else place  # an adapter is written otherwise
            how = {"kill": {"place": place, "step": rng.randint(start + 1, max(start + 1, last))}}
        done = runner.resume(name, output, **how)
        if done["status"] == 0:  # it ended before it was to die: start again
            runner.assert_same(output, name)
            shutil.rmtree(output)
            output = folder / f"run-{attempt}"
            continue
        assert done["status"] == -9, done["log"][-3000:]
        kills += 1
        left = newest_complete_checkpoint(str(output))
        if reached and not (left and int(left.rpartition("-")[2]) >= start):
            runner.bytes_lost += saved
        print(f"{name}: killed by {how}, at or after checkpoint {start}")
    done = runner.resume(name, output)
    assert done["status"] == 0, done["log"][-3000:]
    runner.assert_same(output, name)
    assert runner.bytes_lost == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_random_kills(runner, tmp_path, name):
    """`GPT_SCRATCH_KILLS=10 pytest -m slow -k random_kills tests/training/test_survival.py -s` kills 110 times."""
    print(f"{name}: GPT_SCRATCH_SEED={SEED} GPT_SCRATCH_KILLS={KILLS}")
    survive(runner, name, tmp_path, random.Random(f"{SEED} {name}"))
    print(f"{name}: {KILLS} kills, {runner.bytes_lost} bytes lost")


@pytest.mark.slow
def test_random_kills_of_two_runs_at_once(runner, tmp_path):
    """Beside each other in one directory, in two processes."""
    print(f"two at once: GPT_SCRATCH_SEED={SEED} GPT_SCRATCH_KILLS={KILLS}")
    other = Runner(runner.root, runner.names)
    other.whole_runs = runner.whole_runs
    for name in ("pretrain", "muon"):
        runner.whole(name)
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(survive, each, name, tmp_path / name, random.Random(f"{SEED} two {name}"))
                for each, name in ((runner, "pretrain"), (other, "muon"))]  # fmt: skip
        for one in both:
            one.result()
    other.process.stdin.close()
    other.process.wait(30)
    print(f"two at once: {2 * KILLS} kills, {runner.bytes_lost + other.bytes_lost} bytes lost")
