"""What vLLM's Transformers backend asks of a model, attribute by attribute; vLLM itself is not run.

Sources: vLLM's documentation, "Supported models", "Writing custom models", and its code, `vllm/model_executor/models/transformers/base.py`.
"""

import inspect
import json
import re

import torch
from tiny_models import assert_equal, tiny_config, tiny_model, token_ids
from torch import nn
from transformers import AutoModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from gpt_scratch import GPTScratchForCausalLM, GPTScratchModel
from gpt_scratch.modeling_gpt_scratch import GPTScratchAttention


def test_the_configuration_names_the_base_models_code(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    module, name = config["auto_map"]["AutoModel"].split(".")
    assert f"class {name}(" in (checkpoint / f"{module}.py").read_text()
    assert config["architectures"] == ["GPTScratchForCausalLM"]


def test_the_model_hands_attention_to_the_interface():
    assert GPTScratchModel._supports_attention_backend is True
    for cls in (GPTScratchModel, GPTScratchAttention):
        assert inspect.signature(cls.forward).parameters["kwargs"].kind is inspect.Parameter.VAR_KEYWORD
    assert {"input_ids", "inputs_embeds", "position_ids", "use_cache"} <= inspect.signature(
        GPTScratchModel.forward
    ).parameters.keys()


def test_the_sizes_have_the_names_that_are_read(style):
    config = tiny_config(style)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size"):
        assert isinstance(getattr(config, name), int)
    assert isinstance(config.max_position_embeddings, int) and isinstance(config.tie_word_embeddings, bool)
    assert config.get_text_config() is config and not hasattr(config, "layer_types")


def test_every_layer_can_be_sharded_or_replaced(style):
    model = tiny_model(style, GPTScratchModel)
    plan = {name: style for name, style in model.tp_plan.items() if name != "embed_tokens"}  # which vLLM replaces by its own
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    patterns = {pattern: re.compile(pattern.replace(".", r"\.").replace("*", r"\d+")) for pattern in plan}
    assert {name for name in linear if any(pattern.fullmatch(name) for pattern in patterns.values())} == linear
    assert all(any(pattern.fullmatch(name) for name in linear) for pattern in patterns.values())
    assert set(plan.values()) == {"colwise", "rowwise"}
    assert not list(model.buffers())  # the model is built on the meta device
    # *RMSNorm is replaced by vLLM's own, which takes the weight and an epsilon
    assert all(norm.eps > 0 and norm.weight.ndim == 1 for norm in model.modules() if type(norm).__name__.endswith("RMSNorm"))


def test_pipeline_stages_split_one_list_of_layers(style):
    model = tiny_model(style, GPTScratchModel)
    assert model.supports_pp_plan
    names = list(model._pp_plan)
    assert [name for name in names if isinstance(getattr(model, name), nn.ModuleList)] == ["layers"]
    assert [name for name, child in model.named_children() if isinstance(child, nn.ModuleList)] == ["layers"]
    assert names.index("embed_tokens") < names.index("layers") < names.index("norm")
    assert type(model.get_input_embeddings()) is nn.Embedding


@torch.no_grad()
def test_a_flat_batch_runs_as_vllm_calls_the_base_model(style, monkeypatch):
    """Several sequences flattened into one row, an attention function that knows them by itself, found by the layer's number."""
    model = tiny_model(style)
    rows = [token_ids(1, length, seed=length) for length in (5, 9, 3)]
    expected = torch.cat([model.model(row).last_hidden_state[0] for row in rows])
    lengths, asked = [row.shape[1] for row in rows], []

    def attend(module, query, key, value, attention_mask, scaling=None, attention_instances=None, **kwargs):
        assert module.is_causal and attention_mask is None and query.shape[0] == 1
        assert kwargs["dropout"] == 0.0
        asked.append(attention_instances[module.layer_idx])
        outputs = [
            nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
            for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2))
        ]
        # the heads side by side, without a batch, as vLLM's attention returns them
        return torch.cat(outputs, 2).transpose(1, 2).reshape(sum(lengths), -1), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "vllm", attend)
    model.config._attn_implementation = "vllm"
    served = AutoModel.from_config(model.config)
    assert type(served) is GPTScratchModel and served.config._attn_implementation == "vllm"
    served.load_state_dict(model.model.state_dict())
    output = served.eval()(
        input_ids=torch.cat(rows, 1),
        inputs_embeds=None,
        use_cache=False,
        position_ids=torch.cat([torch.arange(length) for length in lengths])[None],
        attention_instances=dict(enumerate(["first", "second"])),
        return_dict=False,
    )
    assert asked == ["first", "second"]
    assert_equal(output[0][0], expected)


def test_the_head_is_named_as_the_weights_are_mapped(style):
    names = {name.split(".")[0] for name, _ in GPTScratchForCausalLM(tiny_config(style)).named_parameters()}
    assert names <= {"model", "lm_head"}
