"""Files of minGPT, makemore, the lecture's GPT, llama2.c, litgpt and the book's later variants, against those models in plain torch."""

import json
import pickle
from pathlib import Path

import pytest
import torch
import yaml
from other_programs import LITGPT, BookVariant, LectureGPT, LitGPT, LlamaC, MinGPT, as_older_litgpt, write_llama_bin
from published_layouts import NanoGPT
from test_state_dicts import NANO, check_language_model, enlarge, save

HEADS = ("--config_overrides", "n_head=4")


def test_mingpt_and_makemore(convert, tmp_path, capsys):
    reference = enlarge(MinGPT())
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pt"), *HEADS), reference)
    assert model.config.hidden_act == "gelu_new" and not model.config.tie_word_embeddings
    printed = capsys.readouterr().out
    assert "format nanogpt" in printed and "lm_head differs from wte, as in minGPT and makemore" in printed


@pytest.mark.parametrize("wrapper", [None, "model_state", "state", "net"])
@pytest.mark.quick_cases("None")
def test_a_bare_nanogpt_under_any_name(convert, tmp_path, wrapper):
    reference = enlarge(NanoGPT(**NANO))
    state = reference.state_dict()
    optimizer = torch.optim.AdamW(reference.parameters())
    content = state if wrapper is None else {wrapper: state, "optimizer_state": optimizer.state_dict(), "loss": torch.tensor(1.0)}
    model = check_language_model(convert(save(content, tmp_path / "model.pt"), *HEADS), reference)
    assert model.config.hidden_act == "gelu" and model.config.tie_word_embeddings


def test_what_model_args_lack_comes_from_the_command_line(convert, refused, tmp_path):
    reference = enlarge(NanoGPT(**NANO))
    args = {name: value for name, value in NANO.items() if name != "n_head"}
    path = save({"model": reference.state_dict(), "model_args": args}, tmp_path / "ckpt.pt")
    assert "model_args has no n_head: pass --config_overrides n_head=N" in refused(path)
    check_language_model(convert(path, *HEADS), reference)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.quick_cases("3")
def test_the_lectures_gpt(convert, tmp_path, capsys, layers):
    reference = enlarge(LectureGPT(layers=layers))
    assert reference.lm_head.bias.abs().max() > 0.1  # a lost bias would show
    model = check_language_model(convert(save(reference.state_dict(), tmp_path / "model.pt")), reference)
    assert model.config.num_attention_heads == 4 and model.config.lm_head_bias and model.config.hidden_act == "relu"
    printed = capsys.readouterr().out
    assert "format lecture" in printed and "post-norm GPT with the same names, as in freeCodeCamp's course" in printed


@pytest.mark.parametrize("own_head", [False, True])
@pytest.mark.parametrize("form", ["ckpt.pt", "version 0", "version 1"])
@pytest.mark.quick_cases("version 1-True")
def test_llama2c(convert, tmp_path, form, own_head):
    reference = enlarge(LlamaC(own_head=own_head))
    if form == "ckpt.pt":
        content = {"model": reference.state_dict(), "model_args": reference.model_args, "iter_num": 3}
        path = save(content, tmp_path / "ckpt.pt")
    else:
        path = write_llama_bin(reference, tmp_path / "model.bin", int(form[-1]))
    model = check_language_model(convert(path), reference)
    assert model.config.tie_word_embeddings != own_head and model.config.num_key_value_heads == 2


VARIANTS = {
    "llama": {},
    "window": {"sliding_window_size": 5},
    "gpt-neox mlp": {"mlp_class_name": "GptNeoxMLP", "norm_class_name": "LayerNorm", "bias": True, "n_query_groups": 4},
    "qwen3": {"norm_qk": True, "head_size": 10},
    "qwen2": {"attn_bias": True, "lm_head_bias": True},
}


