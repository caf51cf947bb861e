"""Stock checkpoints in every layout: this transformers' own classes compute the same, whichever release's names they read from config.json.

Other releases read the same files in `tests/versions`.
"""

import json
import shutil
from pathlib import Path

import check_stock_layouts
import pytest
import torch
import yaml
from stock_checkpoints import CASES, write
from stock_models import ids
from tiny_models import assert_equal, tiny_config, tiny_model
from transformers import (
    AutoModelForCausalLM,
)

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.conversion.convert import parameters_of
from gpt_scratch.conversion.stock_layouts import CLASSES, LAYOUTS, foreign_config
from gpt_scratch.errors import UserError

pytestmark = pytest.mark.thorough

NEW_NAMES, OLD_NAMES = ("rope_parameters", "dtype"), ("rope_theta", "rope_scaling", "torch_dtype")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Every case, and what our model computes of it: path of the folder, contents of `expected.json`."""
    path = write(tmp_path_factory.mktemp("stock"))
    return path.parent, json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def check():
    """`check` of the file that other releases run."""
    return check_stock_layouts.check


def without(folder: Path, names: tuple[str, ...], copy: Path) -> Path:
    shutil.copytree(folder, copy)
    values = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps({k: v for k, v in values.items() if k not in names}), encoding="utf-8")
    return copy


def test_there_is_a_case_for_every_layout():
    assert {layout for layout, _ in CASES.values()} == set(LAYOUTS)


@pytest.mark.parametrize("name", CASES)
def test_stock_classes_compute_the_same_from_either_names(name, written, check, tmp_path):
    folder, expected = written
    check(folder / name, expected[name])
    check(without(folder / name, NEW_NAMES, tmp_path / "old"), expected[name])
    check(without(folder / name, OLD_NAMES, tmp_path / "new"), expected[name])


@pytest.mark.parametrize("name", ["llama-theta", "llama-linear", "llama-llama3", "llama-classifier"])
def test_the_check_detects_rotary_settings_that_are_not_read(name, written, check, tmp_path):
    folder, expected = written
    broken = without(folder / name, ("rope_parameters", "rope_theta", "rope_scaling"), tmp_path / "broken")
    with pytest.raises(AssertionError, match="logits differ"):
        check(broken, expected[name])


def test_all_settings_that_cannot_be_expressed_are_named():
    with pytest.raises(UserError) as error:
        foreign_config(tiny_config("llama", num_key_value_heads=4, qk_norm=True), "gpt2", "lm")
    assert str(error.value) == (
        "gpt2 cannot express position_embedding_type='rope' (it needs 'learned'), norm_type='rmsnorm' (it needs 'layernorm'), "
        "mlp_type='gated' (it needs 'plain'), qk_norm=True (it needs False); qwen3 can express all of them"
    )


def test_the_nearest_layout_is_named_with_what_differs_there():
    """The package's fastest recipe: a plain MLP with biases, which GPT-2 alone has, on rotary positions and normed queries."""
    modern = tiny_config(
        "gpt2", position_embedding_type="rope", norm_type="rmsnorm", qk_norm=True, hidden_act="relu2", qkv_bias=False
    )

    def refusal(config, layout):
        with pytest.raises(UserError) as error:
            foreign_config(config, layout, "lm")
        return str(error.value)

    assert refusal(modern, "mistral").endswith(
        "mlp_type='plain' (it needs 'gated'), o_bias=True (it needs False), mlp_bias=True (it needs False), qk_norm=True (it needs False); "
        "the nearest layout is gpt2, where 3 settings differ: position_embedding_type, norm_type, qk_norm"
    )
    assert refusal(modern, "gpt2").endswith("no other layout is nearer: 3 settings differ")
    modern.o_bias = modern.mlp_bias = False
    assert refusal(modern, "gpt2").endswith("the nearest layout is qwen3, where 1 setting differs: mlp_type")
    modern.mlp_type = "gated"
    assert foreign_config(modern, "qwen3", "lm").model_type == "qwen3"


@pytest.mark.parametrize("folder", ["tiny_shakespeare", "wikitext2"])
def test_the_portable_recipes_fit_qwen3_and_its_gguf(folder):
    from gpt_scratch.export.gguf import obstacles_of, target_of

    def config_of(name):
        recipe = Path(__file__).parents[2] / "scripts" / "configs" / folder / f"{name}.yaml"
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        return GPTScratchConfig(vocab_size=values["vocab_size"], **values["config_overrides"])

    portable, modern = config_of("modern_portable"), config_of("modern")
    assert target_of(portable) == "qwen3" and not obstacles_of(portable, "qwen3")
    assert obstacles_of(modern, "qwen3").keys() == {"mlp_type", "o_bias", "mlp_bias", "hidden_act"}
    sizes = [sum(p.numel() for p in parameters_of(config, "lm").values()) for config in (portable, modern)]
    assert abs(sizes[0] / sizes[1] - 1) < 0.01


