"""The model against references: each part against its formula in float64, logits against transformers' GPT-2 and Llama, recorded outputs."""

import math

import pytest
import torch
from tiny_models import SIZES, assert_equal, randomize, tiny_config, tiny_model, token_ids
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification, GPTScratchModel
from gpt_scratch.modeling_gpt_scratch import (
    GPTScratchLayerNorm,
    GPTScratchMLP,
    GPTScratchRMSNorm,
    apply_rotary,
    eager_attention_forward,
    rotary_embedding,
)

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
ROPES = {
    "default": {"rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    "llama3": LLAMA3,
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0},
    "yarn": YARN,
    "yarn with all its settings": YARN | {"attention_factor": 1.3, "beta_fast": 8.0, "beta_slow": 2.0},
}


# ---------------------------------------------------------------------------------------------------------------- the parts


def test_norms_are_their_formulas():
    x = torch.randn(3, 5, 8, dtype=torch.float64) * 4 + 2
    layer_norm = randomize(GPTScratchLayerNorm(8, eps=0.1))
    expected = (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + 0.1)
    assert_equal(layer_norm(x.float()).double(), expected * layer_norm.weight.double() + layer_norm.bias.double(), 1e-6)
    rms_norm = randomize(GPTScratchRMSNorm(8, eps=0.1))
    expected = x / torch.sqrt((x**2).sum(-1, keepdim=True) / 8 + 0.1)
    assert_equal(rms_norm(x.float()).double(), expected * rms_norm.weight.double(), 1e-6)


@pytest.mark.parametrize("norm", [GPTScratchLayerNorm(8, eps=1e-5), GPTScratchRMSNorm(8, eps=1e-5)])
def test_norm_statistics_are_fp32_in_half_precision(norm):
    x = torch.full((1, 8), 300.0).half()  # 300 squared is beyond half precision
    x[0, 0] = -300.0
    assert_equal(norm.half()(x).float(), norm.float()(x.float()), 2e-3)


