"""Verification accepts what is equal, names what is not, and refuses what it does not understand.

Faults are planted in subclasses, so that they do not depend on how the model is written.
"""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from faulty_models import (
    ClassifiesThePadding,
    IgnoresTheCache,
    IgnoresTheMask,
    RefusesTheCache,
    RoundsWithTheCache,
    directory,
    expected,
    fault,
)
from tiny_models import randomize, tiny_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, verify_checkpoint
from gpt_scratch.reference_outputs import reference_outputs, save_reference_outputs
from gpt_scratch.verify_checkpoint import DIFFERENT, EQUAL, UNKNOWN, Verdict, compare, read_reference, verify_model

ROOT = Path(__file__).resolve().parents[1]
STYLES = ("gpt2", "llama")
WRITTEN = r"does not reproduce the outputs stored when it was written \(\d{4}-\d\d-\d\d, transformers [\w.]+, torch [\w.+]+\): "


def differs(verdict: Verdict, line: str) -> bool:
    assert "\n" not in verdict.line
    return verdict.status == DIFFERENT and re.fullmatch(WRITTEN + line, verdict.line) is not None


@pytest.mark.parametrize("style", STYLES)
def test_a_forward_that_ignores_the_cache(style):
    verdict = verify_model(fault(IgnoresTheCache, style), expected(style))
    assert differs(
        verdict,
        r"greedy tokens with the cache differ from the second token on, logits by \d\.\d \(the largest is \d\.\d+\); without the cache all "
        r"outputs are equal: the model's code and transformers [\w.]+ disagree about the cache",
    ), verdict.line


def test_an_argument_that_is_refused():
    verdict = verify_model(fault(RefusesTheCache, "gpt2"), expected("gpt2"))
    assert differs(
        verdict,
        r"no outputs with the cache: forward\(\) got an unexpected keyword argument; without the cache all outputs are equal: the model's code and "
        r"transformers [\w.]+ disagree about the cache",
    ), verdict.line


def test_a_small_error_of_the_cache():
    verdict = verify_model(fault(RoundsWithTheCache, "gpt2"), expected("gpt2"))
    line = r"logits with the cache differ by 0\.001 \(the largest is \d\.\d+\) from the first token on; without the cache all outputs are equal: .*"
    assert differs(verdict, line), verdict.line


@pytest.mark.parametrize("style", STYLES)
def test_a_mask_that_is_ignored(style):
    """Padding on the right comes after the last token of a row, and is not seen by it anyway."""
    verdict = verify_model(fault(IgnoresTheMask, style), expected(style))
    assert differs(
        verdict,
        r"logits with left padding differ by \d\.\d \(the largest is \d\.\d+\); greedy tokens with the cache and "
        r"left padding differ from the first token on, logits by \d\.\d \(the largest is \d\.\d+\); without padding all outputs are equal: the "
        r"attention mask is ignored",
    ), verdict.line


def test_a_classifier_that_looks_at_the_padding():
    verdict = verify_model(fault(ClassifiesThePadding, "gpt2"), expected("gpt2", GPTScratchForSequenceClassification))
    assert differs(
        verdict,
        r"logits with right padding differ by \d\.\d+ \(the largest is \d\.\d+\); logits with left padding differ by \d\.\d+ "
        r"\(the largest is \d\.\d+\); without padding all outputs are equal: the attention mask is ignored",
    ), verdict.line


def change_weights(model: GPTScratchForCausalLM) -> None:
    for parameter in model.parameters():
        parameter.data += 1e-3


def change_one_matrix(model: GPTScratchForCausalLM) -> None:
    next(module for module in model.modules() if isinstance(module, nn.Linear)).weight.data *= 1.001


