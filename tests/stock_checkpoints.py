"""Tiny checkpoints in every stock layout, with what our model computes: for `tests/versions/check_stock_layouts.py` and the quick tests.

python tests/stock_checkpoints.py FOLDER        # where this package is installed; FOLDER/expected.json names what was written
"""

import json
import sys
from pathlib import Path

import torch
from tiny_models import tiny_model, token_ids
from transformers import GenerationConfig

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.convert import export_weights
from gpt_scratch.conversion.formats import recognize

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LABELS = {"id2label": {0: "ham", 1: "spam", 2: "other"}, "label2id": {"ham": 0, "spam": 1, "other": 2}}
# Name: layout, settings. Rotary settings are far from the defaults that an old release would fall back on.
CASES = {
    "gpt2": ("gpt2", {}),
    "gpt2-book": (
        "gpt2",
        {"qkv_bias": False, "o_bias": False, "mlp_bias": False, "tie_word_embeddings": False, "hidden_act": "gelu"},
    ),
    "gpt2-narrow-mlp": ("gpt2", {"intermediate_size": 40, "norm_eps": 1e-2}),
    "gpt2-whole-numbers": (
        "gpt2",
        {"norm_eps": 1, "initializer_range": 1, "attention_dropout": 0},
    ),  # where others have fractions
    "gpt2-classifier": ("gpt2", LABELS),
    "gpt2-two-labels-classifier": ("gpt2", {"num_labels": 2}),
    "llama": ("llama", {}),
    "llama-theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}}),
    "llama-llama3": (
        "llama",
        {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 8}, "tie_word_embeddings": True},
    ),
    "llama-biases-head_dim": ("llama", {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "head_dim": 10, "norm_eps": 1e-2}),
    "llama-bfloat16": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "llama-classifier": ("llama", LABELS | {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "mistral": ("mistral", {}),
    "mistral-window": ("mistral", {"sliding_window": 3, "rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "mistral-classifier": ("mistral", LABELS | {"sliding_window": 3}),
    "qwen2": ("qwen2", {"qkv_bias": True, "rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "qwen2-no-biases-classifier": ("qwen2", LABELS | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"qk_norm": True, "head_dim": 10, "rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}),
    "qwen3-classifier": ("qwen3", LABELS | {"qk_norm": True, "norm_eps": 1e-2}),
    "llama-one-label-classifier": (
        "llama",
        {
            "num_labels": 1,
            "problem_type": "regression",
            "norm_eps": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 37},
        },
    ),
}
NEW_TOKENS = 10


def our_model(name: str) -> GPTScratchForCausalLM | GPTScratchForSequenceClassification:
    """The model of a case, its weights large; bfloat16 where the name says so."""
    layout, settings = CASES[name]
    classifier = name.endswith("classifier")
    style = "gpt2" if layout == "gpt2" else "llama"
    model = tiny_model(style, GPTScratchForSequenceClassification if classifier else GPTScratchForCausalLM, **settings)
    if not classifier:  # settings that a release could read wrongly; greedy decoding overrides them
        model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, pad_token_id=0)
    return model.to(torch.bfloat16) if name.endswith("bfloat16") else model


@torch.no_grad()
def expected(model: GPTScratchForCausalLM | GPTScratchForSequenceClassification) -> dict[str, list]:
    """What a model computes of three prompts of different lengths in float32, padded left; a classifier's right."""
    model = model.float()
    ids, mask = token_ids(3, 9), torch.ones(3, 9, dtype=torch.long)
    mask[1, :4] = mask[2, :7] = 0
    if isinstance(model, GPTScratchForSequenceClassification):
        mask = mask.flip(1)
    ids = ids * mask  # 0 is the padding token
    values = {"input_ids": ids, "attention_mask": mask, "logits": model(ids, attention_mask=mask).logits}
    if isinstance(model, GPTScratchForCausalLM):
        settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
        values["greedy"] = model.generate(ids, attention_mask=mask, **settings)[:, ids.shape[1] :]
    return {name: value.tolist() for name, value in values.items()}


def write(folder: Path) -> Path:
    """Write every case in its stock layout, and what our model computes of it; returns the path of `expected.json`."""
    answers = {}
    for name, (layout, _) in CASES.items():
        model = our_model(name)
        model.save_pretrained(folder / "ours" / name)
        (folder / name).mkdir()
        export_weights(recognize(str(folder / "ours" / name), Options()), folder / name, layout, None, 10**9)
        answers[name] = expected(model)
    (folder / "expected.json").write_text(json.dumps(answers), encoding="utf-8")
    return folder / "expected.json"


if __name__ == "__main__":
    print(write(Path(sys.argv[1])))
