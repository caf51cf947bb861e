"""The comparison with llama.cpp, at a size at which it says nothing about speed; the workers' output; what is refused early."""

import json

import pytest
from tiny_benchmark import run
from tiny_checkpoints import checkpoint, style, tokenizer  # noqa: F401

from gpt_scratch.benchmarking import generation_worker, llama_cpp
from gpt_scratch.errors import UserError
from gpt_scratch.export.gguf import export_gguf

SHAPES = ["--batch", "1", "2", "--prompt", "4", "9", "--new_tokens", "5", "--repetitions", "2"]


@pytest.fixture
def file(checkpoint, tmp_path) -> str:  # noqa: F811
    pytest.importorskip("gguf")
    export_gguf(str(checkpoint), str(tmp_path / "model.gguf"))
    return str(tmp_path / "model.gguf")


@pytest.mark.slow
def test_the_table(script, file, tmp_path):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    output = tmp_path / "record.json"
    rows = run(script, "generation", "--llama_cpp", file, *SHAPES, "--output", str(output))
    assert [(row["weights"], row["batch"], row["prompt"]) for row in rows[::2]] == [
        (weights, batch, prompt) for weights in ("f32", "f16", "q8_0", "q4_0") for batch in (1, 2) for prompt in (4, 9)
    ]
    assert [row["weights"] for row in rows[1::8]] == ["float32", "bfloat16", "int8", "int4"]
    for row in rows:
        assert row["ms_low"] <= row["ms_per_step"] <= row["ms_high"] and row["first_token_s"] > 0 and row["peak_mib"] > 10
        assert row["prompt_tokens_per_s"] > 0 and (row["speedup"] == 1) == row["contender"].startswith(
            "llama.cpp (llama-cpp-python "
        )
    assert all(row["same_rows"] == f"{row['batch']}/{row['batch']}" for row in rows[:8])  # in 32 bits
    assert json.loads(output.read_text())["rows"] == rows


def test_a_worker_reports_its_times(checkpoint, capsys):  # noqa: F811
    settings = {"engine": "gpt_scratch", "model": str(checkpoint), "weights": "int8", "threads": 1, "vocab_size": 97}
    generation_worker.main(settings | {"shapes": [(2, 4), (1, 9)], "new_tokens": 5})
    first, *shapes = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 <= first["first"] < 300 and [(shape["batch"], shape["prompt"]) for shape in shapes] == [(2, 4), (1, 9)]
    for shape in shapes:
        assert shape["step_s"] > 0 and shape["prompt_s"] > 0 and [len(row) for row in shape["tokens"]] == [5] * shape["batch"]


def test_a_worker_that_fails_is_one_line():
    with pytest.raises(UserError, match="generation with another engine fails: .*KeyError: 'another engine'"):
        llama_cpp._run({"engine": "another engine", "threads": 1})


def test_refused_before_anything_runs(script, file, monkeypatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)
    with pytest.raises(UserError, match="--llama_cpp needs llama-cpp-python"):
        run(script, "generation", "--llama_cpp", file)
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: True)
    with pytest.raises(UserError, match="--prompt 5000 and --new_tokens 5 exceed the .* positions of"):
        run(script, "generation", "--llama_cpp", file, "--prompt", "5000", "--new_tokens", "5")
    with pytest.raises(UserError, match="--new_tokens is 1"):
        run(script, "generation", "--llama_cpp", file, "--new_tokens", "1")
    with pytest.raises(UserError, match="--llama_cpp is for the subject generation"):
        run(script, "step", "--llama_cpp", file)
    with pytest.raises(UserError, match="--n_layer has no effect with --llama_cpp"):
        run(script, "generation", "--llama_cpp", file, "--n_layer", "2")
    with pytest.raises(UserError, match="--weights needs --llama_cpp"):
        run(script, "generation", "--weights", "int8")
