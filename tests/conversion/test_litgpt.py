"""litgpt's checkpoints, against its model in plain torch."""

from pathlib import Path

import pytest
import torch
import yaml
from converted import check_language_model, enlarge
from litgpt_model import LITGPT, LitGPT, as_older_litgpt

from gpt_scratch.conversion.litgpt import litgpt_settings

pytestmark = pytest.mark.thorough

VARIANTS = {
    "llama": {},
    "window": {"sliding_window_size": 5},
    "gpt-neox mlp": {"mlp_class_name": "GptNeoxMLP", "norm_class_name": "LayerNorm", "bias": True, "n_query_groups": 4},
    "qwen3": {"norm_qk": True, "head_size": 10, "norm_eps": 1e-2},
    "qwen2": {"attn_bias": True, "lm_head_bias": True},
}


def lit_folder(folder, state, settings):
    folder.mkdir()
    torch.save({"model": state}, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.quick_cases("qwen3-False")
def test_litgpt(convert, tmp_path, name, older):
    reference = enlarge(LitGPT(**VARIANTS[name]))
    state = as_older_litgpt(reference) if older else reference.state_dict()
    folder = lit_folder(tmp_path / "lit", state, reference.settings)
    model = check_language_model(convert(folder), reference, vocabulary=64)
    assert model.config.sliding_window == VARIANTS[name].get("sliding_window_size")


def test_pythia_is_refused_by_each_of_its_settings(refused, tmp_path):
    settings = LITGPT | {
        "parallel_residual": True,
        "rotary_percentage": 0.25,
        "tomorrow": 1,
        "mlp_class_name": "LLaMAMoE",
        "n_expert": 4,
    }
    folder = lit_folder(tmp_path / "pythia", LitGPT().state_dict(), settings)
    message = refused(folder)
    for words in (
        "parallel_residual=True (it must be False)",
        "rotary_percentage=0.25",
        "tomorrow is unknown",
        "LLaMAMoE",
        "n_expert=4",
    ):
        assert words in message
    (folder / "model_config.yaml").write_text(yaml.safe_dump(LITGPT | {"name": "Gemma-9b"}), encoding="utf-8")
    assert "name='Gemma-9b' (litgpt adds 1 to the norms' weights of models with Gemma in their name)" in refused(folder)
    (folder / "model_config.yaml").write_text("{", encoding="utf-8")
    assert "model_config.yaml cannot be read as YAML" in refused(folder)
    (folder / "model_config.yaml").unlink()
    assert "model_config.yaml is missing" in refused(folder / "lit_model.pth")


def test_settings_have_the_same_meaning():
    def settings(**changes):
        return litgpt_settings(LITGPT | changes, Path("model_config.yaml"))

    plain = {"rope_type": "default", "rope_theta": 5000.0}
    assert settings()["rope_parameters"] == plain and settings()["hidden_act"] == "silu"
    assert settings(rope_condense_ratio=4)["rope_parameters"] == plain | {"rope_type": "linear", "factor": 4.0}
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = settings(rope_adjustments=factors | {"original_max_seq_len": 8192})["rope_parameters"]
    assert scaled == plain | factors | {"rope_type": "llama3", "original_max_position_embeddings": 8192}
    for approximation, activation in (("tanh", "gelu_new"), ("none", "gelu")):
        assert settings(mlp_class_name="GptNeoxMLP", gelu_approximate=approximation)["hidden_act"] == activation
    window = {"sliding_window_size": 5, "sliding_window_indices": [1, 1]}
    assert settings(**window)["sliding_window"] == 5
