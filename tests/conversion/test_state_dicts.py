"""Files of the book's models and of nanoGPT, converted as a user does it, against the published layouts in plain torch."""

import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from published_layouts import BookGPT, NanoGPT, add_lora, greedy
from safetensors.torch import save_file
from tiny_models import assert_equal, randomize
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 61, 64, 32, 4, 2
HEADS_FLAG = ("--config_overrides", f"n_heads={HEADS}")
NANO = {"n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 64, "bias": True, "vocab_size": 61, "dropout": 0.1}


def enlarge(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of standard deviation 0.25, norms around one, no bias zero."""
    randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".scale"):  # the book's name of a norm's weight
                parameter.add_(1.0)
    return model.eval()


def book(**arguments) -> BookGPT:
    return enlarge(BookGPT(VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS, **arguments))


def save(content, path):
    torch.save(content, path)
    return path


@torch.no_grad()
def check_language_model(folder, reference, vocabulary=VOCABULARY):
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, vocabulary, (3, CONTEXT), generator=torch.Generator().manual_seed(0))
    expected = reference(ids)[..., :vocabulary]
    assert expected.abs().max() > 2  # large enough to show errors
    assert_equal(model(ids).logits, expected)
    start = ids[:1, : CONTEXT - 50]
    ours = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=50, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, greedy(reference, start, 50))
    return model


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
    assert "ignored, not weights of the model: optimizer_state_dict" in capsys.readouterr().out


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
    assert bias.abs().max() > 0.05  # a lost bias would show
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


def test_heads_are_derived_for_published_sizes_and_reported(convert, tmp_path, capsys):
    reference = enlarge(BookGPT(VOCABULARY, CONTEXT, width=768, heads=12, layers=1))
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pth")), reference)
    assert model.config.num_attention_heads == 12
    assert "the number of heads is not in the file: set to 12, as in GPT-2 of width 768" in capsys.readouterr().out


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [True, False], ids=["mask", "no-mask"])
def test_nanogpt(convert, tmp_path, bias, mask):
    reference = enlarge(NanoGPT(**NANO | {"bias": bias}, mask=mask))
    optimizer = torch.optim.AdamW(reference.parameters())
    content = {
        "model": {"_orig_mod." + name: tensor for name, tensor in reference.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": NANO | {"bias": bias},
        "iter_num": 3,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char"},
    }
    path = save(content, tmp_path / "ckpt.pt")
    model = check_language_model(convert(path), reference)
    assert model.config.hidden_act == "gelu" and model.config.tie_word_embeddings
    assert model.config.residual_dropout == model.config.attention_dropout == model.config.embedding_dropout == 0.1
    assert model.config.o_bias == model.config.mlp_bias == model.config.qkv_bias == bias
    with pytest.raises(AssertionError):  # the tanh form of GELU would be noticed
        check_language_model(convert(path, "--config_overrides", "hidden_act=gelu_new"), reference)


@pytest.mark.thorough
def test_nanogpt_of_a_padded_vocabulary(convert, tmp_path, capsys):
    args = NANO | {"vocab_size": 50304, "n_embd": 8, "n_head": 2, "n_layer": 1, "bias": False}
    reference = enlarge(NanoGPT(**args))
    path = save({"model": reference.state_dict(), "model_args": args}, tmp_path / "ckpt.pt")
    model = check_language_model(convert(path), reference, vocabulary=50257)
    assert model.config.vocab_size == 50257
    assert "the last 47, unused rows were removed" in capsys.readouterr().out


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


def test_heads_are_asked_for(refused, tmp_path):
    path = save(book().state_dict(), tmp_path / "model.pth")
    assert "width 32 is not one of GPT-2's published sizes: pass --config_overrides n_heads=N" in refused(path)
    assert "hidden_size 32 is not a multiple of num_attention_heads 5" in refused(path, "--config_overrides", "n_heads=5")


def nano_content(**changes) -> dict:
    model = enlarge(NanoGPT(**NANO)).state_dict()
    return {"model": {**model}, "model_args": {**NANO}} | changes


def test_broken_nanogpt_is_refused(refused, tmp_path):
    path = tmp_path / "ckpt.pt"
    assert "the number of heads is not in the file, and width 32" in refused(save({"model": nano_content()["model"]}, path))
    assert "model_args has no n_head: pass --config_overrides n_head=N" in refused(
        save(nano_content(model_args={"n_layer": 2}), path)
    )
    for name, value, words in (
        ("n_head", None, "n_head of model_args is 'None', of type NoneType: expected a whole number"),
        ("bias", "False", "bias of model_args is 'False', of type str: expected true or false"),
        ("dropout", None, "dropout of model_args is 'None', of type NoneType: expected a number"),
        ("dropout", torch.tensor(0.1), "dropout of model_args is 'tensor(0.1000)', of type Tensor: expected a number"),
    ):
        assert words in refused(save(nano_content(model_args=NANO | {name: value}), path))
    assert "model_args is a list, expected a dictionary" in refused(save(nano_content(model_args=[2]), path))
    content = nano_content()
    content["model"]["lm_head.weight"] = content["model"]["lm_head.weight"] + 1
    assert "lm_head.weight differs from transformer.wte.weight" in refused(save(content, path))
    message = refused(save(nano_content(model_args=NANO | {"n_layer": 3}), path))
    assert "sizes in model_args" in message and "model.layers.2." in message
    message = refused(save(nano_content(model_args=NANO | {"bias": False}), path))
    assert "transformer.h.0.attn.c_attn.bias" in message and "unexpected tensors" in message


def their_gpt2():
    from stock_models import gpt2

    return randomize(gpt2()).eval()


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.quick_cases("transformer.")
def test_gpt2_saved_by_torch_alone(convert, tmp_path, capsys, prefix):
    """`torch.save(model.state_dict())` of transformers' class: nanoGPT's names, but (in, out); without a head from the base class."""
    theirs = their_gpt2()
    state = theirs.state_dict() if prefix else theirs.transformer.state_dict()
    folder = convert(save(state, tmp_path / "gpt2.pt"), *HEADS_FLAG)
    model = check_language_model(folder, lambda ids: theirs(ids).logits)
    assert model.config.tie_word_embeddings and model.config.hidden_act == "gelu_new"
    printed = capsys.readouterr().out
    assert "format hub_file" in printed and "compared with:      GPT2LMHeadModel" in printed


ROTARY = '{"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10000.0}'
STOCK = {
    "llama": (ROTARY + ', "n_heads": 4}', {"num_key_value_heads": 2}),
    "qwen2": (ROTARY + ', "n_heads": 4, "norm_eps": 1e-6}', {"num_key_value_heads": 4}),
    "qwen3": (ROTARY + "}", {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True}),  # minimind's layout too
}


def stock_file(kind, path):
    """A model of transformers, and its state dict as a file alone."""
    from transformers import AutoConfig

    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    theirs = randomize(AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **STOCK[kind][1]))).eval()
    if kind == "llama":
        for module in theirs.modules():  # Llama 3 has 1e-5, and LlamaConfig 1e-6
            module.variance_epsilon = 1e-5
    return theirs, save(theirs.state_dict(), path)


@pytest.mark.parametrize("kind", STOCK)
def test_llama_and_qwen_saved_by_torch_alone(convert, tmp_path, capsys, kind):
    theirs, path = stock_file(kind, tmp_path / "model.pth")
    model = check_language_model(convert(path, "--config_overrides", STOCK[kind][0]), lambda ids: theirs(ids).logits)
    assert (model.config.qk_norm, model.config.qkv_bias) == (kind == "qwen3", kind == "qwen2")
    printed = capsys.readouterr().out
    assert f"compared with:      {type(theirs).__name__}" in printed and ("norm_eps is not in" in printed) == (kind != "qwen2")


def test_what_a_file_in_transformers_names_does_not_tell_is_asked_for(refused, tmp_path):
    theirs, path = stock_file("llama", tmp_path / "model.pth")
    message = refused(path)
    assert "max_position_embeddings and rope_parameters are in no tensor" in message and '"rope_theta": 1000000.0' in message
    assert "the number of heads is in no tensor" in refused(path, "--config_overrides", ROTARY + "}")
    assert "heads of 6 do not fit 32 rows" in refused(path, "--config_overrides", ROTARY + ', "n_heads": 5}')
    state = theirs.state_dict()
    experts = state | {"model.layers.0.mlp.experts.0.up_proj.weight": torch.ones(2, 2)}
    assert "has a mixture of experts (model.layers.0.mlp.experts.0" in refused(save(experts, path))
    plain = {name: tensor for name, tensor in state.items() if "gate_proj" not in name}
    assert "has no matrix model.layers.0.mlp.gate_proj.weight: it is no complete model of Llama" in refused(save(plain, path))
    assert "is a classifier" in refused(save(state | {"score.weight": torch.ones(2, 32)}, path))
    (tmp_path / "config.json").write_text("{}")
    assert "has a config.json beside it: name the directory" in refused(path)


def renamed(path, formats_page, file):
    """Run the example of scripts/README.md that gives a model's tensors the names of a known format."""
    section = formats_page.split("### Other names")[1]
    code = section.split("```python\n")[1].split("```")[0].replace("model.pt", str(path)).replace("renamed.pth", str(file))
    exec(compile(code, "scripts/README.md", "exec"), {})
    return file


def test_names_of_ones_own_as_the_page_says(convert, refused, tmp_path):
    """The book's model under other names is refused, and converted after the few lines of the page."""
    reference = book()
    own = {
        "tok_emb": "token_embedding",
        "pos_emb": "position_embedding",
        "trf_blocks": "transformer_blocks",
        ".att.": ".attention.",
    }
    own |= {"out_proj": "linear", "norm1": "layer_norm1", "norm2": "layer_norm2", "final_norm": "final_layer_norm"}
    state = {}
    for name, tensor in reference.state_dict().items():
        for old, new in own.items():
            name = name.replace(old, new)
        state[name] = tensor
    path = save(state, tmp_path / "model.pt")
    message = refused(path, *HEADS_FLAG)
    assert "an unknown format; its tensors are token_embedding.weight, " in message and "Other names" in message
    page = (Path(__file__).parents[2] / "scripts" / "README.md").read_text(encoding="utf-8")
    check_language_model(convert(renamed(path, page, tmp_path / "renamed.pth"), *HEADS_FLAG), reference)


def test_unknown_files_are_refused(refused, tmp_path):
    path = tmp_path / "model.pth"
    assert "post-norm" in refused(save({"transformer_blocks.0.attention.heads.0.w_query.weight": torch.ones(2)}, path))
    assert "an unknown format; its tensors are fc.weight" in refused(save({"fc.weight": torch.ones(2)}, path))
    assert "contains a list, not a dictionary" in refused(save([torch.ones(2)], path))
    assert "contains no named tensors" in refused(save({"epoch": 3}, path))
    assert "has no matrix model.embed_tokens.weight" in refused(save({"model.embed_tokens.weight": torch.ones(2)}, path))
    path.write_bytes(pickle.dumps({"model": [1.0]}, protocol=4))
    assert "was written by pickle, not by torch.save" in refused(path)
    assert "the name of a tensor is 0, which is not a string" in refused(save({0: torch.ones(2), 1: torch.ones(2)}, path))
    several = {"generator": {"a": torch.ones(2)}, "ema": {"a": torch.ones(2)}, "optimizer": {"a": torch.ones(2)}}
    assert "contains several sets of tensors, generator, ema: save the one to convert" in refused(save(several, path))
    sparse = {"trf_blocks.0.w": torch.eye(2).to_sparse()}
    assert "trf_blocks.0.w is a sparse_coo tensor: save the plain weights" in refused(save(sparse, path))
    quantized = {"trf_blocks.0.w": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
    assert "trf_blocks.0.w is a quantized tensor" in refused(save(quantized, path))
    assert "not a local path" in refused(tmp_path / "nothing.pth")
    assert "give the file with the weights" in refused(tmp_path)


@pytest.mark.parametrize(
    ("value", "words"), [(torch.nan, "has NaN (1 of 1,024 values)"), (torch.inf, "has infinite values (1 of 1,024")]
)
def test_weights_that_are_no_numbers_are_named(refused, tmp_path, value, words):
    state = book().state_dict()
    state["trf_blocks.1.att.out_proj.weight"][3, 5] = state["trf_blocks.0.norm1.scale"][0] = value
    message = refused(save(state, tmp_path / "model.pth"), *HEADS_FLAG)
    assert f"trf_blocks.1.att.out_proj.weight {words}" in message and "trf_blocks.0.norm1.scale has" in message


def test_weights_beyond_the_asked_dtype_are_named(refused, tmp_path):
    state = book().state_dict()
    state["tok_emb.weight"][3, 5] = 1e6
    message = refused(save(state, tmp_path / "model.pth"), *HEADS_FLAG, "--dtype", "float16")
    assert "tok_emb.weight has values beyond the range of float16: choose another --dtype" in message


def test_an_index_of_shards_that_is_no_text_is_refused(refused, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "\\ud800.safetensors"}}', encoding="utf-8")
    assert "index.json: '\\ud800.safetensors' in weight_map is not a string" in refused(tmp_path / "model")
    index.write_text('{"weight_map": {"a": 3}}', encoding="utf-8")
    assert "is not an index of shards" in refused(tmp_path / "model")


class Harmful:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_a_pickle_with_code_is_refused_and_not_run(refused, tmp_path):
    path, target = tmp_path / "model.pth", tmp_path / "made-by-the-pickle"
    state = book().state_dict() | {"extra": Harmful(target)}
    for zipped in (True, False):
        torch.save(state, path, _use_new_zipfile_serialization=zipped)
        message = refused(path, *HEADS_FLAG)
        assert "model.pth contains posix.mkdir" in message or "model.pth holds nt.mkdir" in message
        assert "not run" in message and "torch.save(model.state_dict()" in message and not target.exists()
    torch.save(book(), path)  # a whole model needs its class to load
    assert "holds published_layouts.BookGPT" in refused(path)
    path.write_bytes(pickle.dumps(Harmful(target), protocol=2))
    assert "mkdir" in refused(path) and not target.exists()
    torch.load(save({"extra": Harmful(target)}, path), weights_only=False)
    assert target.exists()  # it would have been harmful


def test_damaged_files_are_refused(refused, tmp_path):
    path = save(book().state_dict(), tmp_path / "model.pth")
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    middle = info.header_offset + info.file_size // 2
    for damaged in (
        whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
        whole[: len(whole) // 2],
        b"",
        b"this is no checkpoint",
    ):
        path.write_bytes(damaged)
        message = refused(path, *HEADS_FLAG)
        assert "model.pth is damaged" in message or "model.pth is broken" in message