def test_a_value_that_transformers_refuses_is_named():
    with pytest.raises(UserError, match="llama cannot express a setting: .*initializer_range"):
        foreign_config(tiny_config("llama", initializer_range=2.0), "llama", "lm")


OWN = {
    "gpt2": ("gpt2", {"qkv_bias": False, "o_bias": False, "mlp_bias": False}),
    "llama": ("llama", {}),
    "mistral": ("llama", {"sliding_window": 5}),
    "qwen2": ("llama", {}),
    "qwen3": ("llama", {"qk_norm": True, "head_dim": 10}),
}


@pytest.mark.parametrize("target", OWN)
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
@pytest.mark.quick_cases("True-qwen3")
def test_models_trained_here_become_stock_models(convert, tmp_path, target, tied):
    """What was trained here; for GPT-2 and Qwen 2 also without query, key and value biases, which become zeros."""
    style, settings = OWN[target]
    settings = settings | {"tie_word_embeddings": tied}
    model = tiny_model(style, **settings)
    model.save_pretrained(tmp_path / "ours")
    stock = AutoModelForCausalLM.from_pretrained(convert(tmp_path / "ours", "--to", target))
    assert type(stock).__name__ == CLASSES[target, "lm"]
    assert_equal(stock(ids()).logits, model(ids()).logits)
    assert stock.config.tie_word_embeddings == tied


CANNOT_GO = {
    "rope to gpt2": ("llama", {}, "gpt2", "position_embedding_type='rope'"),
    "rmsnorm to gpt2": ("gpt2", {"norm_type": "rmsnorm"}, "gpt2", "norm_type='rmsnorm'"),
    "gated to gpt2": ("gpt2", {"mlp_type": "gated"}, "gpt2", "mlp_type='gated'"),
    "grouped to gpt2": ("gpt2", {"num_key_value_heads": 2}, "gpt2", "num_key_value_heads=2"),
    "head_dim to gpt2": ("gpt2", {"head_dim": 10}, "gpt2", "head_dim=10"),
    "learned to llama": ("gpt2", {}, "llama", "position_embedding_type='learned'"),
    "layernorm to llama": ("llama", {"norm_type": "layernorm"}, "llama", "norm_type='layernorm'"),
    "plain to llama": ("llama", {"mlp_type": "plain"}, "llama", "mlp_type='plain'"),
    "output bias to llama": ("llama", {"o_bias": True}, "llama", "o_bias=True"),
    "normed queries to llama": ("llama", {"qk_norm": True}, "llama", "qk_norm=True"),
    "window to llama": ("llama", {"sliding_window": 31}, "llama", "sliding_window=31"),
    "window to gpt2": ("gpt2", {"sliding_window": 31}, "gpt2", "sliding_window=31"),
    "window to qwen2": ("llama", {"sliding_window": 31}, "qwen2", "sliding_window=31"),
    "window to qwen3": ("llama", {"sliding_window": 31, "qk_norm": True}, "qwen3", "sliding_window=31"),
    "no normed queries to qwen3": ("llama", {}, "qwen3", "qk_norm=False"),
    "head_dim to qwen2": ("llama", {"head_dim": 10}, "qwen2", "head_dim=10"),
    "biases to mistral": ("llama", {"qkv_bias": True}, "mistral", "qkv_bias=True"),
    "mlp biases to qwen3": ("llama", {"qk_norm": True, "mlp_bias": True}, "qwen3", "mlp_bias=True"),
    "head bias to gpt2": ("gpt2", {"lm_head_bias": True}, "gpt2", "lm_head_bias=True"),
    "dropout to llama": ("llama", {"residual_dropout": 0.1}, "llama", "residual_dropout=0.1"),
}


@pytest.mark.parametrize("name", CANNOT_GO)
def test_settings_that_a_stock_model_cannot_express_are_named(refused, tmp_path, name):
    style, settings, target, words = CANNOT_GO[name]
    GPTScratchForCausalLM(tiny_config(style, **settings)).save_pretrained(tmp_path / "ours")
    assert f"{target} cannot express {words}" in refused(tmp_path / "ours", "--to", target)
