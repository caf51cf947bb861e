"""GGUF files, written here tensor by tensor: each key and each tensor is used, or the file is refused with its name."""

import numpy as np
import pytest
import torch
from tiny_models import assert_equal
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

pytestmark = pytest.mark.thorough

VOCABULARY, WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, INNER, CONTEXT = 56, 32, 2, 4, 2, 48, 64
EPS = 1e-2  # far from the usual ones
TOKENS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "Ġ", "ab", "<s>", "</s>"]
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": None}
FAMILY = SIZES | {
    "hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": EPS,
}  # fmt: skip
THETA = {
    "rope_type": "default",
    "rope_theta": 500000.0,
}  # so high that Llama 3.1's scaling changes a frequency of so narrow a head
LLAMA3 = THETA | {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# transformers' own models, which get their weights under their own names, never from a file.
REFERENCES = {
    "llama": lambda rope: LlamaForCausalLM(LlamaConfig(**FAMILY, rope_parameters=rope)),
    "qwen2": lambda rope: Qwen2ForCausalLM(Qwen2Config(**FAMILY, rope_parameters=rope)),
    "qwen3": lambda rope: Qwen3ForCausalLM(Qwen3Config(**FAMILY, head_dim=10, rope_parameters=rope)),
    "gpt2": lambda rope: GPT2LMHeadModel(
        GPT2Config(
            **SIZES, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=CONTEXT, n_inner=INNER, layer_norm_epsilon=EPS
        )
    ),
}


def rotated_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of query and key: it rotates neighbours, where the Hub's Llama rotates half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def names_of(architecture: str) -> dict[str, tuple]:
    """GGUF's name: the name of transformers, and the shape there."""
    if architecture == "gpt2":
        names = {"token_embd": ("transformer.wte", VOCABULARY, WIDTH), "position_embd": ("transformer.wpe", CONTEXT, WIDTH)}
        names["output_norm"] = ("transformer.ln_f", WIDTH)
        for i in range(LAYERS):
            ours, theirs = f"transformer.h.{i}.", f"blk.{i}."
            names |= {
                theirs + "attn_norm": (ours + "ln_1", WIDTH),
                theirs + "attn_qkv": (ours + "attn.c_attn", WIDTH, 3 * WIDTH),
                theirs + "attn_output": (ours + "attn.c_proj", WIDTH, WIDTH),
                theirs + "ffn_norm": (ours + "ln_2", WIDTH),
                theirs + "ffn_up": (ours + "mlp.c_fc", WIDTH, INNER),
                theirs + "ffn_down": (ours + "mlp.c_proj", INNER, WIDTH),
            }
        return names
    head = 10 if architecture == "qwen3" else WIDTH // HEADS
    small, large = head * KEY_VALUE_HEADS, head * HEADS
    names = {"token_embd": ("model.embed_tokens", VOCABULARY, WIDTH), "output_norm": ("model.norm", WIDTH)}
    names["output"] = ("lm_head", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        names |= {
            theirs + "attn_norm": (ours + "input_layernorm", WIDTH),
            theirs + "attn_q": (ours + "self_attn.q_proj", large, WIDTH),
            theirs + "attn_k": (ours + "self_attn.k_proj", small, WIDTH),
            theirs + "attn_v": (ours + "self_attn.v_proj", small, WIDTH),
            theirs + "attn_output": (ours + "self_attn.o_proj", WIDTH, large),
            theirs + "ffn_norm": (ours + "post_attention_layernorm", WIDTH),
            theirs + "ffn_gate": (ours + "mlp.gate_proj", INNER, WIDTH),
            theirs + "ffn_up": (ours + "mlp.up_proj", INNER, WIDTH),
            theirs + "ffn_down": (ours + "mlp.down_proj", WIDTH, INNER),
        }
        if architecture == "qwen3":
            names |= {theirs + f"attn_{x}_norm": (ours + f"self_attn.{x}_norm", head) for x in "qk"}
    return names


def tensors_of(architecture: str) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    """The tensors of a file, and the same numbers under the names of transformers."""
    rng, tensors, state = np.random.default_rng(0), {}, {}
    for name, (other, *shape) in names_of(architecture).items():
        weight = (rng.normal(0, 0.25, shape) + ("norm" in name)).astype(np.float32)
        state[other + ".weight"] = torch.from_numpy(weight)
        kind = name.rpartition(".")[2]
        heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(kind) if architecture == "llama" else None
        transposed = architecture == "gpt2" and name.startswith("blk.") and weight.ndim == 2
        tensors[name + ".weight"] = (
            rotated_pairs(weight, heads) if heads else np.ascontiguousarray(weight.T) if transposed else weight
        )
        if (architecture == "gpt2" and "embd" not in name) or (
            architecture == "qwen2" and kind in ("attn_q", "attn_k", "attn_v")
        ):
            bias = rng.normal(0, 0.25, shape[-1] if architecture == "gpt2" else shape[0]).astype(np.float32)
            tensors[name + ".bias"], state[other + ".bias"] = bias, torch.from_numpy(bias)
    return tensors, state


@pytest.fixture
def write(tmp_path):
    """A function `(architecture, change) -> (file, state)`; `change(settings, tensors)` alters what is written."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")

    def run(architecture: str = "llama", change=lambda settings, tensors: None):
        tensors, state = tensors_of(architecture)
        prefix = architecture + "."
        settings = {
            "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": LAYERS, "feed_forward_length": INNER,
            "attention.head_count": HEADS,
        }  # fmt: skip
        if architecture == "gpt2":
            settings["attention.layer_norm_epsilon"] = EPS
            tensors["output.weight"] = tensors["token_embd.weight"]  # as llama.cpp writes the tied head
        else:
            settings |= {
                "attention.head_count_kv": KEY_VALUE_HEADS,
                "attention.layer_norm_rms_epsilon": EPS,
                "rope.freq_base": 500000.0,
            }
        if architecture == "llama":
            settings |= {"rope.dimension_count": WIDTH // HEADS, "vocab_size": VOCABULARY}
        if architecture == "qwen3":
            settings |= {"attention.key_length": 10, "attention.value_length": 10}
        settings = {prefix + name: value for name, value in settings.items()}
        change(settings, tensors)
        writer = gguf.GGUFWriter(tmp_path / f"{architecture}.gguf", architecture)
        add = {
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            bool: writer.add_bool,
            list: writer.add_array,
        }
        for name, value in settings.items():
            add[type(value)](name, value)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(TOKENS)
        writer.add_token_types([1] * (VOCABULARY - 2) + [3, 3])
        writer.add_token_merges(["a b"])
        writer.add_bos_token_id(TOKENS.index("<s>"))
        writer.add_eos_token_id(TOKENS.index("</s>"))
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / f"{architecture}.gguf", state

    return run


@torch.no_grad()
def check(folder, architecture: str, state: dict[str, torch.Tensor], rope: dict = THETA):
    """The converted model has the logits of transformers' own model with the same weights."""
    reference = REFERENCES[architecture](rope).eval()
    missing, unexpected = reference.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    expected = reference(ids).logits
    assert expected.abs().max() > 1
    assert_equal(model(ids).logits, expected)
    return model


@pytest.mark.parametrize("architecture", REFERENCES)
@pytest.mark.quick_cases("qwen3")
def test_gguf_gives_the_same_logits(convert, write, capsys, architecture):
    path, state = write(architecture)
    folder = convert(path)
    printed = capsys.readouterr().out
    assert "format gguf, its suffix is .gguf" in printed
    assert f"compared with:      {type(REFERENCES[architecture](THETA)).__name__}" in printed
    model = check(folder, architecture, state)
    assert model.config.tie_word_embeddings == (architecture == "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc Z")["input_ids"][-4:] == [TOKENS.index(token) for token in ("ab", "c", "Ġ", "Z")]
    assert tokenizer.eos_token_id == model.config.eos_token_id == TOKENS.index("</s>")
    assert tokenizer.model_max_length == 64 and tokenizer.pad_token_id == model.generation_config.pad_token_id is not None


def linear(settings, tensors):
    settings |= {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}


def yarn(settings, tensors):
    settings |= {
        "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0, "llama.rope.scaling.original_context_length": 16,
    }  # fmt: skip


def llama3(settings, tensors):
    """The factors that divide the frequencies, as `convert_hf_to_gguf.py` computes them: loops and branches, not our formula."""
    factors, original, scale = [], 8192, 8.0
    for i in range(WIDTH // HEADS // 2):
        wavelength = 2 * np.pi * 500000.0 ** (2 * i / (WIDTH // HEADS))
        if wavelength < original / 4:
            factors.append(1.0)
        elif wavelength > original / 1:
            factors.append(scale)
        else:
            smooth = (original / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / scale + smooth))
    tensors["rope_freqs.weight"] = np.array(factors, dtype=np.float32)


def unscaled(settings, tensors):
    """llama.cpp ignores the factor if the type is none."""
    settings |= {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}


SCALED = {
    "linear": (linear, THETA | {"rope_type": "linear", "factor": 4.0}),
    "yarn": (yarn, THETA | {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}),
    "llama3": (llama3, LLAMA3),
    "none": (unscaled, THETA),
}


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.quick_cases("yarn")
def test_scaled_rotary_positions_are_converted(convert, write, name):
    """transformers' reader drops all of them silently."""
    change, rope = SCALED[name]
    path, state = write("llama", change)
    assert check(convert(path), "llama", state, rope).config.rope_parameters == rope


def drop(name):
    return lambda settings, tensors: tensors.pop(name)


def put(name, *shape):
    return lambda settings, tensors: tensors.update({name: np.ones(shape, dtype=np.float32)})


def key(name, value):
    return lambda settings, tensors: settings.update({name: value})


REFUSED = {
    "a norm that is missing": (
        "llama",
        drop("blk.1.ffn_norm.weight"),
        "missing parameters: model.layers.1.post_attention_layernorm.weight",
    ),
    "a norm's bias that is missing": (
        "gpt2",
        drop("blk.0.attn_norm.bias"),
        "missing parameters: model.layers.0.input_layernorm.bias",
    ),
    "the last norm": ("llama", drop("output_norm.weight"), "missing parameters: model.norm.weight"),
    "an unknown tensor": ("llama", put("blk.0.attn_sinks.weight", 4), "unexpected tensors: blk.0.attn_sinks.weight"),
    "biases of Llama's queries": ("llama", put("blk.0.attn_q.bias", 32), "unexpected tensors: blk.0.attn_q.bias"),
    "a qwen2 without a bias": ("qwen2", drop("blk.0.attn_k.bias"), "missing parameters: model.layers.0.self_attn.k_proj.bias"),
    "another scaling": (
        "llama",
        lambda s, t: t.update({"rope_freqs.weight": np.arange(1, 5, dtype=np.float32)}),
        "rope_freqs.weight is not Llama 3.1's",
    ),
    "longrope": (
        "llama",
        key("llama.rope.scaling.type", "longrope"),
        "rope.scaling.type='longrope' (expected none, linear or yarn",
    ),
    "a sliding window": ("llama", key("llama.attention.sliding_window", 8), "llama.attention.sliding_window=8"),
    "experts": ("llama", key("llama.expert_count", 8), "llama.expert_count=8 (expected 0)"),
    "an unknown key": ("llama", key("llama.logit_scale", 0.5), "unknown keys: llama.logit_scale=0.5"),
    "no heads": ("llama", key("llama.attention.head_count", 0), "llama.attention.head_count=0 (expected at least 1)"),
    "scaled twice": (
        "llama",
        lambda s, t: (linear(s, t), llama3(s, t)),
        "rope_freqs.weight is not Llama 3.1's",
    ),
    "a key of nobody": ("llama", key("mamba.conv_kernel", 4), "unknown keys: mamba.conv_kernel"),
    "partial rotary": (
        "llama",
        key("llama.rope.dimension_count", 4),
        "llama.rope.dimension_count=4 (expected the head dimension, 8",
    ),
    "not causal": ("llama", key("llama.attention.causal", False), "llama.attention.causal=False (expected True)"),
    "sizes by layer": (
        "llama",
        key("llama.feed_forward_length", [48, 40]),
        "feed_forward_length=[48, 40] (expected a single int",
    ),
    "another vocabulary": ("llama", key("llama.vocab_size", 57), "llama.vocab_size=57 (token_embd.weight has 56 rows)"),
    "a part": ("llama", key("split.count", 3), "split.count=3 (join the parts"),
    "no context length": ("llama", lambda s, t: s.pop("llama.context_length"), "has no llama.context_length"),
    "no embedding": ("llama", drop("token_embd.weight"), "has no matrix token_embd.weight"),
    "a matrix of another shape": (
        "llama",
        put("blk.0.ffn_up.weight", 32, 48),
        "blk.0.ffn_up.weight is (32, 48) instead of (48, 32)",
    ),
}


def test_unused_keys_and_tensors_are_refused_by_name(refused, write):
    for name, (architecture, change, words) in REFUSED.items():
        path, _ = write(architecture, change)
        message = refused(path)
        assert words in message, (name, message)
        path.unlink()


def test_all_unsupported_keys_are_named(refused, write):
    def change(settings, tensors):
        settings |= {"qwen3.expert_count": 2, "qwen3.attention.sliding_window": 8, "qwen3.tomorrow": 1}

    message = refused(write("qwen3", change)[0])
    assert all(f"qwen3.{word}" in message for word in ("expert_count=2", "attention.sliding_window=8", "tomorrow"))


def test_an_unknown_way_to_split_text_is_named(convert, write, capsys):
    for pattern, known in (("gpt-2", True), ("llama-bpe", True), ("smollm", False)):
        convert(write("qwen3", key("tokenizer.ggml.pre", pattern))[0])
        assert (
            f"tokenizer.ggml.pre is '{pattern}', a way to split text that transformers does not" in capsys.readouterr().out
        ) != known


def test_another_architecture_is_refused(refused, tmp_path):
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "the architecture 'mamba'; gpt2, llama, qwen2, qwen3 can be converted" in refused(tmp_path / "other.gguf")


def test_broken_gguf_is_refused(refused, write):
    path, _ = write()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "llama.gguf cannot be read as GGUF" in refused(path)
    path.write_bytes(b"no GGUF at all")
    assert "llama.gguf cannot be read as GGUF" in refused(path)
