"""ONNX: the exported graph gives the model's logits in ONNX Runtime, in any shape and with padding."""

import shutil

import pytest
import torch
from old_releases import assert_old_releases_open
from safetensors.torch import load_file, save_file
from tiny_models import assert_equal, tiny_model
from transformers import AutoModelForCausalLM

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.export import onnx as onnx_export


@pytest.fixture
def runtime():
    for name in onnx_export.NEEDED:
        pytest.importorskip(name)


@pytest.mark.slow
@torch.no_grad()
def test_onnx_runtime_gives_the_models_logits(script, runtime, checkpoint, tmp_path, capsys):
    export = script("export")
    proof = export.main(export.parse(["onnx", str(checkpoint), str(tmp_path / "onnx")]))
    printed = capsys.readouterr().out
    assert "read back by:       ONNX Runtime" in printed and "between logits of up to" in printed
    assert proof["max_logit"] > 1 and proof["max_logit_difference"] < 1e-5 * proof["max_logit"]
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    session = onnx_export.open_session(tmp_path / "onnx")
    ids = torch.randint(1, 200, (5, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :60], mask[1, 7:] = 0, 0
    logits = onnx_export.run_session(session, {"input_ids": ids, "attention_mask": mask})
    assert_equal(logits[mask.bool()], model(ids, attention_mask=mask).logits[mask.bool()])
    assert_old_releases_open(tmp_path / "onnx")


@pytest.mark.slow
def test_a_classifier_is_exported_too(runtime, tmp_path):
    tiny_model("gpt2", GPTScratchForSequenceClassification, num_labels=3).save_pretrained(tmp_path / "model")
    proof = onnx_export.export_onnx(str(tmp_path / "model"), str(tmp_path / "onnx"))
    assert proof.max_logit_difference < 1e-5 * max(1, proof.max_logit)


@pytest.mark.slow
def test_a_graph_of_other_weights_is_refused_and_leaves_nothing(runtime, checkpoint, tmp_path, monkeypatch):
    write = onnx_export.write_onnx

    def write_wrongly(model, folder):
        other = tmp_path / "other"
        shutil.copytree(checkpoint, other)
        weights = load_file(other / "model.safetensors")
        weights["model.norm.weight"][0] += 0.01
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
        write(AutoModelForCausalLM.from_pretrained(other), folder)

    monkeypatch.setattr(onnx_export, "write_onnx", write_wrongly)
    with pytest.raises(UserError, match="verification failed: ONNX Runtime"):
        onnx_export.export_onnx(str(checkpoint), str(tmp_path / "onnx"))
    assert not (tmp_path / "onnx").exists()


def test_missing_packages_and_full_directories_are_refused_at_once(checkpoint, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r"ONNX needs onnx, onnxscript, onnxruntime: pip install \"gpt_scratch\[export\]\""):
            onnx_export.export_onnx(str(checkpoint), str(tmp_path / "onnx"))
    monkeypatch.setattr(onnx_export, "NEEDED", ())
    with pytest.raises(UserError, match="is the source, which is never replaced"):
        onnx_export.export_onnx(str(checkpoint), str(checkpoint))
