"""GPTScratchConfig: published parameter counts, the names it understands, JSON, and what it refuses."""

import json
import logging

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoConfig, GPT2Config

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.configuration_gpt_scratch import VERSION, GPTScratchConfigError

BOOK_124M = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
OPENAI_SIZES = {  # emb_dim, n_layers, n_heads
    "124M": (768, 12, 12),
    "355M": (1024, 24, 16),
    "774M": (1280, 36, 20),
    "1558M": (1600, 48, 25),
}


def count_parameters(**settings) -> int:
    with torch.device("meta"):
        model = GPTScratchForCausalLM(GPTScratchConfig(**settings))
    return sum(parameter.numel() for parameter in model.parameters())  # a tied tensor counts once


@pytest.mark.parametrize(
    "size, untied_qkv_bias, untied, tied_qkv_bias",
    [
        ("124M", 163_037_184, 163_009_536, 124_439_808),
        ("355M", 406_286_336, 406_212_608, 354_823_168),
        ("774M", 838_359_040, 838_220_800, 774_030_080),
        ("1558M", 1_638_022_400, 1_637_792_000, 1_557_611_200),
    ],
)
def test_parameter_counts_are_the_published_ones(size, untied_qkv_bias, untied, tied_qkv_bias):
    emb_dim, n_layers, n_heads = OPENAI_SIZES[size]
    sizes = {"emb_dim": emb_dim, "n_layers": n_layers, "n_heads": n_heads}
    assert count_parameters(**sizes, tie_word_embeddings=False, qkv_bias=True) == untied_qkv_bias
    assert count_parameters(**sizes, tie_word_embeddings=False) == untied
    assert count_parameters(**sizes, qkv_bias=True) == tied_qkv_bias


def test_defaults_are_gpt2_small_without_qkv_bias():
    assert count_parameters() == count_parameters(**BOOK_124M) == 124_412_160
    assert count_parameters(context_length=256, tie_word_embeddings=False) == 162_419_712  # the book's model.pth


def test_book_dict_as_is():
    config = GPTScratchConfig(**{**BOOK_124M, "context_length": 256, "emb_dim": 96, "n_layers": 3, "drop_rate": 0.2})
    assert (config.max_position_embeddings, config.hidden_size, config.num_attention_heads) == (256, 96, 12)
    assert (config.num_hidden_layers, config.head_dim, config.intermediate_size) == (3, 8, 384)
    assert config.embedding_dropout == config.attention_dropout == config.residual_dropout == config.drop_rate == 0.2
    assert (config.context_length, config.emb_dim, config.n_heads, config.n_layers) == (256, 96, 12, 3)


def test_gpt2_names_as_a_gpt2_config_writes_them():
    gpt2 = GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=128, vocab_size=99, resid_pdrop=0.3, attn_pdrop=0.2)
    config = GPTScratchConfig(**{name: value for name, value in gpt2.to_dict().items() if name in GPTScratchConfig.attribute_map})
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (48, 2, 4)
    assert (config.max_position_embeddings, config.intermediate_size, config.hidden_act) == (128, 192, "gelu_new")
    assert (config.embedding_dropout, config.attention_dropout, config.residual_dropout) == (0.1, 0.2, 0.3)
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.n_ctx) == (48, 2, 4, 128, 128)
    assert config.drop_rate is None  # the three differ


def test_names_stay_settable():
    config = GPTScratchConfig()
    config.drop_rate = 0.0
    config.context_length = 512
    assert (config.attention_dropout, config.residual_dropout, config.max_position_embeddings) == (0.0, 0.0, 512)


def test_defaults_follow_from_the_given_settings():
    plain = GPTScratchConfig(hidden_size=96, num_attention_heads=4)
    assert (plain.num_key_value_heads, plain.head_dim, plain.intermediate_size) == (4, 24, 384)
    gated = GPTScratchConfig(hidden_size=768, num_attention_heads=12, num_key_value_heads=4, mlp_type="gated", head_dim=32)
    assert (gated.num_key_value_heads, gated.head_dim, gated.intermediate_size) == (4, 32, 2048)  # 8/3 * 768
    assert GPTScratchConfig(hidden_size=100, num_attention_heads=4, mlp_type="gated").intermediate_size == 320  # 266.7 up


def test_end_of_text_exists_only_where_the_vocabulary_holds_it():
    assert GPTScratchConfig().eos_token_id == GPTScratchConfig(vocab_size=50257).bos_token_id == 50256
    small = GPTScratchConfig(vocab_size=1000)
    assert small.eos_token_id is None and small.bos_token_id is None
    assert GPTScratchConfig(vocab_size=1000, eos_token_id=[5, 6]).eos_token_id == [5, 6]


