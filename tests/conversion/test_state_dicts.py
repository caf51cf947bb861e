"""State dicts of the book's models and its later variants, converted as a user does it, against the published models in plain torch."""

import json
import zipfile

import pytest
import torch
from book_variants import BookVariant
from converted import CONTEXT, HEADS, HEADS_FLAG, LAYERS, VOCABULARY, WIDTH, book, check_language_model, enlarge, save
from published_layouts import BookGPT, add_lora
from safetensors.torch import save_file
from tiny_models import assert_equal
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


@pytest.mark.parametrize("fast", [False, True], ids=["plain", "fast"])
@pytest.mark.parametrize("qkv_bias", [False, True], ids=["no-bias", "qkv-bias"])
def test_book(convert, tmp_path, capsys, fast, qkv_bias):
    reference = book(fast=fast, qkv_bias=qkv_bias)
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pth"), *HEADS_FLAG), reference)
    assert model.config.qkv_bias == qkv_bias and not model.config.tie_word_embeddings
    printed = capsys.readouterr().out
    assert "format book" in printed and "out_head differs from tok_emb" in printed
    assert f"parameters:         {sum(p.numel() for p in reference.parameters()):,}" in printed


def test_book_with_its_optimizer(convert, tmp_path, capsys):
    reference = book()
    optimizer = torch.optim.AdamW(reference.parameters())
    reference(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    content = {"model_state_dict": reference.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    check_language_model(convert(save(content, tmp_path / "model_and_optimizer.pth"), *HEADS_FLAG), reference)
    assert "not converted, since these are not the model's tensors: optimizer_state_dict" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_book_under_the_names_of_compile_and_ddp(convert, tmp_path, prefix):
    reference = book()
    renamed = {prefix + name: tensor for name, tensor in reference.state_dict().items()}
    check_language_model(convert(save(renamed, tmp_path / "model.pth"), *HEADS_FLAG), reference)


def test_book_without_masks_as_safetensors(convert, tmp_path):
    reference = book(qkv_bias=True)  # the variant with a key/value cache does not save masks
    tensors = {name: tensor.clone() for name, tensor in reference.state_dict().items() if not name.endswith("mask")}
    save_file(tensors, tmp_path / "gpt2-small.safetensors")
    check_language_model(convert(tmp_path / "gpt2-small.safetensors", *HEADS_FLAG), reference)


def test_book_from_before_torch_1_6(convert, tmp_path):
    reference = book()
    torch.save(reference.state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(tmp_path / "model.pth")
    check_language_model(convert(tmp_path / "model.pth", *HEADS_FLAG), reference)


def test_book_whose_head_equals_the_embedding_becomes_tied(convert, tmp_path, capsys):
    reference = book()
    reference.out_head.weight = nn.Parameter(reference.tok_emb.weight.detach().clone())
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pth"), *HEADS_FLAG), reference)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    assert "bit for bit: the head is tied" in capsys.readouterr().out


@pytest.mark.thorough
def test_padded_vocabulary_is_cut(convert, tmp_path, capsys):
    reference = enlarge(BookGPT(50304, CONTEXT, width=8, heads=2, layers=1, fast=True))
    path = save(reference.state_dict(), tmp_path / "model.pth")
    model = check_language_model(convert(path, "--config_overrides", "n_heads=2"), reference, vocabulary=50257)
    assert model.config.vocab_size == 50257 and model.config.eos_token_id == 50256
    assert "the last 47, unused rows were removed" in capsys.readouterr().out
    kept = AutoModelForCausalLM.from_pretrained(convert(path, "--config_overrides", "n_heads=2,vocab_size=50304"))
    assert torch.equal(kept.lm_head.weight, reference.out_head.weight)


@pytest.mark.parametrize("over_rank", [True, False], ids=["alpha_over_rank", "alpha"])
@pytest.mark.thorough
def test_lora_is_merged(convert, tmp_path, over_rank):
    reference = BookGPT(VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, qkv_bias=True)
    add_lora(reference, rank=4, alpha=0.5, over_rank=over_rank)
    enlarge(reference)
    path = save(reference.state_dict(), tmp_path / "gpt2-sft-lora.pth")
    scaling = "alpha_over_rank" if over_rank else "alpha"
    folder = convert(path, *HEADS_FLAG, "--lora_alpha", "0.5", "--lora_scaling", scaling)
    model = check_language_model(folder, reference)
    other = convert(path, *HEADS_FLAG, "--lora_alpha", "0.5", "--lora_scaling", "alpha" if over_rank else "alpha_over_rank")
    assert (AutoModelForCausalLM.from_pretrained(other).lm_head.weight - model.lm_head.weight).abs().max() > 0.01


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "lora"])
@torch.no_grad()
def test_classifier_with_its_biased_head(convert, tmp_path, capsys, lora):
    reference = BookGPT(VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, qkv_bias=True)
    reference.out_head = nn.Linear(WIDTH, 2)
    if lora:
        add_lora(reference, rank=4, alpha=0.5, over_rank=True)
    enlarge(reference)
    path = save(reference.state_dict(), tmp_path / "review_classifier.pth")
    flags = ("--lora_alpha", "0.5", "--lora_scaling", "alpha_over_rank") if lora else ()
    folder = convert(path, *HEADS_FLAG, *flags)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.randint(0, VOCABULARY, (5, 20), generator=torch.Generator().manual_seed(0))
    expected = reference(ids)[:, -1]
    bias = (reference.out_head.linear if lora else reference.out_head).bias
    assert bias.abs().max() > 0.05  # large enough to notice a lost bias
    assert_equal(model(ids, attention_mask=torch.ones_like(ids)).logits, expected)
    assert model.config.id2label == {0: "ham", 1: "spam"}
    assert "the bias of out_head was moved" in capsys.readouterr().out
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "text-classification" in card


def test_a_classifier_whose_bias_cannot_be_moved_is_refused(refused, tmp_path):
    reference = book()
    reference.out_head = nn.Linear(WIDTH, 2)
    with torch.no_grad():
        reference.out_head.weight[1] = -2 * reference.out_head.weight[0]
    message = refused(save(reference.state_dict(), tmp_path / "review_classifier.pth"), *HEADS_FLAG)
    assert "bias of out_head cannot be moved" in message and "linearly dependent" in message


@pytest.mark.thorough
def test_heads_are_derived_for_published_sizes_and_reported(convert, tmp_path, capsys):
    reference = enlarge(BookGPT(VOCABULARY, CONTEXT, width=768, heads=12, layers=1))
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pth")), reference)
    assert model.config.num_attention_heads == 12
    assert "the number of heads is not in the file: set to 12, as in GPT-2 of width 768" in capsys.readouterr().out


def changed_book(change) -> dict:
    state = book(qkv_bias=True).state_dict()
    change(state)
    return state


def rename(state, old, new):
    state[new] = state.pop(old)


BROKEN_BOOKS = {
    "renamed": (
        lambda s: rename(s, "trf_blocks.1.norm2.shift", "trf_blocks.1.norm2.shft"),
        ["trf_blocks.1.norm2.shft", "unexpected tensors"],
    ),
    "missing": (
        lambda s: s.pop("trf_blocks.1.att.out_proj.bias"),
        ["model.layers.1.self_attn.o_proj.bias", "missing parameters"],
    ),
    "no head": (lambda s: s.pop("out_head.weight"), ["no matrix out_head.weight"]),
    "no bias of a norm": (lambda s: s.pop("final_norm.shift"), ["missing parameters: model.norm.bias"]),
    "shape": (
        lambda s: s.update({"trf_blocks.0.ff.layers.0.weight": s["trf_blocks.0.ff.layers.0.weight"].T}),
        ["trf_blocks.0.ff.layers.0.weight is (32, 128) instead of (128, 32) (out, in)"],
    ),
    "twice": (
        lambda s: s.update({"trf_blocks.0.norm1.weight": torch.ones(32)}),
        ["parameters set by two tensors", "trf_blocks.0.norm1.scale and trf_blocks.0.norm1.weight"],
    ),
    "two prefixes": (lambda s: s.update({"module.tok_emb.weight": s["tok_emb.weight"]}), ["both the tensor tok_emb.weight"]),
    "a layer too few": (lambda s: [s.pop(name) for name in list(s) if name.startswith("trf_blocks.0.")], ["trf_blocks.1."]),
    "half a LoRA layer": (lambda s: s.update({"out_head.lora.A": torch.ones(32, 2)}), ["--lora_alpha"]),
    "integers": (lambda s: s.update({"tok_emb.weight": torch.ones(61, 32, dtype=torch.int64)}), ["torch.int64"]),
}


@pytest.mark.parametrize("name", BROKEN_BOOKS)
def test_tensors_that_do_not_fit_are_named(refused, tmp_path, name):
    change, words = BROKEN_BOOKS[name]
    message = refused(save(changed_book(change), tmp_path / "model.pth"), *HEADS_FLAG)
    assert all(word in message for word in words), message


def test_half_a_lora_layer_is_refused(refused, tmp_path):
    state = book().state_dict()
    rename(state, "out_head.weight", "out_head.linear.weight")
    state["out_head.lora.A"] = torch.ones(32, 2)
    path = save(state, tmp_path / "model.pth")
    flags = (*HEADS_FLAG, "--lora_alpha", "1", "--lora_scaling", "alpha")
    assert "the LoRA layer out_head has no out_head.lora.B" in refused(path, *flags)
    state["out_head.lora.B"] = torch.ones(3, 61)
    assert "lora.A [32, 2] times lora.B [3, 61] does not fit" in refused(save(state, path), *flags)


def test_the_number_of_heads_is_requested(refused, tmp_path):
    path = save(book().state_dict(), tmp_path / "model.pth")
    assert "width 32 is not one of GPT-2's published sizes: pass --config_overrides n_heads=N" in refused(path)
    assert "hidden_size 32 is not a multiple of num_attention_heads 5" in refused(path, "--config_overrides", "n_heads=5")


ROTARY = json.dumps({"n_heads": 4, "context_length": 64, "rope_parameters": {"rope_theta": 5000.0}})

BOOK = {
    "gqa": "n_heads=4",
    "swa": "n_heads=4,sliding_window=5",
    "ffn": "n_heads=4",
    "llama3": ROTARY,
    "qwen3": json.dumps({"context_length": 64, "rope_parameters": {"rope_theta": 5000.0}}),
}


@pytest.mark.parametrize("kind", BOOK)
@pytest.mark.quick_cases("swa")
def test_the_books_later_variants(convert, tmp_path, kind, capsys):
    reference = BookVariant(kind)
    enlarge(reference)
    path = save(reference.state_dict(), tmp_path / "model.pth")
    model = check_language_model(convert(path, "--config_overrides", BOOK[kind]), reference)
    assert model.config.num_key_value_heads == (4 if kind in ("swa", "ffn") else 2)
    assert ("same tensors" in capsys.readouterr().out) == (kind in ("gqa", "ffn"))


def test_without_its_window_a_model_computes_something_else(convert, tmp_path, capsys):
    reference = BookVariant("swa")
    enlarge(reference)
    folder = convert(save(reference.state_dict(), tmp_path / "model.pth"), "--config_overrides", "n_heads=4")
    assert "pass --config_overrides sliding_window=N" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        check_language_model(folder, reference)


def test_settings_missing_from_the_books_rotary_models_are_requested(refused, tmp_path):
    path = save(BookVariant("qwen3").state_dict(), tmp_path / "model.pth")
    assert "pass max_position_embeddings and rope_parameters" in refused(path)
    path = save(BookVariant("llama3").state_dict(), path)
    message = refused(path, "--config_overrides", json.dumps({"context_length": 64, "rope_parameters": {"rope_theta": 5000.0}}))
    assert "pass --config_overrides n_heads=N" in message


BEYOND = {
    "experts": (
        {"trf_blocks.0.ff.fc1.0.weight": (4, 4), "trf_blocks.0.ff.gate.weight": (2, 4)},
        "a mixture of experts (trf_blocks.0.ff.",
    ),
    "latent attention": ({"trf_blocks.0.att.W_DKV.weight": (4, 4)}, "multi-head latent attention (trf_blocks.0.att.W_DKV"),
    "both": (
        {"trf_blocks.0.ff.gate.weight": (2, 4), "trf_blocks.0.att.W_DKV.weight": (4, 4)},
        "a mixture of experts (trf_blocks.0.ff.gate.weight) and multi-head latent attention",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_unsupported_parts_are_named(refused, tmp_path, name):
    shapes, words = BEYOND[name]
    state = BookVariant("gqa").state_dict() | {key: torch.ones(shape) for key, shape in shapes.items()}
    assert words in refused(save(state, tmp_path / "model.pth"), "--config_overrides", "n_heads=4")
