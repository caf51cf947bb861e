"""The course: each lesson runs and equals the package, its exercises are judged rightly, and it runs as a notebook."""

import ast
import contextlib
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from wrong_answers import WRONG_ANSWERS

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).resolve().parents[2]
COURSE = ROOT / "scripts" / "course"
sys.path.insert(0, str(COURSE))  # as for a lesson that is run as a script
from cells import lesson_files, read_cells  # noqa: E402

LESSONS = lesson_files()
NUMBERS = [int(path.stem[:2]) for path in LESSONS]
PACKAGES = {"gpt_scratch", "peft", "trl", "transformers"}  # what lessons compare with
STORIES = ROOT / "gpt_scratch" / "data" / "samples" / "stories.jsonl"


def run(cell, path, names) -> str:
    """What the cell prints."""
    code = compile("\n" * (cell.line - 1) + cell.source, path, "exec")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, names)
    return printed.getvalue().strip()


@pytest.fixture(scope="session")
def tiny_quickstart(tmp_path_factory) -> Path:
    """A checkpoint as `make quickstart` writes it, smaller, not trained: a model whose weights are large, and a tokenizer."""
    import json

    from tiny_models import randomize

    from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
    from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

    texts = [json.loads(line)["text"] for line in STORIES.read_text().splitlines()[:100]]
    tokenizer = train_byte_level_bpe(texts, vocab_size=400, model_max_length=64)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPTScratchConfig(
        n_embd=32, n_layer=2, n_head=4, drop_rate=0.0, context_length=64, vocab_size=len(tokenizer), **ids
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("quickstart")
    randomize(GPTScratchForCausalLM(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def played(tiny_quickstart):
    """A function that runs a lesson, shrunk and without its figures, and gives its names and what each cell printed; once for each."""
    results: dict = {}

    def play(path: Path):
        if path not in results:
            state, threads = torch.get_rng_state(), torch.get_num_threads()
            names: dict = {"__name__": "__main__", "__file__": str(path)}
            outputs = []
            folder = Path.cwd()
            os.chdir(COURSE)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for cell in read_cells(path):
                        if cell.markdown or "figure" in cell.tags:
                            continue
                        outputs.append((cell, run(cell, path, names)))
                        if "parameters" in cell.tags:
                            names["small"] = True
                            if "checkpoint" in names:
                                names["checkpoint"] = tiny_quickstart
            finally:
                os.chdir(folder)
                torch.set_rng_state(state)
                torch.set_num_threads(threads)
                torch.set_grad_enabled(True)
                torch.set_printoptions(profile="default")
            results[path] = names, outputs
        return results[path]

    return play


def test_every_lesson_has_solutions_wrong_answers_and_a_line_in_the_table():
    table = (COURSE / "README.md").read_text()
    for path, number in zip(LESSONS, NUMBERS):
        assert (COURSE / "solutions" / path.name).is_file() and number in WRONG_ANSWERS, path.name
        assert f"({path.name})" in table
    assert sorted(WRONG_ANSWERS) == NUMBERS


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_runs_and_computes_what_the_package_computes(path, played):
    _, outputs = played(path)
    compared = [cell for cell, _ in outputs if "compare" in cell.tags]
    assert compared and all("assert " in cell.source for cell in compared)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_nothing_is_imported_from_the_package_before_the_comparison(path):
    packages = PACKAGES - ({"transformers"} if path.stem == "13_native" else set())  # which is what that lesson is about
    for cell in read_cells(path):
        if "compare" in cell.tags:
            return
        if cell.markdown:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & packages, f"{path.name} line {cell.line + node.lineno - 1}"
    pytest.fail("no cell compares")


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_lesson_has_goals_exercises_and_sources(path):
    text = "\n".join(cell.source for cell in read_cells(path) if cell.markdown)
    for part in ("After this lesson you can", "## Exercises", "## Where this lives in the package", "**Sources.**", "arXiv:"):
        assert part in text, part
    assert any("figure" in cell.tags for cell in read_cells(path)) or "```" in text  # a picture
    exercises = [cell for cell in read_cells(path) if "exercise" in cell.tags]
    checks = [cell for cell in read_cells(path) if "check" in cell.tags]
    assert 2 <= len(exercises) == len(checks) <= 3
    assert f"solutions/{path.name}" in text


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_the_files_and_functions_that_the_lesson_names_exist(path):
    text = "\n".join(cell.source for cell in read_cells(path) if cell.markdown)
    rows = [
        line for line in text.split("## Where this lives in the package")[1].splitlines() if line.startswith("| ") and "`" in line
    ]
    assert rows
    for row in rows:
        named = row.split("`")[1::2]
        source = (ROOT / named[0]).read_text()
        for name in named[1:]:
            assert f"def {name}" in source or f"class {name}" in source or re.search(rf"^{name}\b", source, re.M), (
                f"{named[0]} has no {name}"
            )


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_checks_print_no_answer_yet_before_and_right_after_the_solution(path, played):
    names, outputs = played(path)
    checks = [(cell, printed) for cell, printed in outputs if "check" in cell.tags]
    assert all("no answer yet" in printed for _, printed in checks), checks
    solutions = [cell for cell in read_cells(COURSE / "solutions" / path.name) if not cell.markdown]
    assert len(solutions) == len(checks)
    names = dict(names)
    for solution, (check, _) in zip(solutions, checks):
        run(solution, path, names)
        assert run(check, path, names).startswith("Right"), check.source


@pytest.mark.parametrize(
    ("number", "answer", "reply"), [(n, *wrong) for n, answers in WRONG_ANSWERS.items() for wrong in answers]
)
def test_a_typical_wrong_answer_gets_a_helpful_reply(number, answer, reply, played):
    names, outputs = played(LESSONS[NUMBERS.index(number)])
    answered = answer.split()[1].split("(")[0] if answer.startswith(("def ", "class ")) else answer.split()[0]
    (check,) = [cell for cell, _ in outputs if "check" in cell.tags and f"({answered})" in cell.source]
    names = dict(names)
    exec(answer, names)
    printed = run(check, "check", names)
    assert printed.startswith("Wrong") and reply in printed


@pytest.mark.slow
def test_the_course_runs_as_notebooks(tmp_path):
    """As `make course` does; with a checkpoint after a few steps of the quickstart, where none is there."""
    pytest.importorskip("nbclient")
    checkpoint = ROOT / "runs" / "quickstart"
    if not (checkpoint / "model.safetensors").is_file():
        checkpoint = tmp_path / "quickstart"
        flags = ["--max_steps", "60", "--eval_strategy", "no", "--eval_on_start", "false", "--save_strategy", "no"]
        recipe = [str(ROOT / "scripts/pretrain.py"), str(ROOT / "scripts/configs/quickstart.yaml")]
        subprocess.run([sys.executable, *recipe, *flags, "--output_dir", str(checkpoint)], cwd=ROOT, check=True)
    command = [sys.executable, str(COURSE / "run.py"), str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    done = subprocess.run([*command, "--pages", str(tmp_path / "pages")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in LESSONS:
        for file in (
            tmp_path / "out" / f"{path.stem}.ipynb",
            tmp_path / "out" / f"{path.stem}.html",
            tmp_path / "pages" / f"{path.stem}.md",
        ):
            assert file.stat().st_size > 2000
