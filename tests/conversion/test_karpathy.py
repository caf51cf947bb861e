"""Checkpoints of nanoGPT, minGPT, makemore, the lecture's GPT and llama2.c, against those models in plain torch; nanochat's are refused."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from converted import NANO, check_language_model, enlarge, save
from karpathy_models import LectureGPT, LlamaC, MinGPT, write_llama_bin
from published_layouts import NanoGPT

pytestmark = pytest.mark.thorough


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
    assert reference.lm_head.bias.abs().max() > 0.1  # large enough to notice a lost bias
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
    assert model.config.residual_dropout == (0.1 if form == "ckpt.pt" else 0.0)


def test_nanochat_is_refused_with_its_unsupported_parts(refused, tmp_path):
    names = ("wte.weight", "h.0.attn.c_q.weight", "h.0.attn.ve_gate.weight")
    state = {f"transformer.{name}": torch.ones(4, 4) for name in names} | {"resid_lambdas": torch.ones(2)}
    message = refused(save(state, tmp_path / "model_000100.pt"))
    assert (
        "the tensor names of nanochat or modded-nanogpt" in message
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


def test_nanogpts_characters_are_converted(convert, tmp_path, capsys):
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
