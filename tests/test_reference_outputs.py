"""The outputs that are written beside a model: exact, without traces of the machine; a file of another form is refused."""

import copy
import math
import socket
from pathlib import Path

import pytest
import torch
from faulty_models import (
    IgnoresTheCache,
    IgnoresTheMask,
    directory,
    expected,
    fault,
)

from gpt_scratch import GPTScratchForCausalLM, verify_checkpoint
from gpt_scratch.reference_outputs import reference_outputs, save_reference_outputs
from gpt_scratch.verify_checkpoint import UNKNOWN


@pytest.mark.parametrize("cls", [IgnoresTheCache, IgnoresTheMask])
def test_no_fault_of_the_cache_or_of_a_mask_gets_into_the_reference(cls):
    assert reference_outputs(fault(cls, "gpt2"), "float32") == expected("gpt2")


def test_the_file_is_small_and_says_nothing_about_the_machine(tmp_path, monkeypatch):
    text = (directory(tmp_path) / "reference_outputs.json").read_text(encoding="utf-8")
    assert len(text) < 5000
    assert not any(name in text for name in ("/", str(tmp_path), socket.gethostname(), Path.home().name))


def test_products_are_exact_although_training_allows_others():
    class Watches(GPTScratchForCausalLM):
        def forward(self, *args, attention_mask=None, **kwargs):
            assert torch.get_float32_matmul_precision() == "highest"
            return super().forward(*args, attention_mask=attention_mask, **kwargs)

    torch.set_float32_matmul_precision("medium")
    try:
        reference_outputs(fault(Watches, "gpt2"), "float32")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_logits_that_are_not_finite_are_not_written():
    model = fault(GPTScratchForCausalLM, "gpt2")
    model.lm_head.weight.data[3] = math.nan
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        reference_outputs(model, "float32")


def set_to(*path, value):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


BROKEN = [
    (set_to("format", value=2), "has format 2, but this version reads 1: upgrade it"),
    (set_to("format", value=[1]), "has format [1], but"),
    (lambda content: content.pop("head"), "reference_outputs.json: key 'head' is missing"),
    (lambda content: content.pop("format"), "reference_outputs.json: key 'format' is missing"),
    (set_to("notes", value=1), "reference_outputs.json: key 'notes' is unknown"),
    (set_to("head", value=["lm"]), "reference_outputs.json: head has the wrong form"),
    (set_to("date", value="2026\n\x1b[31m"), "reference_outputs.json: date has the wrong form"),
    (set_to("versions", value={}), "reference_outputs.json: versions: key 'gpt_scratch' is missing"),
    (set_to("versions", "torch", value=2), "versions: torch has the wrong form"),
    (set_to("largest_logit", value=math.nan), "largest_logit has the wrong form"),
    (set_to("prompts", value=[]), "prompts has the wrong form"),
    (set_to("prompts", 1, value=7), "prompts has the wrong form"),
    (set_to("prompts", 1, "input_ids", value=[1, -1]), "prompt 1: input_ids has the wrong form"),
    (set_to("prompts", 1, "input_ids", value=[1] * 5000), "prompt 1: input_ids has the wrong form"),
    (set_to("prompts", 1, "input_ids", value=[True]), "prompt 1: input_ids has the wrong form"),
    (set_to("prompts", 2, "continuation", value=[1]), "prompt 2: expected one row for each token"),
    (set_to("prompts", 0, "top_logits", value=[[1.0]] * 8), "prompt 0: top_ids and top_logits have different shapes"),
    (set_to("prompts", 0, "top_logits", 1, value=[1.0]), "prompt 0: top_logits has the wrong form"),
    (set_to("prompts", 0, "top_ids", value=[]), "prompt 0: top_ids has the wrong form"),
    (set_to("batches", value=[None]), "batch 0 is not an object"),
    (set_to("batches", 1, "attention_mask", 0, 0, value=2), "batch 1: attention_mask has the wrong form"),
    (set_to("batches", 1, "input_ids", value=[[1]]), "batch 1: the tables must have the same shape"),
    (set_to("batches", 0, "position_ids", value=[[1]]), "batch 0: the tables must have the same shape"),
]


@pytest.mark.parametrize(("change", "line"), BROKEN)
def test_a_file_of_another_form(tmp_path, change, line):
    content = copy.deepcopy(expected("gpt2"))
    change(content)
    save_reference_outputs(tmp_path, content)
    verdict = verify_checkpoint.verify_checkpoint(str(tmp_path))
    assert verdict.status == UNKNOWN and line in verdict.line and "\n" not in verdict.line


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\xff", "9" * 5000])
def test_a_file_that_is_no_json_object(tmp_path, text):
    (tmp_path / "reference_outputs.json").write_text(text, encoding="latin1")
    verdict = verify_checkpoint.verify_checkpoint(str(tmp_path))
    assert verdict.status == UNKNOWN and verdict.line.startswith("reference_outputs.json is not")
    (tmp_path / "reference_outputs.json").write_text(" " * (2**20 + 1), encoding="utf-8")
    assert "has 1,048,577 bytes" in verify_checkpoint.verify_checkpoint(str(tmp_path)).line
