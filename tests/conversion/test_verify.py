"""The verification at the end of a conversion: a wrong conversion is detected, rounding is not mistaken for one."""

import pytest
from stock_models import gpt2, llama, saved
from tiny_models import tiny_model

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.verify_checkpoint import EQUAL, read_reference, verify_checkpoint, verify_model

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize("family", [gpt2, llama])
def test_a_wrong_weight_map_fails_the_verification(script, refused, tmp_path, monkeypatch, family):
    """A weight map that is wrong although all shapes fit is detected."""
    from gpt_scratch.conversion import hub_directories, weight_maps

    original = saved(family(), tmp_path / "original")
    name = "HF_GPT2" if family is gpt2 else "LLAMA"
    wrong = dict(getattr(weight_maps, name))
    swapped = ("h.{}.ln_1.bias", "h.{}.ln_2.bias") if family is gpt2 else (
        "model.layers.{}.mlp.gate_proj.weight", "model.layers.{}.mlp.up_proj.weight"
    )  # fmt: skip
    wrong[swapped[0]], wrong[swapped[1]] = wrong[swapped[1]], wrong[swapped[0]]
    monkeypatch.setattr(hub_directories, name, wrong)
    assert "verification failed: logits differ from those of" in refused(original)


@pytest.mark.thorough
def test_reference_outputs_are_those_of_the_model_that_was_converted(convert, refused, tmp_path, monkeypatch):
    """And not of the model that was written: a conversion that computes something else is refused, in both directions."""
    from gpt_scratch.conversion import convert as engine
    from gpt_scratch.conversion import verify

    ours = tiny_model("gpt2")
    ours.save_pretrained(tmp_path / "ours")
    stock = convert(tmp_path / "ours", "--to", "gpt2")
    written = read_reference(stock / "reference_outputs.json")
    assert verify_model(ours, written).status == EQUAL and written["batches"][1]["position_ids"] is not None
    again = convert(stock)
    assert read_reference(again / "reference_outputs.json")["prompts"][0]["continuation"] == written["prompts"][0]["continuation"]
    assert verify_checkpoint(str(stock)).status == verify_checkpoint(str(again)).status == EQUAL

    theirs = engine.foreign_config
    monkeypatch.setattr(engine, "foreign_config", lambda *args: change(theirs(*args), layer_norm_epsilon=1e-2))
    monkeypatch.setattr(verify, "TOLERANCE", 100.0)  # so that the first part of the verification passes
    line = refused(tmp_path / "ours", "--to", "gpt2")
    assert "verification failed: the converted checkpoint does not reproduce the outputs stored when it was written" in line
    assert "logits without padding differ by" in line


def change(config, **settings):
    config.update(settings)
    return config


def test_a_stock_classifier_without_a_pad_token_is_verified_row_by_row(convert, tmp_path, capsys):
    """transformers' own classes refuse to classify several rows then."""
    tiny_model("gpt2", GPTScratchForSequenceClassification, pad_token_id=None).save_pretrained(tmp_path / "ours")
    stock = convert(tmp_path / "ours", "--to", "gpt2")
    assert "reference outputs:  equal when loaded again\n" in capsys.readouterr().out
    assert read_reference(stock / "reference_outputs.json")["batches"] == []
    assert verify_checkpoint(str(stock)).status == EQUAL


@pytest.mark.thorough
def test_rounding_is_distinguished_from_a_wrong_conversion(convert, tmp_path, capsys, monkeypatch):
    """A difference beyond the tolerance in float32 is computed again in float64, without rounding."""
    from gpt_scratch.conversion import verify

    original = saved(gpt2(), tmp_path / "original")
    monkeypatch.setattr(verify, "TOLERANCE", 1e-12)
    convert(original)
    assert "in float32; " in capsys.readouterr().out
