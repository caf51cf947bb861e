"""Flags, recipes and their errors."""

import sys
from dataclasses import dataclass, field

import pytest
import torch
import warm

from gpt_scratch import GPTScratchConfig
from gpt_scratch.errors import UserError
from gpt_scratch.training import precision
from gpt_scratch.training.arguments import (
    ScratchTrainingArguments,
    check_output_directory,
    parse_arguments,
    parse_config_overrides,
)


@dataclass
class Flags:
    """Two flags of a script."""

    files: list[str] | None = field(default=None, metadata={"help": "files"})
    overrides: str | None = field(default=None, metadata={"help": "overrides"})


def parse(*argv: str):
    return parse_arguments((Flags, ScratchTrainingArguments), argv)


def recipe(folder, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_flags_of_both_kinds(tmp_path):
    flags, training = parse("--files", "a", "b", "--learning_rate", "1e-3", "--output_dir", str(tmp_path), "--report_to", "none")
    assert flags.files == ["a", "b"] and training.learning_rate == 1e-3
    assert training.eval_strategy == "epoch" and training.include_num_input_tokens_seen == "all"


def test_flags_win_over_the_recipe(tmp_path):
    path = recipe(
        tmp_path, f"files: [a b, c]\nlearning_rate: 1e-3\nwarmup_steps: 20\noutput_dir: {tmp_path}\nsave_strategy: 'no'\n"
    )
    flags, training = parse(path, "--learning_rate", "5e-4")
    assert flags.files == ["a b", "c"]
    assert (training.learning_rate, training.warmup_steps, training.save_strategy) == (5e-4, 20, "no")


@pytest.mark.parametrize(
    ("flags", "accelerate", "expected"),
    [
        ([], None, True),
        ([], "fp16", False),
        (["--bf16", "false"], None, False),
        (["--bf16"], "fp16", True),
        (["--fp16"], None, False),
    ],
)
def test_bf16_is_the_default_where_it_is_faster(tmp_path, monkeypatch, flags, accelerate, expected):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    if accelerate:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", accelerate)
    parsed = parse("--use_cpu", "--output_dir", str(tmp_path), *flags)[1]
    assert (parsed.bf16, "bf16" in parsed.left_open) == (expected, "--bf16" not in flags)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the default is then the GPU")
@pytest.mark.parametrize("flags", [[], ["--bf16"]])
def test_bf16_on_a_machine_without_gpu_needs_no_other_flag(tmp_path, monkeypatch, flags):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: not flags)
    parsed = parse("--output_dir", str(tmp_path), *flags)[1]
    assert parsed.bf16 and parsed.use_cpu


@pytest.mark.parametrize("instructions", [{}, {"amx_tile"}, {"avx512_bf16"}])
def test_a_cpu_multiplies_bf16_by_either_of_two_instruction_sets(monkeypatch, instructions):
    for name in ("amx_tile", "avx512_bf16"):
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda name=name: name in instructions)
    assert precision.cpu_multiplies_bf16() == bool(instructions)


def test_fp32_is_the_default_where_bf16_is_slow(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: False)
    assert parse("--use_cpu", "--output_dir", str(tmp_path))[1].bf16 is False


def test_a_mapping_in_a_recipe_becomes_overrides(tmp_path):
    path = recipe(tmp_path, f"output_dir: {tmp_path}\noverrides: {{n_embd: 64, qkv_bias: false, initialization: pytorch}}\n")
    flags, _ = parse(path)
    assert parse_config_overrides(flags.overrides, GPTScratchConfig) == {
        "n_embd": 64,
        "qkv_bias": False,
        "initialization": "pytorch",
    }


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--learnin_rate", "1"], "did you mean 'learning_rate'"),
        (["--learning_rate", "fast"], "invalid float value"),
        (["--max_steps", "1.5"], "invalid int value"),
        (["--eval_strategy", "weekly"], "weekly"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flags_end_in_one_line(argv, message):
    with pytest.raises(UserError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learnin_rate: 1\n", "unknown key 'learnin_rate'; did you mean 'learning_rate'"),
        ("- a\n", "must contain"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_wrong_recipes_end_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as error:
        parse(recipe(tmp_path, text))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be read"):
        parse(str(tmp_path / "missing.yaml"))


def test_config_overrides_are_typed_and_typos_are_refused():
    parsed = parse_config_overrides(
        "n_embd=384, n_layer=6,drop_rate=0.0,tie_word_embeddings=false,norm_eps=1e-6", GPTScratchConfig
    )
    assert parsed == {"n_embd": 384, "n_layer": 6, "drop_rate": 0.0, "tie_word_embeddings": False, "norm_eps": 1e-6}
    assert parse_config_overrides(None, GPTScratchConfig) == {}
    with pytest.raises(UserError, match="'n_layrs'; did you mean 'n_layers'"):
        parse_config_overrides("n_layrs=6", GPTScratchConfig)
    with pytest.raises(UserError, match="name=value"):
        parse_config_overrides("n_layers", GPTScratchConfig)


def test_output_directory_must_be_new_and_writable(tmp_path):
    check_output_directory(str(tmp_path / "new"), resume=None)
    (tmp_path / "new" / "checkpoint-5").mkdir()
    for resume in (None, str(tmp_path / "other" / "checkpoint-5")):
        with pytest.raises(UserError, match="already contains a run"):
            check_output_directory(str(tmp_path / "new"), resume)
    check_output_directory(str(tmp_path / "new"), str(tmp_path / "new" / "checkpoint-5"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to"):
        check_output_directory(str(tmp_path / "file" / "below"), resume=None)


def test_a_run_overwrites_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    check_output_directory(".", resume=None)  # nothing of what is there has a name that a run writes
    for name in ("README.md", "tokenizer.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=f"contains {name}, which the run would overwrite"):
            check_output_directory(".", resume=None)
        (tmp_path / name).unlink()


def test_an_empty_directory_that_a_run_made_is_removed(tmp_path):
    """At the end of the process."""
    script = (
        "import sys; from gpt_scratch.training.arguments import check_output_directory as check\n"
        "for name in sys.argv[1:]: check(name, resume=None)\n"
        "open(sys.argv[1] + '/model.txt', 'w').close()"
    )
    (tmp_path / "old").mkdir()
    names = [str(tmp_path / name) for name in ("runs/kept", "runs/typo", "other/deep/typo", "old")]
    warm.run([sys.executable, "-c", script, *names], check=True)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.name.startswith(".")} == {
        "runs", "runs/kept", "runs/kept/model.txt", "old"
    }  # fmt: skip
