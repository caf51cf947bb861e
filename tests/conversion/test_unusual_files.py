"""Files of trainers, of parts of models and of other programs: read as the model in them, or refused in one line by what they are."""

import json
import struct

import pytest
import torch
from converted import HEADS, NANO, book, check_language_model, enlarge, save
from karpathy_models import LectureGPT, LlamaC
from published_layouts import NanoGPT
from safetensors.torch import save_file, save_model
from stock_models import gpt2, saved
from transformers import AutoModelForCausalLM

from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.formats import recognize
from gpt_scratch.conversion.sources import SafetensorsSource
from gpt_scratch.conversion.state_dicts import read_state_dict
from gpt_scratch.errors import UserError


def sharded_names(name: str) -> str:
    """As FSDP and activation checkpointing name the tensors of wrapped blocks."""
    return "_fsdp_wrapped_module." + name.replace(
        "trf_blocks.1.", "trf_blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module."
    )


WRAPPED = {
    "Lightning": lambda state: {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
    "another attribute": lambda state: {"state_dict": {f"net.{name}": tensor for name, tensor in state.items()}},
    "FSDP": lambda state: {sharded_names(name): tensor for name, tensor in state.items()},
    "compiled blocks": lambda state: {name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in state.items()},
    "DataParallel on some": lambda state: {"module." * (i % 2) + name: state[name] for i, name in enumerate(state)},
    "DeepSpeed": lambda state: {"module": state, "optimizer": None, "ds_version": "0.14"},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_wrappers_add_to_names_is_removed(tmp_path, name):
    state = book().state_dict()
    source, rest = read_state_dict(save(WRAPPED[name](state), tmp_path / "model.pth"))
    assert source.describe().keys() == state.keys()
    assert all(torch.equal(source.get(key), tensor) for key, tensor in state.items())
    assert set(rest) == {"Lightning": {"epoch"}, "DeepSpeed": {"optimizer", "ds_version"}}.get(name, set())


def test_transformers_names_keep_their_first_part(tmp_path):
    state = {f"model.{name}.weight": torch.ones(2, 2) for name in ("embed_tokens", "layers.0.self_attn.q_proj", "norm")}
    for prefix in ("", "model."):  # alone, and in the attribute `model` of a trainer
        path = save({prefix + name: tensor for name, tensor in state.items()}, tmp_path / "model.pth")
        assert read_state_dict(path)[0].describe().keys() == state.keys()


def test_a_tensor_of_two_names_is_read_under_both(tmp_path):
    """`save_model` keeps lm_head alone of a tied model, and names the embedding in the metadata."""
    model = enlarge(NanoGPT(**NANO))
    save_model(model, str(tmp_path / "model.safetensors"))
    source = SafetensorsSource(tmp_path / "model.safetensors")
    assert "transformer.wte.weight" not in source.files
    assert torch.equal(source.get("transformer.wte.weight"), model.lm_head.weight)
    checkpoint = recognize(str(tmp_path / "model.safetensors"), Options({"n_head": HEADS}))
    assert checkpoint.format == "nanogpt" and checkpoint.config.tie_word_embeddings


PARTS = {
    "an adapter": ({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 4)}, "merge_and_unload()"),
    "a shard of FSDP": ({"_fsdp_wrapped_module._flat_param": torch.ones(9)}, "a model sharded by FSDP: save the whole model"),
    "GPTQ": ({"model.layers.0.mlp.up_proj.qweight": torch.ones(2, 2, dtype=torch.int32)}, "has quantized weights. Convert the"),
    "ZeRO-3": (
        {"module": {"tok_emb.weight": torch.ones(0), "w": torch.ones(0)}},
        "most tensors are empty, as in a part of a sharded",
    ),
    "8 bits": (
        {"trf_blocks.0.w": torch.ones(2, 2).to(torch.float8_e4m3fn)},
        "trf_blocks.0.w is of type torch.float8_e4m3fn. Convert",
    ),
    "complex": ({"tok_emb.weight": torch.ones(2, 2, dtype=torch.complex64)}, "is of type torch.complex64. Convert the weights"),
    "a list": ([{"tok_emb.weight": torch.ones(2, 2)}], "contains a list, not a dictionary of tensors: save the tensors by name"),
    "nested": (
        {"model": {"embedding": {"weight": torch.ones(2)}}},
        "no named tensors, neither directly nor in one of its entries, model",
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_models_are_refused_by_what_they_are(refused, tmp_path, name):
    content, words = PARTS[name]
    assert words in refused(save(content, tmp_path / "model.pt"))


def test_quantized_safetensors_are_refused_with_advice(refused, tmp_path):
    save_file({"tok_emb.weight": torch.ones(2, 2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    assert "tok_emb.weight is of type F8_E4M3. Convert the weights as they were before they were" in refused(
        tmp_path / "model.safetensors"
    )


def test_llm_c_is_named(refused, tmp_path):
    (tmp_path / "gpt2_124M.bin").write_bytes(struct.pack("<256i", 20240326, 3, *[0] * 254))
    assert "is a checkpoint of llm.c: convert it to transformers' GPT-2 with llm.c's dev/eval/export_hf.py" in refused(
        tmp_path / "gpt2_124M.bin"
    )


DIRECTORIES = {
    "adapter_config.json": "is an adapter (LoRA), not a model: merge it into its model first",
    "__0_0.distcp": "is a checkpoint of torch.distributed.checkpoint: join it with python -m torch.distributed.checkpoint.format_utils",
    "zero_to_fp32.py": "is a checkpoint of DeepSpeed: join it with python zero_to_fp32.py",
    "mp_rank_00_model_states.pt": "is a checkpoint of DeepSpeed: join it with zero_to_fp32.py in the directory above",
    "model.pth": "give the file with the weights, e.g. ",
    "notes.txt": "contains neither config.json nor a TensorFlow index: give the file with the weights",
}


@pytest.mark.parametrize("name", DIRECTORIES)
def test_directories_of_other_programs_are_refused_by_what_they_are(refused, tmp_path, name):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / name).write_text("{}")
    message = refused(folder)
    assert DIRECTORIES[name] in message and message.endswith("model.pth") == (name == "model.pth")


def test_what_is_beside_the_model_is_named(tmp_path):
    state = book().state_dict()
    path = save({"model": {**state, "trf_blocks.0.att._extra_state": {"scale": 1.0}}, "ema": state}, tmp_path / "model.pth")
    notes = recognize(str(path), Options({"n_heads": HEADS})).notes
    assert "not converted, since these are not the model's tensors: ema, trf_blocks.0.att._extra_state" in notes


def test_a_tensor_in_two_shards_is_refused(refused, tmp_path):
    folder = saved(gpt2(), tmp_path / "original")
    (folder / "model.safetensors").unlink()
    for number in (1, 2):
        save_file({"transformer.wte.weight": torch.full((61, 32), number)}, folder / f"model-{number}.safetensors")
        torch.save({"transformer.wte.weight": torch.full((61, 32), number)}, folder / f"pytorch_model-{number}.bin")
    index = {"weight_map": {"transformer.wte.weight": "model-1.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "transformer.wte.weight is in " in refused(folder)
    (folder / "model.safetensors.index.json").unlink()
    index = {"weight_map": {"transformer.wte.weight": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "transformer.wte.weight is in " in refused(folder)


def test_names_of_a_wrapper_in_a_directory_are_explained(refused, tmp_path):
    folder = saved(gpt2(), tmp_path / "original")
    save_file({"_orig_mod.transformer.wte.weight": torch.ones(61, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "those of a wrapper (torch.compile, DDP, FSDP), e.g. _orig_mod.transformer.wte.weight: save the original" in refused(
        folder
    )


UNREADABLE = {
    "numbers as names": ({0: torch.ones(2)}, "the name of a tensor is 0, which is not a string"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "a is a sparse_coo tensor: save the plain weights"),
    "quantized": ({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, "a is a quantized tensor"),
    "8 bits": ({"a": torch.ones(2).to(torch.float8_e4m3fn)}, "a is of type torch.float8_e4m3fn. Convert the weights"),
    "DDP": ({"module.a": torch.ones(2)}, "those of a wrapper (torch.compile, DDP, FSDP), e.g. module.a"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_pickles_in_a_directory_are_checked_like_files(refused, tmp_path, name):
    folder = saved(gpt2(), tmp_path / "original")
    (folder / "model.safetensors").unlink()
    content, words = UNREADABLE[name]
    save(content, folder / "pytorch_model.bin")
    assert words in refused(folder)


def nano(**changes) -> dict:
    return {"model": {**enlarge(NanoGPT(**NANO)).state_dict()}, "model_args": {**NANO}} | changes


def test_one_missing_bias_of_a_norm_is_not_zero(refused, tmp_path):
    """nanoGPT's bias=False leaves out all of them."""
    content = nano()
    del content["model"]["transformer.h.1.ln_2.bias"]
    message = refused(save(content, tmp_path / "ckpt.pt"))
    assert "missing parameters: model.layers.1.post_attention_layernorm.bias" in message


def test_settings_of_a_fork_are_refused_by_name(refused, tmp_path):
    message = refused(save(nano(model_args=NANO | {"use_rope": True, "window": 3}), tmp_path / "ckpt.pt"))
    assert "model_args has settings that nanoGPT does not have: use_rope=True, window=3; if they do not change" in message


def test_nan_in_a_tied_matrix_is_named(refused, tmp_path):
    content = nano()
    content["model"]["transformer.wte.weight"] = content["model"]["lm_head.weight"] = torch.full((61, 32), torch.nan)
    assert "transformer.wte.weight has NaN (1,952 of 1,952 values)" in refused(save(content, tmp_path / "ckpt.pt"))


def test_grouped_heads_of_a_published_width_are_asked_for_truly(refused, tmp_path):
    state = book().state_dict()
    for name in ("tok_emb", "pos_emb", "out_head"):
        state[f"{name}.weight"] = torch.ones(61, 768)
    state["trf_blocks.0.att.W_query.weight"] = torch.ones(768, 768)
    message = refused(save(state, tmp_path / "model.pth"))
    assert "and its keys have fewer heads than its queries: pass --config_overrides n_heads=N" in message


@pytest.mark.thorough
def test_a_tied_head_may_be_missing(convert, tmp_path, capsys):
    content, reference = nano(), enlarge(NanoGPT(**NANO))
    del content["model"]["lm_head.weight"]
    model = check_language_model(convert(save(content, tmp_path / "ckpt.pt")), reference)
    assert model.config.tie_word_embeddings and "lm_head.weight is not in the file: tied to wte" in capsys.readouterr().out


@pytest.mark.thorough
def test_the_lectures_gpt_with_the_scale_of_the_video(convert, tmp_path, capsys):
    """The first copies divide the scores by the root of the width; the note says how to scale the queries."""
    reference = enlarge(LectureGPT(video=True), seed=1)
    state = reference.state_dict()
    scaled = {name: tensor * (8 / 32) ** 0.5 if "query" in name else tensor for name, tensor in state.items()}
    ids = torch.arange(60)[None]
    with torch.no_grad():
        expected = reference(ids)
        for tensors, largest in ((state, None), (scaled, 1e-5)):
            folder = convert(save(tensors, tmp_path / "model.pt"))
            assert "C is the width: multiply its query weights by (8 / 32)**0.5 first" in capsys.readouterr().out
            difference = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits - expected).abs().max()
            assert difference > 0.01 if largest is None else difference < largest


META = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "vocab_size": -1, "multiple_of": 32, "norm_eps": 1e-5}


@pytest.mark.thorough
def test_metas_own_file_of_llama(convert, refused, tmp_path, capsys):
    """`consolidated.00.pth` has llama2.c's names, and its settings in `params.json`."""
    reference = enlarge(LlamaC(own_head=True, theta=5000.0))
    path = save(reference.state_dict(), tmp_path / "consolidated.00.pth")
    flags = ("--config_overrides", "context_length=64")
    assert "n_heads, which cannot be derived" in refused(path, *flags)
    (tmp_path / "params.json").write_text(json.dumps(META | {"rope_theta": 5000.0}))
    assert "no max_seq_len, which cannot be derived: pass --config_overrides context_length=N" in refused(path)
    check_language_model(convert(path, *flags), reference)
    assert "the settings were read from" in capsys.readouterr().out
    (tmp_path / "params.json").write_text(json.dumps(META | {"norm_eps": 1e-6}))
    assert recognize(str(path), Options({"context_length": 64})).config.norm_eps == 1e-6
    for changes, words in (
        ({"n_layers": 3}, "n_layers is 3, but the tensors have 2"),
        ({"n_kv_heads": 4}, "n_kv_heads is 4, but the tensors have 2"),
        ({"use_scaled_rope": True}, "use_scaled_rope does not tell by what factor"),
        ({"moe_args": {}}, "settings that llama2.c does not have: moe_args=.*;"),
    ):
        (tmp_path / "params.json").write_text(json.dumps(META | changes))
        with pytest.raises(UserError, match=words):
            recognize(str(path), Options({"context_length": 64}))