def test_gelu_is_its_formula():
    x = torch.linspace(-6, 6, 1001, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    exact = torch.tensor([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in x.tolist()], dtype=torch.float64)
    for name, expected in {"gelu_new": tanh, "gelu_pytorch_tanh": tanh, "gelu": exact, "silu": x * torch.sigmoid(x)}.items():
        assert_equal(GPTScratchMLP(tiny_config(hidden_act=name)).act_fn(x.float()).double(), expected, 1e-6)
    assert 4e-4 < (tanh - exact).abs().max() < 6e-4  # so the tests here can tell one from the other


def test_rotary_turns_pairs_half_a_head_apart():
    config = tiny_config("llama", head_dim=8)
    x, positions = torch.randn(1, 3, 5, 8), torch.tensor([[0, 1, 7, 300, 1000]])
    cos, sin = rotary_embedding(config, positions, torch.float32)
    turned = apply_rotary(x, cos, sin).double()
    for i in range(4):
        angle = positions[0].double() * 10000.0 ** (-2 * i / 8)
        pair = torch.complex(x[..., i].double(), x[..., i + 4].double()) * torch.polar(torch.ones(5).double(), angle)
        assert_equal(turned[..., i], pair.real, 1e-4 / 2)  # an fp32 angle of 1000 is known to 6e-5
        assert_equal(turned[..., i + 4], pair.imag, 1e-4 / 2)


def test_rotary_tells_far_positions_apart_in_bf16():
    cos, sin = rotary_embedding(tiny_config("llama"), torch.tensor([[1000, 1001]]), torch.bfloat16)
    expected = torch.stack((torch.tensor(1001.0).cos(), torch.tensor(1001.0).sin()))
    assert_equal(torch.stack((cos[0, 0, 1, 0], sin[0, 0, 1, 0])).float(), expected, 4e-3)


def test_eager_attention_is_its_formula():
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    mask = torch.zeros(2, 1, 3, 5).masked_fill(torch.rand(2, 1, 3, 5) < 0.3, -torch.inf)
    mask[..., 0] = 0.0
    output, weights = eager_attention_forward(torch.nn.Module().eval(), query, key, value, mask, scaling=0.3)
    for b in range(2):
        for h in range(4):
            for t in range(3):
                scores = (key[b, h // 2].double() @ query[b, h, t].double()) * 0.3 + mask[b, 0, t].double()
                expected = scores.exp() / scores.exp().sum()
                assert_equal(weights[b, h, t].double(), expected, 1e-6)
                assert_equal(output[b, t, h].double(), expected @ value[b, h // 2].double(), 1e-6)


# ------------------------------------------------------------------------------------------------- transformers' own models


def gpt2_state_dict(gpt2: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    """GPT-2's tensors under this model's names; its Conv1D weights are (in, out)."""
    state = {
        "model.embed_tokens.weight": gpt2.transformer.wte.weight,
        "model.embed_positions.weight": gpt2.transformer.wpe.weight,
    }
    state |= {"model.norm.weight": gpt2.transformer.ln_f.weight, "model.norm.bias": gpt2.transformer.ln_f.bias}
    state["lm_head.weight"] = gpt2.lm_head.weight
    for i, block in enumerate(gpt2.transformer.h):
        weights, biases = block.attn.c_attn.weight.T.chunk(3), block.attn.c_attn.bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases):
            state[f"model.layers.{i}.self_attn.{name}_proj.weight"] = weight
            state[f"model.layers.{i}.self_attn.{name}_proj.bias"] = bias
        for ours, theirs in (
            ("self_attn.o_proj", block.attn.c_proj),
            ("mlp.up_proj", block.mlp.c_fc),
            ("mlp.down_proj", block.mlp.c_proj),
        ):
            state[f"model.layers.{i}.{ours}.weight"] = theirs.weight.T
            state[f"model.layers.{i}.{ours}.bias"] = theirs.bias
        for ours, theirs in (("input_layernorm", block.ln_1), ("post_attention_layernorm", block.ln_2)):
            state[f"model.layers.{i}.{ours}.weight"] = theirs.weight
            state[f"model.layers.{i}.{ours}.bias"] = theirs.bias
    return state


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_equal_transformers_gpt2(attention):
    config = GPT2Config(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, activation_function="gelu_new")
    gpt2 = randomize(GPT2LMHeadModel(config)).eval()
    model = tiny_model("gpt2", attention=attention)
    model.load_state_dict(gpt2_state_dict(gpt2))
    ids = token_ids(2, 32)
    with torch.no_grad():
        ours, theirs = model(ids, output_hidden_states=True), gpt2(ids, output_hidden_states=True)
    assert_equal(ours.logits, theirs.logits)
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 3
    for own, other in zip(ours.hidden_states, theirs.hidden_states):
        assert_equal(own, other)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_logits_equal_transformers_llama(rope, tied):
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope),
        tie_word_embeddings=tied,
        eos_token_id=None,
    )
    llama = randomize(LlamaForCausalLM(config)).eval()
    model = tiny_model(
        "llama", intermediate_size=128, max_position_embeddings=64, rope_parameters=dict(rope), tie_word_embeddings=tied
    )
    model.load_state_dict(llama.state_dict())  # the same names, every one
    with torch.no_grad():
        for length in (64, 96, 40):  # beyond max_position_embeddings "dynamic" turns more slowly, and within them as before
            ids = token_ids(2, length)
            assert_equal(model(ids).logits, llama(ids).logits)
        ids = token_ids(2, 60)
        settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, **settings), llama.generate(ids, **settings))


def test_logits_equal_transformers_qwen3_whose_queries_and_keys_are_normed():
    config = Qwen3Config(
        vocab_size=61, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=64, rms_norm_eps=1e-5, rope_parameters={"rope_theta": 1e4, "rope_type": "default"},
    )  # fmt: skip
    qwen = randomize(Qwen3ForCausalLM(config)).eval()
    model = tiny_model("llama", intermediate_size=128, max_position_embeddings=64, qk_norm=True)
    model.load_state_dict(qwen.state_dict())
    ids = token_ids(2, 64)
    with torch.no_grad():
        assert_equal(model(ids).logits, qwen(ids).logits)


def test_exact_gelu_and_attention_biases_equal_transformers():
    """What no published checkpoint combines: a GPT-2 with the exact GELU, a Llama with biases and heads of another width."""
    ids = token_ids(2, 16)
    gpt2 = randomize(
        GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=32, n_embd=32, n_layer=2, n_head=4, activation_function="gelu"))
    )
    model = tiny_model("gpt2", hidden_act="gelu")
    model.load_state_dict(gpt2_state_dict(gpt2))
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40, "num_hidden_layers": 2}
    llama = randomize(LlamaForCausalLM(LlamaConfig(**sizes, attention_bias=True, mlp_bias=True, head_dim=10, rms_norm_eps=1e-5)))
    biased = tiny_model("llama", **sizes, num_key_value_heads=4, head_dim=10, qkv_bias=True, o_bias=True, mlp_bias=True)
    biased.load_state_dict(llama.state_dict())
    with torch.no_grad():
        assert_equal(model(ids).logits, gpt2.eval()(ids).logits)
        assert_equal(biased(ids).logits, llama.eval()(ids).logits)


