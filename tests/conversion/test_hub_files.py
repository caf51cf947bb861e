"""State dicts in transformers' names, saved by torch alone, without the config.json of a directory; and names of one's own."""

from pathlib import Path

import pytest
import torch
from converted import HEADS_FLAG, VOCABULARY, WIDTH, book, check_language_model, save
from tiny_models import randomize
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.thorough


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


STOCK_ROTARY = '{"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 10000.0}'
STOCK = {
    "llama": (STOCK_ROTARY + ', "n_heads": 4}', {"num_key_value_heads": 2}),
    "qwen2": (STOCK_ROTARY + ', "n_heads": 4, "norm_eps": 1e-6}', {"num_key_value_heads": 4}),
    "qwen3": (
        STOCK_ROTARY + "}",
        {"num_key_value_heads": 2, "head_dim": 10, "tie_word_embeddings": True},
    ),  # minimind's layout too
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
    assert "the activation is not in the file: silu" in printed
    assert f"compared with:      {type(theirs).__name__}" in printed and ("norm_eps is not in" in printed) == (kind != "qwen2")


def test_what_a_file_in_transformers_names_does_not_tell_is_asked_for(refused, tmp_path):
    theirs, path = stock_file("llama", tmp_path / "model.pth")
    message = refused(path)
    assert "max_position_embeddings and rope_parameters are in no tensor" in message and '"rope_theta": 1000000.0' in message
    assert "the number of heads is in no tensor" in refused(path, "--config_overrides", STOCK_ROTARY + "}")
    assert "heads of 6 do not fit 32 rows" in refused(path, "--config_overrides", STOCK_ROTARY + ', "n_heads": 5}')
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