def change_the_scaling(model: GPTScratchForCausalLM) -> None:
    for module in model.modules():
        if hasattr(module, "scaling"):
            module.scaling *= 1.01


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("change", [change_weights, change_one_matrix, change_the_scaling])
def test_other_weights_and_another_function(style, change):
    model = fault(GPTScratchForCausalLM, style)
    change(model)
    verdict = verify_model(model, expected(style))
    assert differs(
        verdict,
        r"logits without padding differ by [\d.]+ \(the largest is \d\.\d+\); the weights or the code have changed, or transformers [\w.]+ and torch "
        r"[\w.+]+ compute different outputs",
    ), verdict.line


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("cls", [GPTScratchForCausalLM, GPTScratchForSequenceClassification])
@pytest.mark.parametrize("style", STYLES)
def test_what_is_equal(style, cls, attention):
    model = tiny_model(style, cls, attention, max_position_embeddings=64)
    verdict = verify_model(model, expected(style, cls))
    greedy = "greedy tokens equal with and without the cache, " if cls is GPTScratchForCausalLM else ""
    assert verdict.status == EQUAL and re.fullmatch(
        r"reproduces the outputs stored when it was written \(\d{4}-\d\d-\d\d, transformers [\w.]+, torch [\w.+]+\) with transformers [\w.]+ and "
        rf"torch [\w.+]+: {greedy}with and without padding, logits differ by at most [\d.e-]+ \(the largest is \d\.\d+\)",
        verdict.line,
    ), verdict.line


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("vocabulary", [1, 2, 7])
def test_the_smallest_models(positions, vocabulary):
    for cls in (GPTScratchForCausalLM, GPTScratchForSequenceClassification):
        model = tiny_model("gpt2", cls, max_position_embeddings=positions, vocab_size=vocabulary)
        assert verify_model(model, reference_outputs(model, "float32")).status == EQUAL


def twins(favoured: int) -> GPTScratchForCausalLM:
    """Every even token and the odd one after it have one output row; one of the two is preferred by less than rounding."""
    model = tiny_model("llama", vocab_size=60, max_position_embeddings=64)
    rows = model.lm_head.weight.data
    rows[1::2] = rows[::2]
    rows[favoured::2] *= 1 + 3e-7
    return model


def test_a_tie_is_no_difference():
    reference, other = reference_outputs(twins(0), "float32"), reference_outputs(twins(1), "float32")
    assert reference["prompts"][0]["continuation"] != other["prompts"][0]["continuation"]
    assert verify_model(twins(1), reference).status == verify_model(twins(0), other).status == EQUAL


def test_another_token_than_the_highest_is_one():
    prompt = {"top_ids": [[4, 2], [1, 0]], "top_logits": [[3.0, 2.0], [2.0, 1.0]], "continuation": [4, 1]}
    logits = torch.tensor([[0.0, 0.0, 2.0, 0.0, 3.0], [1.0, 2.0, 0.0, 0.0, 0.0]])
    assert compare(prompt, logits, 1e-5, [4, 1]).equal
    wrong = compare(prompt, logits, 1e-5, [4, 0])
    assert (wrong.equal, wrong.step, wrong.token) == (False, 1, 1)
    logits[0, 0] = 2.5  # not among those stored, and now the second
    assert compare(prompt, logits, 1e-5).step == 0
    assert compare(prompt, torch.full((2, 5), math.nan), 1e-5).step == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_are_compared_in_float32(tmp_path, dtype):
    folder = directory(tmp_path, tiny_model("llama").to(dtype))
    assert read_reference(folder / "reference_outputs.json")["dtype"] == str(dtype).removeprefix("torch.")
    assert verify_checkpoint.verify_checkpoint(str(folder)).status == EQUAL


def test_settings_for_generation_do_not_matter(tmp_path):
    model = tiny_model("gpt2", max_position_embeddings=64, eos_token_id=expected("gpt2")["prompts"][0]["continuation"][1])
    model.generation_config.update(do_sample=True, temperature=2.0, repetition_penalty=3.0, no_repeat_ngram_size=1)
    folder = directory(tmp_path, model)
    assert verify_checkpoint.verify_checkpoint(str(folder)).status == EQUAL


def test_a_stock_model_with_learned_positions():
    """transformers' GPT-2 counts padding as positions, unless it is given them."""
    model = randomize(GPT2LMHeadModel(GPT2Config(vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64))).eval()
    assert verify_model(model, reference_outputs(model, "float32", stock=True)).status == EQUAL
    verdict = verify_model(model, reference_outputs(model, "float32"))
    assert verdict.status == DIFFERENT and "left padding" in verdict.line


def test_weights_that_are_missing_are_named(tmp_path):
    folder = directory(tmp_path, tiny_model("llama"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}), encoding="utf-8")
    verdict = verify_checkpoint.verify_checkpoint(str(folder))
    assert verdict.status == UNKNOWN and "missing weights: model.layers.2.input_layernorm.weight" in verdict.line
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}), encoding="utf-8")
    assert "unexpected weights: model.layers.1." in verify_checkpoint.verify_checkpoint(str(folder)).line


