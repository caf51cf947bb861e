"""The record of where a figure comes from."""

import subprocess
import sys

import pytest

from gpt_scratch.provenance import describe_environment


@pytest.mark.parametrize(
    "word, shown",
    [
        ("/home/anna/in.txt", "in.txt"),
        ("/home/anna/a=b/in.txt", "in.txt"),
        ("--train_file=/home/anna/in.txt", "--train_file=in.txt"),
        ("nanogpt=/home/anna/adapter.py:build", "nanogpt=adapter.py:build"),
        ("runs/one", "runs/one"),
        ("n_embd=64,n_layer=2", "n_embd=64,n_layer=2"),
    ],
)
def test_the_command_names_no_folder_of_the_machine(word, shown, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/home/anna/scripts/benchmark.py", word])
    assert describe_environment()["command"] == f"benchmark.py {shown}"


@pytest.mark.thorough
def test_describing_the_environment_does_not_import_datasets():
    code = "import sys, gpt_scratch.provenance as p; p.describe_environment(); print(*{'datasets', 'pyarrow'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