@pytest.mark.parametrize(
    "settings",
    [
        BOOK_124M,
        {"n_embd": 48, "n_head": 4, "tie_word_embeddings": False, "initialization": "pytorch", "num_labels": 3},
        {
            "position_embedding_type": "rope",
            "norm_type": "rmsnorm",
            "mlp_type": "gated",
            "hidden_act": "silu",
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 1024,
            },
        },
    ],
)
def test_json_round_trip(settings, tmp_path):
    config = GPTScratchConfig(**settings)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is GPTScratchConfig
    origin = {"_name_or_path", "transformers_version"}
    assert {k: v for k, v in loaded.to_dict().items() if k not in origin} == {
        k: v for k, v in config.to_dict().items() if k not in origin
    }
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert written["model_type"] == "gpt_scratch"
    assert not set(written) & {*GPTScratchConfig.attribute_map, "drop_rate"}  # standard names only
    assert written["auto_map"] == {
        "AutoConfig": "configuration_gpt_scratch.GPTScratchConfig",
        "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
        "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
        "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
    }


def test_overrides_when_loading(tmp_path):
    GPTScratchConfig(drop_rate=0.1).save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, drop_rate=0.0, num_labels=5)
    assert (config.residual_dropout, config.num_labels) == (0.0, 5)


