"""GPT-2 and the Llama family of transformers, both ways, against transformers' own classes."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_models import GPT2, LLAMA, gpt2, ids, saved
from tiny_models import assert_equal, tiny_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3ForSequenceClassification,
)

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.formats import recognize
from gpt_scratch.errors import UserError

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 8}

GPT2_DROPOUT = {"resid_pdrop": 0.2, "embd_pdrop": 0.05, "attn_pdrop": 0.3}

LANGUAGE_MODELS = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, **GPT2_DROPOUT)),
    "gpt2-untied": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, tie_word_embeddings=False)),
    "gpt2-n_inner-gelu": lambda: GPT2LMHeadModel(
        GPT2Config(**GPT2, n_inner=40, activation_function="gelu", layer_norm_epsilon=1e-3)
    ),
    "llama2": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_key_value_heads": 4}, rms_norm_eps=1e-3)),
    "llama3": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, rope_parameters=LLAMA3_ROPE)),
    "llama-yarn": lambda: LlamaForCausalLM(
        LlamaConfig(
            **LLAMA,
            rope_parameters=YARN,
        )
    ),
    "llama-linear": lambda: LlamaForCausalLM(
        LlamaConfig(**LLAMA, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0})
    ),
    "llama-biases-head_dim": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, attention_bias=True, mlp_bias=True, head_dim=10)),
    "smollm2": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA, tie_word_embeddings=True)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=None)),
    "mistral-wide-window": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=64)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**LLAMA, sliding_window=5, head_dim=10)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, rope_parameters={"rope_type": "default", "rope_theta": 1e6})),
    "qwen2-tied": lambda: Qwen2ForCausalLM(Qwen2Config(**LLAMA, tie_word_embeddings=True, attention_dropout=0.1)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**LLAMA, head_dim=10, rms_norm_eps=1e-3)),
    "qwen3-biases-yarn": lambda: Qwen3ForCausalLM(
        Qwen3Config(**LLAMA, head_dim=8, attention_bias=True, tie_word_embeddings=True, rope_parameters=YARN)
    ),
}

CLASSIFIERS = {
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**GPT2, num_labels=3, pad_token_id=60)),
    "llama": lambda: LlamaForSequenceClassification(LlamaConfig(**LLAMA, num_labels=3, pad_token_id=60)),
    "qwen3": lambda: Qwen3ForSequenceClassification(Qwen3Config(**LLAMA, head_dim=10, num_labels=3, pad_token_id=60)),
}


def greedy(model) -> torch.Tensor:
    start = ids(1)
    return model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=50, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@torch.no_grad()
@pytest.mark.quick_cases("llama3")
def test_language_models_round_trip(convert, tmp_path, capsys, name):
    reference = LANGUAGE_MODELS[name]()
    original = saved(reference, tmp_path / "original")
    ours_folder = convert(original)
    printed = capsys.readouterr().out
    assert f"compared with:      {type(reference).__name__}" in printed and "greedy tokens:      equal" in printed
    ours = AutoModelForCausalLM.from_pretrained(ours_folder)
    assert isinstance(ours, GPTScratchForCausalLM) and ours.dtype == torch.float32
    expected = reference(ids()).logits
    assert expected.abs().max() > 1
    assert_equal(ours(ids()).logits, expected)
    assert torch.equal(greedy(ours), greedy(reference))
    assert ours.config.bos_token_id is ours.config.eos_token_id is None  # not GPT-2's 50256

    assert f"format {reference.config.model_type}, model_type of its config.json" in printed
    back = convert(ours_folder, "--to", reference.config.model_type)
    before, after = load_file(original / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    again = AutoModelForCausalLM.from_pretrained(back)
    assert type(again) is type(reference)
    assert torch.equal(again(ids()).logits, expected)
    volatile = {"dtype", "transformers_version", "_name_or_path"}
    before, after = again.config.to_dict(), reference.config.to_dict()
    assert {k: v for k, v in before.items() if k not in volatile} == {
        k: v for k, v in after.items() if k not in volatile
    } or name in ("gpt2", "gpt2-untied")
    if name == "gpt2":
        assert (again.config.resid_pdrop, again.config.embd_pdrop, again.config.attn_pdrop) == (0.2, 0.05, 0.3)


@pytest.mark.parametrize("family", CLASSIFIERS)
@torch.no_grad()
@pytest.mark.thorough
def test_classifiers_round_trip(convert, tmp_path, family):
    reference = CLASSIFIERS[family]()
    reference.config.id2label, reference.config.label2id = {0: "a", 1: "b", 2: "c"}, {"a": 0, "b": 1, "c": 2}
    original = saved(reference, tmp_path / "original")
    ours_folder = convert(original)
    ours = AutoModelForSequenceClassification.from_pretrained(ours_folder)
    assert isinstance(ours, GPTScratchForSequenceClassification) and ours.config.id2label == {0: "a", 1: "b", 2: "c"}
    rows = ids()
    rows[1, 9:] = 60  # padding
    mask = (rows != 60).long()
    expected = reference(rows, attention_mask=mask).logits
    assert_equal(ours(rows, attention_mask=mask).logits, expected)
    back = convert(ours_folder, "--to", family)
    before, after = load_file(original / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    again = AutoModelForSequenceClassification.from_pretrained(back)
    assert torch.equal(again(rows, attention_mask=mask).logits, expected)
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.thorough
def test_pickled_weights_and_the_names_of_the_hub(convert, tmp_path, sharded):
    """The Hub's GPT-2 has no `transformer.` in its names, and carries causal masks."""
    original = saved(gpt2(), tmp_path / "original")
    tensors = {key.removeprefix("transformer."): value for key, value in load_file(original / "model.safetensors").items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.tril(torch.ones(64, 64, dtype=torch.uint8)).view(1, 1, 64, 64)
        tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    (original / "model.safetensors").unlink()
    if sharded:
        names = sorted(tensors)
        shards = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
        for file, part in shards.items():
            torch.save({name: tensors[name] for name in part}, original / file)
        index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
        (original / "pytorch_model.bin.index.json").write_text(json.dumps(index), encoding="utf-8")
    else:
        torch.save(tensors, original / "pytorch_model.bin")
    ours = load_file(convert(original) / "model.safetensors")
    assert torch.equal(ours["model.layers.1.mlp.up_proj.weight"], tensors["h.1.mlp.c_fc.weight"].T)


CANNOT_COME = {
    "gpt2 attention by layer": (GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    "gpt2 unscaled attention": (GPT2Config(**GPT2, scale_attn_weights=False), "scale_attn_weights=False"),
    "gpt2 of two settings": (
        GPT2Config(**GPT2, scale_attn_by_inverse_layer_idx=True, scale_attn_weights=False),
        "scale_attn_weights=False (it must be True), scale_attn_by_inverse_layer_idx=True (it must be False)",
    ),
    "qwen of two kinds of layers": (
        Qwen3Config(**LLAMA, use_sliding_window=True, sliding_window=8, max_window_layers=1),
        "layer_types full_attention, sliding_attention are not supported",
    ),
    "llama longrope": (
        LlamaConfig(
            **LLAMA,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "original_max_position_embeddings": 16,
                "short_factor": [1.0] * (LLAMA["hidden_size"] // LLAMA["num_attention_heads"] // 2),
                "long_factor": [2.0] * (LLAMA["hidden_size"] // LLAMA["num_attention_heads"] // 2),
            },
        ),
        "rope_type is 'longrope'",
    ),
}


@pytest.mark.parametrize("name", CANNOT_COME)
def test_settings_that_cannot_be_expressed_are_named(refused, tmp_path, name):
    config, words = CANNOT_COME[name]
    original = saved(AutoModelForCausalLM.from_config(config), tmp_path / "original")
    assert words in refused(original)


def break_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_broken_directories_are_refused(refused, tmp_path):
    original = saved(gpt2(), tmp_path / "original")
    config, weights = (original / "config.json").read_bytes(), (original / "model.safetensors").read_bytes()
    break_config(original, model_type="bert")
    assert "model_type 'bert'; gpt2, llama, mistral" in refused(original)
    (original / "config.json").write_text("{", encoding="utf-8")
    assert "config.json is not JSON" in refused(original)
    (original / "config.json").write_bytes(config)
    break_config(original, n_layer=3)
    message = refused(original)
    assert "sizes in" in message and "config.json" in message and "model.layers.2." in message
    break_config(original, n_layer=2, n_embd=64)
    assert "h.0.attn.c_attn.weight is (32, 96) instead of (64, 192) (in, out)" in refused(original)
    break_config(original, n_embd=32, quantization_config={"bits": 4})
    assert "quantization_config" in refused(original)
    (original / "config.json").write_bytes(config)
    assert "format llama: its config.json says gpt2" in refused(original, "--format", "llama")
    assert "already: pass --to" in refused(saved(tiny_model(), tmp_path / "ours"))
    assert "convert" in refused(original, "--to", "gpt2")
    (original / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors is damaged or truncated" in refused(original)
    tensors = load_file(saved(gpt2(), original) / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, original / "model.safetensors", metadata={"format": "pt"})
    assert "h.0.attn.c_attn.weight is (96, 32) instead of (32, 96) (in, out)" in refused(original)
    (original / "model.safetensors").unlink()
    assert "contains neither model.safetensors nor pytorch_model.bin" in refused(original)
    saved(gpt2(), original)
    GPT2LMHeadModel.from_pretrained(original).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    next((tmp_path / "sharded").glob("*-00002-of-*")).unlink()
    message = refused(tmp_path / "sharded")
    assert "-00002-of-" in message and "missing" in message


@pytest.mark.parametrize("head", ["lm", "classifier"])
@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_checkpoints_of_this_package_that_lack_a_tensor_are_refused_by_conversion_and_export(refused, tmp_path, style, head):
    """A missing bias, too: stock layouts that have one where this configuration has none get zeros."""
    folder = tmp_path / "damaged"
    tiny_model(style, cls=GPTScratchForCausalLM if head == "lm" else GPTScratchForSequenceClassification).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    some = "model.layers.1.self_attn.q_proj." + ("bias" if style == "gpt2" else "weight")
    for change, message in (
        ({some: None}, f"missing tensors in the weights files: {some}"),
        ({name: None for name in tensors if ".layers.1." in name}, "missing tensors in the weights files: model.layers.1."),
        ({"model.layers.2.extra.weight": torch.ones(2)}, "unexpected tensors in the weights files: model.layers.2.extra.weight"),
        ({"model.norm.weight": torch.ones(3)}, "model.norm.weight has the shape"),
    ):
        changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        save_file(changed, folder / "model.safetensors", {"format": "pt"})
        assert message in refused(folder, "--to", style)
        with pytest.raises(UserError, match=re.escape(message)):  # as export.py opens it
            recognize(str(folder), Options())