def test_tokens_that_the_model_does_not_have(tmp_path):
    folder = directory(tmp_path)
    content = read_reference(folder / "reference_outputs.json")
    content["prompts"][0]["top_ids"][0][0] = 70_000
    save_reference_outputs(folder, content)
    verdict = verify_checkpoint.verify_checkpoint(str(folder))
    assert differs(verdict, "no outputs without padding: index 70000 is out of bounds .*"), verdict.line


def test_nothing_to_compare_with(tmp_path):
    assert verify_checkpoint.verify_checkpoint(str(tmp_path)) == Verdict(
        UNKNOWN, "there is no reference_outputs.json: the outputs of the model when it was written are unknown"
    )
    verdict = verify_checkpoint.verify_checkpoint("ada/nowhere", "v1")
    assert verdict.status == UNKNOWN and verdict.line.startswith("reference_outputs.json cannot be fetched: ")
    verdict = verify_checkpoint.verify_checkpoint(str(tmp_path), "v1")
    assert verdict == Verdict(UNKNOWN, "--revision is for names on the Hub, but this is a directory")


def test_a_name_is_refused_at_once_where_the_hub_cannot_be_reached(capsys):
    assert verify_checkpoint.main(verify_checkpoint.parse(["ada/nowhere"])) == UNKNOWN
    line = (
        "ada/nowhere: no such directory here, and the Hub cannot be reached (HF_HUB_OFFLINE is set): give the path of a directory"
    )
    assert capsys.readouterr() == ("", f"error: {line}\n")


def run(*command, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HOME": str(cwd / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


FAULTY_CODE = """
from .right import GPTScratchForCausalLM as Right

class GPTScratchForCausalLM(Right):
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, cache=None, **kwargs):
        return super().forward(input_ids, attention_mask, position_ids, **kwargs)
"""


@pytest.fixture
def faulty(tmp_path) -> Path:
    """A checkpoint whose own code ignores the cache, in `tmp_path / "model"`."""
    folder = directory(tmp_path / "model")
    (folder / "modeling_gpt_scratch.py").rename(folder / "right.py")
    (folder / "modeling_gpt_scratch.py").write_text(FAULTY_CODE, encoding="utf-8")
    return folder


SCRIPT, FILE = ROOT / "scripts" / "verify_checkpoint.py", ROOT / "gpt_scratch" / "verify_checkpoint.py"


@pytest.mark.thorough
def test_the_script_runs_the_code_in_the_checkpoint(faulty):
    assert verify_checkpoint.verify_checkpoint(str(faulty)).status == EQUAL  # this package's code has no such fault
    done = run(SCRIPT, "model", "--trust_remote_code", cwd=faulty.parent)
    assert done.returncode == DIFFERENT and done.stdout == "" and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: model: does not reproduce the outputs stored when it was written")
    assert "no outputs with the cache: generate() continues with 1 of" in done.stderr
    assert "disagree about the cache" in done.stderr


@pytest.mark.slow
def test_the_script_and_the_file_alone(faulty):
    done = run(SCRIPT, "model", cwd=faulty.parent)
    assert done.returncode == EQUAL and done.stderr == "", done.stderr
    assert done.stdout.startswith("model: reproduces the outputs stored when it was written") and done.stdout.count("\n") == 1
    done = run(FILE, "model", "--trust_remote_code", cwd=faulty.parent)
    assert done.returncode == DIFFERENT and "disagree about the cache" in done.stderr and done.stderr.count("\n") == 1
    done = run(FILE, "model", cwd=faulty.parent)  # the package is not there, and the code is not trusted
    assert done.returncode == UNKNOWN
    assert (
        done.stderr
        == "error: model: needs code that is not installed: pass --trust_remote_code to run the code in the checkpoint\n"
    )
    (faulty / "right.py").rename(faulty / "modeling_gpt_scratch.py")
    for command in (SCRIPT, FILE):
        done = run(command, "model", "--trust_remote_code", cwd=faulty.parent)
        assert done.returncode == EQUAL and done.stderr == "" and done.stdout.startswith("model: reproduces the outputs"), (
            done.stderr
        )
    for status in (9, 0):
        (faulty / "modeling_gpt_scratch.py").write_text(f"import os; os._exit({status})", encoding="utf-8")
        done = run(SCRIPT, "model", "--trust_remote_code", cwd=faulty.parent)
        assert done.returncode == DIFFERENT and done.stderr == f"error: model: its code ended the process with status {status}\n"
