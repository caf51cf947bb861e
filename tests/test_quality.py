"""pre-commit runs the checks of `make quality`."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_pre_commit_runs_what_make_quality_runs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("$(BIN)", ".venv/bin")
    target = re.search(r"^quality: setup\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    commands = [line.strip() for line in target[1].splitlines()]
    [repository] = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [hook["entry"] for hook in repository["hooks"]] == commands
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in repository["hooks"])
