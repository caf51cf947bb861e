"""Checkpoints as earlier releases wrote them, opened by today's package and by the code that lies beside their weights.

`tests/fixtures/make_checkpoints.py` says how they were made and how a release adds its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_models import assert_equal
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification

TESTS = Path(__file__).parent
RELEASES = sorted((TESTS / "fixtures" / "checkpoints").iterdir())
CHECKPOINTS = pytest.mark.parametrize(
    "folder", [f for r in RELEASES for f in sorted(r.iterdir())], ids=lambda f: f"{f.parent.name}-{f.name}"
)


def open_with_this_package(folder: Path):
    """The model, all tensors accounted for, and what it should compute."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    auto = AutoModelForCausalLM if "greedy" in expected else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model) in (GPTScratchForCausalLM, GPTScratchForSequenceClassification)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model, expected


@torch.no_grad()
def assert_computes(model, tokenizer, expected: dict) -> None:
    """Each row alone and all rows padded on the left; greedy tokens, with the padded rows."""
    logits = torch.tensor(expected["logits"])
    assert [tokenizer(prompt)["input_ids"] for prompt in expected["prompts"]] == expected["ids"]
    batch = tokenizer(expected["prompts"], padding=True, padding_side="left", return_tensors="pt")
    outputs = [model(torch.tensor([row])).logits for row in expected["ids"]] + [model(**batch).logits]
    assert_equal(torch.cat([output[:, -1] if output.ndim == 3 else output for output in outputs]), torch.cat((logits, logits)))
    if "greedy" in expected:
        count = len(expected["greedy"][0])
        assert model.generate(**batch, max_new_tokens=count, do_sample=False)[:, -count:].tolist() == expected["greedy"]


@CHECKPOINTS
def test_this_package_computes_what_an_old_checkpoint_did(folder):
    model, expected = open_with_this_package(folder)
    assert_computes(model, AutoTokenizer.from_pretrained(folder), expected)


@CHECKPOINTS
def test_an_old_checkpoint_saved_again_is_the_same_model(folder, tmp_path):
    model, expected = open_with_this_package(folder)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert_computes(type(model).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path), expected)


@CHECKPOINTS
def test_each_setting_of_an_old_configuration_is_read(folder):
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config = AutoConfig.from_pretrained(folder)
    assert type(config) is GPTScratchConfig
    renamed_by_transformers = {
        "architectures",
        "auto_map",
        "dtype",
        "transformers_version",
        "id2label",
    }  # id2label: its keys become numbers
    for name in written.keys() - renamed_by_transformers:
        assert getattr(config, name) == written[name], name
    if "id2label" in written:
        assert {str(id): label for id, label in config.id2label.items()} == written["id2label"]


@CHECKPOINTS
def test_the_body_of_an_old_checkpoint_opens_by_itself(folder):
    model, expected = open_with_this_package(folder)
    body, row = AutoModel.from_pretrained(folder), torch.tensor([expected["ids"][0]])
    with torch.no_grad():
        assert torch.equal(body(row).last_hidden_state, model.model(row).last_hidden_state)


def own_code_outcomes(tmp_path) -> dict[str, str]:
    results = tmp_path / "results.json"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "versions" / "check_old_checkpoints.py"), str(results)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(results.read_text(encoding="utf-8"))


@pytest.mark.thorough
def test_old_checkpoints_open_by_their_own_code(tmp_path):
    outcomes = own_code_outcomes(tmp_path)
    assert len(outcomes) == len(RELEASES)
    assert all(outcome == "ok" or outcome.startswith("-: ") for outcome in outcomes.values()), outcomes
    if all(outcome != "ok" for outcome in outcomes.values()):
        pytest.skip(f"{outcomes}; `make test-versions-quick` installs a transformers that it runs on")