# ---------------------------------------------------------------------------------------------------------- recorded outputs


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_hidden_states(style):
    model, ids = tiny_model(style), token_ids(2, 9)
    with torch.no_grad():
        out = model(ids, output_hidden_states=True)
        assert len(out.hidden_states) == SIZES["num_hidden_layers"] + 1
        assert all(states.shape == (2, 9, 32) for states in out.hidden_states)
        assert_equal(model.lm_head(out.hidden_states[-1]), out.logits)  # the last one has passed the final norm
        embedded = model.model.embed_tokens(ids)
        if style == "gpt2":
            embedded = embedded + model.model.embed_positions(torch.arange(9))
        assert torch.equal(out.hidden_states[0], embedded)
        assert model(ids).hidden_states is None


@pytest.mark.parametrize("style", ["gpt2", "llama"])
def test_attentions(style):
    model, ids = tiny_model(style, attention="eager"), token_ids(2, 9)
    with torch.no_grad():
        out = model(ids, output_attentions=True)
        assert len(out.attentions) == SIZES["num_hidden_layers"]
        for weights in out.attentions:
            assert weights.shape == (2, 4, 9, 9)
            assert_equal(weights.sum(-1), torch.ones(2, 4, 9), 1e-6)
            assert torch.equal(weights > 0, torch.ones(9, 9).tril().bool().expand(2, 4, -1, -1))
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[0, :3] = 0
        padded = model(ids, attention_mask=mask, output_attentions=True).attentions[1][0]
        assert (padded[:, 3:, :3] == 0).all()
        assert_equal(padded[:, 3:].sum(-1), torch.ones(4, 6), 1e-6)


@pytest.mark.parametrize("style", ["gpt2", "llama"])
@pytest.mark.parametrize("cls", [GPTScratchModel, GPTScratchForCausalLM, GPTScratchForSequenceClassification])
def test_tuples_hold_what_dicts_hold(style, cls):
    model, ids = tiny_model(style, cls=cls, attention="eager"), token_ids(1, 6)
    settings = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        named, unnamed = model(ids, **settings), model(ids, **settings, return_dict=False)
    assert isinstance(unnamed, tuple) and len(unnamed) == len(named)
    assert torch.equal(unnamed[0], named[0])
    for nested, expected in zip(unnamed[-2:], (named.hidden_states, named.attentions)):
        assert all(torch.equal(one, other) for one, other in zip(nested, expected))