ROPE = {"position_embedding_type": "rope"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope(**parameters) -> dict:
    return {**ROPE, "rope_parameters": parameters}


@pytest.mark.parametrize(
    "settings, words",  # the message holds the field, the value and the reason
    [
        ({"hidden_size": 65}, ["hidden_size 65", "num_attention_heads 12", "equal width"]),
        ({"n_embd": 64, "n_head": 5}, ["hidden_size 64", "num_attention_heads 5"]),
        ({"vocab_size": 0}, ["vocab_size is 0", "at least 1"]),
        ({"vocab_size": -3}, ["vocab_size is -3"]),
        ({"hidden_size": 0}, ["hidden_size is 0"]),
        ({"n_heads": 0}, ["num_attention_heads is 0"]),
        ({"n_layers": 0}, ["num_hidden_layers is 0"]),
        ({"context_length": 0}, ["max_position_embeddings is 0"]),
        ({"intermediate_size": 0}, ["intermediate_size is 0"]),
        ({"head_dim": 0}, ["head_dim is 0"]),
        ({"num_labels": 0}, ["num_labels is 0"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads is 0"]),
        ({"num_key_value_heads": 5}, ["num_attention_heads 12", "num_key_value_heads 5", "equal group"]),
        ({"num_key_value_heads": 24}, ["num_attention_heads 12", "num_key_value_heads 24"]),
        ({"drop_rate": 1.5}, ["dropout is 1.5", "[0, 1)"]),
        ({"attention_dropout": 1}, ["attention_dropout is 1", "[0, 1)"]),
        ({"resid_pdrop": -0.1}, ["residual_dropout is -0.1"]),
        ({"embedding_dropout": float("nan")}, ["embedding_dropout is nan"]),
        ({"norm_eps": -1e-5}, ["norm_eps is -1e-05", "not negative"]),
        ({"norm_eps": float("inf")}, ["norm_eps is inf", "finite"]),
        ({"initializer_range": 0.0}, ["initializer_range is 0.0", "(0, 10)"]),
        ({"initializer_range": 20}, ["initializer_range is 20"]),
        ({"hidden_act": "gellu"}, ["hidden_act is 'gellu'", "unknown activation", "gelu_new"]),
        ({"activation_function": "gellu"}, ["hidden_act is 'gellu'"]),
        ({"position_embedding_type": "alibi"}, ["position_embedding_type is 'alibi'", "learned, rope"]),
        ({"norm_type": "batchnorm"}, ["norm_type is 'batchnorm'", "layernorm, rmsnorm"]),
        ({"mlp_type": "moe"}, ["mlp_type is 'moe'", "plain, gated"]),
        ({"initialization": "xavier"}, ["initialization is 'xavier'", "gpt2, gpt2_zero, pytorch"]),
        ({"problem_type": "ranking"}, ["problem_type is 'ranking'", "regression"]),
        # contradictions
        ({"emb_dim": 32, "n_embd": 64}, ["n_embd=64", "emb_dim=32", "hidden_size"]),
        ({"emb_dim": 48, "hidden_size": 96}, ["emb_dim=48", "hidden_size=96"]),
        ({"n_ctx": 512, "n_positions": 1024}, ["n_ctx=512", "n_positions=1024"]),
        ({"drop_rate": 0.1, "embd_pdrop": 0.2}, ["drop_rate=0.1", "embd_pdrop=0.2"]),
        ({"drop_rate": 0.2, "residual_dropout": 0.3}, ["drop_rate=0.2", "residual_dropout=0.3"]),
        # rotary settings
        ({"rope_theta": 5e5}, ["rope_theta", "position_embedding_type is 'learned'"]),
        ({"rope_parameters": {"rope_theta": 1e4}}, ["rope_parameters", "position_embedding_type is 'learned'"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ["rope_scaling", "position_embedding_type is 'learned'"]),
        ({**ROPE, "hidden_size": 20, "n_heads": 4}, ["head_dim is 5", "even"]),
        (rope(rope_type="longrope", factor=8.0), ["rope_type is 'longrope'", "default, linear, dynamic, yarn, llama3"]),
        (rope(rope_type="yarn", factor=8.0), ["no original_max_position_embeddings", "'yarn'"]),
        (rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=8, mscale=0.7), ["mscale is 0.7", "beta_slow"]),
        (rope(rope_type="yarn", factor=8.0, original_max_position_embeddings=8, beta_fast="x"), ["beta_fast is 'x'", "above 0"]),
        (rope(rope_type="dynamic"), ["no factor", "'dynamic'"]),
        (rope(rope_type="linear"), ["no factor", "'linear' needs rope_theta, factor"]),
        (rope(rope_type="linear", factor="2"), ["factor is '2'", "number above 0"]),
        (rope(rope_type="linear", factor=0.5), ["factor is 0.5", "at least 1"]),
        (rope(**{**LLAMA3, "factor": None}), ["factor is None"]),
        (rope(rope_type="llama3", factor=8.0), ["no low_freq_factor", "'llama3' needs"]),
        (rope(**{**LLAMA3, "low_freq_factor": 4.0}), ["high_freq_factor 4.0", "low_freq_factor 4.0"]),
        (rope(rope_theta=-1.0), ["rope_theta is -1.0"]),
        (rope(rope_theta=1e4, factor=2.0), ["factor is 2.0", "'default' knows only rope_theta"]),
        (rope(rope_theta=1e4, partial_rotary_factor=0.5), ["partial_rotary_factor is 0.5"]),
        ({**ROPE, "partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
    ],
)
def test_impossible_values_are_refused_with_value_and_reason(settings, words):
    with pytest.raises(GPTScratchConfigError) as error:
        GPTScratchConfig(**settings)
    message = str(error.value)
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"hidden_size": "64"}, ["hidden_size", "'64'", "int"]),
        ({"hidden_size": 64.0}, ["hidden_size", "64.0"]),
        ({"vocab_size": True}, ["vocab_size", "True"]),
        ({"n_layers": "2"}, ["num_hidden_layers", "'2'"]),
        ({"emb_dim": None}, ["hidden_size", "None"]),
        ({"drop_rate": "0.1"}, ["dropout", "'0.1'"]),
        ({"qkv_bias": 1}, ["qkv_bias", "1", "bool"]),
        ({"hidden_act": 3}, ["hidden_act", "3"]),
        ({"rope_parameters": "linear", **ROPE}, ["rope_parameters", "'linear'", "dict"]),
        ({"eos_token_id": "</s>"}, ["eos_token_id", "'</s>'"]),
    ],
)
def test_wrong_types_are_refused(settings, words):
    with pytest.raises(GPTScratchConfigError) as error:
        GPTScratchConfig(**settings)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_value_changed_later_is_refused_when_saved(tmp_path):
    config = GPTScratchConfig()
    config.hidden_size = "64"
    with pytest.raises(GPTScratchConfigError, match="hidden_size"):
        config.save_pretrained(tmp_path)
    config.hidden_size, config.hidden_act = 64, "gellu"
    with pytest.raises(GPTScratchConfigError, match="gellu"):
        config.save_pretrained(tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "written_by, extra, outcome",
    [
        (None, {}, "nothing"),  # release 0.1.0 wrote none
        ("0.1.0", {}, "nothing"),
        (VERSION, {"colour": "red"}, "nothing"),
        ("99.0.0", {}, "warning"),
        ("99.0.0", {"attention_sinks": 8}, "error"),
        (3, {}, "error"),
    ],
)
def test_a_configuration_of_a_newer_release_is_refused_as_such(written_by, extra, outcome, caplog, monkeypatch):
    monkeypatch.setattr("gpt_scratch.configuration_gpt_scratch.logger", logging.getLogger("seen"))
    settings = {**GPTScratchConfig().to_dict(), **extra, "gpt_scratch_version": written_by}
    if outcome == "error":
        with pytest.raises(GPTScratchConfigError, match="attention_sinks: upgrade the package|gpt_scratch_version is 3"):
            GPTScratchConfig(**settings)
        return
    assert GPTScratchConfig(**settings).to_dict()["gpt_scratch_version"] == VERSION
    assert ("gpt_scratch 99.0.0, newer than" in caplog.text) == (outcome == "warning")


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"hidden_act": "gellu"}, "gellu"),
        ({"attention_dropout": 1.5}, "1.5"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
    ],
)
def test_a_value_changed_later_is_refused_when_a_model_is_built(changes, word, tmp_path):
    model = tiny_model("gpt2")
    model.save_pretrained(tmp_path)
    with pytest.raises(GPTScratchConfigError, match=word):
        GPTScratchForCausalLM.from_pretrained(tmp_path, **changes)


def test_the_sharding_plan_names_the_layers_there_are():
    for style in ("gpt2", "llama"):
        config = tiny_model(style).config
        names = {name for name, _ in tiny_model(style).model.named_parameters()}
        assert {plan.replace("*", "0") + ".weight" for plan in config.base_model_tp_plan} <= names
        assert ("layers.*.mlp.gate_proj" in config.base_model_tp_plan) == (style == "llama")
        assert "base_model_tp_plan" not in config.to_dict()