def lit_folder(folder, state, settings):
    folder.mkdir()
    torch.save({"model": state}, folder / "lit_model.pth")
    (folder / "model_config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.quick_cases("qwen3-False")
def test_litgpt(convert, tmp_path, name, older):
    reference = enlarge(LitGPT(**VARIANTS[name]))
    state = as_older_litgpt(reference) if older else reference.state_dict()
    folder = lit_folder(tmp_path / "lit", state, reference.settings)
    model = check_language_model(convert(folder), reference, vocabulary=64)
    assert model.config.sliding_window == VARIANTS[name].get("sliding_window_size")


def test_pythia_is_refused_by_each_of_its_settings(refused, tmp_path):
    settings = LITGPT | {
        "parallel_residual": True,
        "rotary_percentage": 0.25,
        "tomorrow": 1,
        "mlp_class_name": "LLaMAMoE",
        "n_expert": 4,
    }
    folder = lit_folder(tmp_path / "pythia", LitGPT().state_dict(), settings)
    message = refused(folder)
    for words in (
        "parallel_residual=True (it must be False)",
        "rotary_percentage=0.25",
        "tomorrow is unknown",
        "LLaMAMoE",
        "n_expert=4",
    ):
        assert words in message
    (folder / "model_config.yaml").write_text("{", encoding="utf-8")
    assert "model_config.yaml cannot be read as YAML" in refused(folder)
    (folder / "model_config.yaml").unlink()
    assert "model_config.yaml is missing" in refused(folder / "lit_model.pth")


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


def test_a_window_that_is_not_told_is_another_function(convert, tmp_path, capsys):
    reference = BookVariant("swa")
    enlarge(reference)
    folder = convert(save(reference.state_dict(), tmp_path / "model.pth"), "--config_overrides", "n_heads=4")
    assert "pass --config_overrides sliding_window=N" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        check_language_model(folder, reference)


def test_what_the_books_rotary_models_do_not_tell_is_asked_for(refused, tmp_path):
    path = save(BookVariant("qwen3").state_dict(), tmp_path / "model.pth")
    assert "pass max_position_embeddings and rope_parameters" in refused(path)
    path = save(BookVariant("llama3").state_dict(), path)
    message = refused(path, "--config_overrides", json.dumps({"context_length": 64, "rope_parameters": {"rope_theta": 5000.0}}))
    assert "pass --config_overrides n_heads=N" in message


BEYOND = {
    "experts": ({"trf_blocks.0.ff.fc1.0.weight": (4, 4), "trf_blocks.0.ff.gate.weight": (2, 4)}, "a mixture of experts"),
    "latent attention": ({"trf_blocks.0.att.W_DKV.weight": (4, 4)}, "multi-head latent attention"),
}


@pytest.mark.parametrize("name", BEYOND)
def test_what_the_architecture_does_not_have_is_named(refused, tmp_path, name):
    shapes, words = BEYOND[name]
    state = BookVariant("gqa").state_dict() | {key: torch.ones(shape) for key, shape in shapes.items()}
    assert f"{words} (trf_blocks.0." in refused(save(state, tmp_path / "model.pth"), "--config_overrides", "n_heads=4")


def test_nanochat_is_refused_by_what_it_has(refused, tmp_path):
    names = ("wte.weight", "h.0.attn.c_q.weight", "h.0.attn.ve_gate.weight")
    state = {f"transformer.{name}": torch.ones(4, 4) for name in names} | {"resid_lambdas": torch.ones(2)}
    message = refused(save(state, tmp_path / "model_000100.pt"))
    assert (
        "a nanochat model" in message
        and "softcap" in message
        and "gates of value embeddings" in message
        and "resid_lambdas" in message
    )
    assert "x0_lambdas" not in message


def change_bytes(path, place, data):
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + data + whole[place + len(data) :])
    return path


def test_broken_bins_are_refused(refused, tmp_path):
    def path(version):
        return write_llama_bin(LlamaC(), tmp_path / "model.bin", version)

    assert "version 2; only 0 and 1 (float32) are supported" in refused(change_bytes(path(1), 4, b"\2"))
    assert "the sizes in its header need" in refused(change_bytes(path(0), 0, (64).to_bytes(4, "little")))
    assert "its header contains dim 0" in refused(change_bytes(path(0), 0, bytes(4)))
    file = path(1)
    file.write_bytes(file.read_bytes()[:-4])
    assert "or is truncated" in refused(file)
    file.write_bytes(b"short")
    assert "truncated" in refused(file)


def test_nanogpts_characters_come_along(convert, tmp_path, capsys):
    from transformers import AutoTokenizer

    reference = enlarge(NanoGPT(**NANO))
    characters = [chr(32 + i) for i in range(NANO["vocab_size"])]
    meta = {"vocab_size": len(characters), "itos": dict(enumerate(characters)), "stoi": {c: i for i, c in enumerate(characters)}}
    path = save({"model": reference.state_dict(), "model_args": NANO}, tmp_path / "ckpt.pt")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.pkl").write_bytes(pickle.dumps(meta))
    folders = [convert(path, "--tokenizer", str(tmp_path / "data" / "meta.pkl"))]
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))  # beside the checkpoint it is found
    folders.append(convert(path))
    assert "the tokenizer was read from" in capsys.readouterr().out
    for folder in folders:
        check_language_model(folder, reference)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("HI there"[:2])["input_ids"] == [ord("H") - 32, ord("I") - 32]


def test_the_table_of_their_own_code_is_what_was_measured():
    """`formats.json` holds every program, none failed, and the page shows its figures."""
    from their_programs import PROGRAMS

    folder = Path(__file__).parents[2] / "scripts" / "benchmark_results"
    rows = json.loads((folder / "formats.json").read_text(encoding="utf-8"))["rows"]
    assert [row["format"] for row in rows] == list(PROGRAMS) and not any("failed" in row for row in rows)
    lines = (folder / "README.md").read_text(encoding="utf-8").split("<!-- formats.json -->")[1].splitlines()[3:]
    for row, line in zip(rows, lines, strict=True):
        cells = line.split(" | ")
        assert cells[0] == f"| {row['format']}" and row["repository"] in cells[1] and row["commit"][:7] in cells[1]
        if "difference" not in row:
            assert "refused: " in cells[3]
        elif not row.get("look_alike"):
            assert f"{row['difference']:.1e}, {row['largest_logit']:.1f}" in cells[3]
