"""GGUF files of the Llama family, through transformers' own reader."""

import numpy as np
import pytest
import torch
from tiny_models import assert_equal
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

VOCABULARY, WIDTH, LAYERS, HEADS, KEY_VALUE_HEADS, INNER = 56, 32, 2, 4, 2, 48
TOKENS = [*"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", "Ġ", "ab", "<s>", "</s>"]


def rotated_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of query and key: it rotates neighbours, where the Hub's Llama rotates half a head apart."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


@pytest.fixture
def gguf_file(tmp_path):
    """A tiny Llama as GGUF, and the same weights under the names of transformers."""
    gguf = pytest.importorskip("gguf", reason="needs the package gguf")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(5000.0)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (VOCABULARY - 2) + [3, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(TOKENS.index("<s>"))
    writer.add_eos_token_id(TOKENS.index("</s>"))
    rng, state = np.random.default_rng(0), {}
    small = WIDTH // HEADS * KEY_VALUE_HEADS
    names = {"token_embd": ("model.embed_tokens", VOCABULARY, WIDTH), "output_norm": ("model.norm", WIDTH)}
    names["output"] = ("lm_head", VOCABULARY, WIDTH)
    for i in range(LAYERS):
        ours, theirs = f"model.layers.{i}.", f"blk.{i}."
        names |= {
            theirs + "attn_norm": (ours + "input_layernorm", WIDTH),
            theirs + "attn_q": (ours + "self_attn.q_proj", WIDTH, WIDTH),
            theirs + "attn_k": (ours + "self_attn.k_proj", small, WIDTH),
            theirs + "attn_v": (ours + "self_attn.v_proj", small, WIDTH),
            theirs + "attn_output": (ours + "self_attn.o_proj", WIDTH, WIDTH),
            theirs + "ffn_norm": (ours + "post_attention_layernorm", WIDTH),
            theirs + "ffn_gate": (ours + "mlp.gate_proj", INNER, WIDTH),
            theirs + "ffn_up": (ours + "mlp.up_proj", INNER, WIDTH),
            theirs + "ffn_down": (ours + "mlp.down_proj", WIDTH, INNER),
        }
    for name, (other, *shape) in names.items():
        weight = (rng.normal(0, 0.25, shape) + (len(shape) == 1)).astype(np.float32)
        state[other + ".weight"] = torch.from_numpy(weight)
        heads = {"attn_q": HEADS, "attn_k": KEY_VALUE_HEADS}.get(name.split(".")[-1])
        writer.add_tensor(name + ".weight", rotated_pairs(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf", state


@torch.no_grad()
def test_gguf_is_the_same_function(convert, gguf_file, capsys):
    path, state = gguf_file
    folder = convert(path)
    printed = capsys.readouterr().out
    assert "format gguf, since its suffix is .gguf" in printed and "compared with:      LlamaForCausalLM" in printed
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    reference.load_state_dict(state)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, VOCABULARY, (3, 40), generator=torch.Generator().manual_seed(0))
    expected = reference(ids).logits
    assert expected.abs().max() > 1
    assert_equal(model(ids).logits, expected)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("abc Z")["input_ids"][-4:] == [TOKENS.index(token) for token in ("ab", "c", "Ġ", "Z")]
    assert tokenizer.eos_token_id == model.config.eos_token_id == TOKENS.index("</s>")
    assert tokenizer.model_max_length == 64 and tokenizer.pad_token_id == model.generation_config.pad_token_id is not None


def test_broken_gguf_is_refused(refused, gguf_file, tmp_path):
    path, _ = gguf_file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "tiny.gguf cannot be read as GGUF" in refused(path)
    path.write_bytes(b"no GGUF at all")
    assert "tiny.gguf cannot be read as GGUF" in refused(path)
