"""GGUF: transformers, and llama.cpp where its binding is installed, read the model and its tokenizer back."""

import copy
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_models import assert_equal, tiny_config, tiny_model
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.formats import recognize
from gpt_scratch.conversion.gguf_files import read_gguf
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.export import gguf as gguf_export

pytestmark = pytest.mark.thorough

gguf = pytest.importorskip("gguf")

TEXTS = [
    "The cat sat on the mat.",
    " they're 12 Ünïcode 漢字 🙂\n\n\ttabs  and  spaces ",
    "<|endoftext|>The<|start|> hat <mark> on",
]


@pytest.fixture
def export(script, tmp_path):
    """A function `(model, *flags) -> (file, figures)` that runs the script."""
    module = script("export")

    def run(model, *flags):
        output = tmp_path / "written" / "model.gguf"
        return output, run_script(lambda: module.main(module.parse(["gguf", str(model), str(output), *flags])))

    return run


@torch.no_grad()
def test_transformers_reads_the_same_function_and_tokenizer(export, checkpoint, style, capsys):
    path, figures = export(checkpoint)
    assert "largest difference: " in capsys.readouterr().out
    model, theirs = AutoModelForCausalLM.from_pretrained(checkpoint), read_gguf(path)
    assert type(theirs).__name__ == {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[style]
    ids = torch.randint(0, model.config.vocab_size, (3, 64), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits
    assert expected.abs().max() > 1
    assert_equal(theirs(ids).logits, expected)
    assert figures["max_logit_difference"] < 1e-5 * figures["max_logit"]
    ours, tokenizer = AutoTokenizer.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == ours(text)["input_ids"]
        assert tokenizer.decode(ours(text)["input_ids"]) == ours.decode(ours(text)["input_ids"])
    assert tokenizer.eos_token_id == ours.eos_token_id and tokenizer.bos_token_id == ours.bos_token_id


def llama_cpp_logits(path, ids: list[int], text: str | None = None) -> torch.Tensor:
    """Of every token, (T, V), by llama.cpp; with `text`, its own tokenizer must give `ids`."""
    import llama_cpp

    float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache, of 16 bits by default
    runtime = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, logits_all=True, verbose=False, **float32)
    assert text is None or runtime.tokenize(text.encode(), add_bos=False, special=True) == ids
    runtime.eval(ids)
    return torch.from_numpy(np.array(runtime.scores[: len(ids)]))


def llama_cpp_tokens(path, ids: list[int], count: int) -> list[int]:
    """The most likely tokens after `ids`, by llama.cpp."""
    import llama_cpp

    float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    runtime = llama_cpp.Llama(str(path), n_ctx=64, n_threads=1, verbose=False, **float32)
    grown = runtime.generate(ids, temp=0.0, repeat_penalty=1.0)
    return [next(grown) for _ in range(count)]


def greedy(model, ids: list[int], count: int) -> list[int]:
    asked = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    start = torch.tensor([ids])
    return model.generate(start, attention_mask=torch.ones_like(start), **asked)[0, len(ids) :].tolist()


def save_qwen(folder, tokenizer, layout: str):
    """A model of this package that this layout of Qwen can hold, saved there."""
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "tie_word_embeddings": layout == "qwen2"}
    model = tiny_model("llama", **sizes, **QWEN[layout])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


ROPE = {"rope_type": "default", "rope_theta": 500.0}
QWEN = {
    "qwen2": {"qkv_bias": True, "rope_parameters": ROPE},
    "qwen3": {"qk_norm": True, "head_dim": 10, "norm_eps": 1e-2, "rope_parameters": ROPE},
}


@pytest.mark.parametrize("layout", QWEN)
@torch.no_grad()
@pytest.mark.quick_cases("qwen3")
def test_qwens_layouts_round_trip(export, script, tokenizer, tmp_path, layout):
    """Read by transformers as its own Qwen, and by the conversion, which gives back every bit."""
    model = save_qwen(tmp_path / "ours", tokenizer, layout)
    path, figures = export(tmp_path / "ours")
    theirs = read_gguf(path)
    assert type(theirs).__name__ == {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[layout] == figures["compared_with"]
    ids = torch.randint(0, len(tokenizer), (3, 64), generator=torch.Generator().manual_seed(0))
    expected = model(ids).logits
    assert_equal(theirs(ids).logits, expected)
    start = ids[:, :20]
    asked = {
        "attention_mask": torch.ones_like(start),
        "max_new_tokens": 20,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": None,
    }
    assert torch.equal(theirs.generate(start, **asked), model.generate(start, **asked))
    convert = script("convert_checkpoint")
    convert.main(convert.parse([str(path), str(tmp_path / "back")]))
    before, after = load_file(tmp_path / "ours" / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


SETTINGS = {
    "gpt2": ({"norm_eps": 1e-2}, {"attention.layer_norm_epsilon": 1e-2}),
    "llama": (
        {"norm_eps": 1e-2, "rope_parameters": ROPE, "head_dim": 10},
        {
            "attention.layer_norm_rms_epsilon": 1e-2,
            "rope.freq_base": 500.0,
            "attention.head_count_kv": 2,
            "attention.key_length": 10,
            "attention.value_length": 10,
            "rope.dimension_count": 10,
        },
    ),
}


@pytest.mark.parametrize("style", SETTINGS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_every_setting_is_a_key(tokenizer, tmp_path, style, adds_bos):
    """None has its usual value, which a reader would assume."""
    settings, expected = SETTINGS[style]
    start = copy.deepcopy(tokenizer)
    if adds_bos:
        first = [(start.bos_token, start.bos_token_id)]
        start.backend_tokenizer.post_processor = TemplateProcessing(single=f"{start.bos_token} $A", special_tokens=first)
    model = tiny_model(style, vocab_size=len(start), max_position_embeddings=48, intermediate_size=40, **settings)
    model.save_pretrained(tmp_path / "ours")
    start.save_pretrained(tmp_path / "ours")
    checkpoint = recognize(str(tmp_path / "ours"), Options())
    gguf_export.write_gguf(tmp_path / "m.gguf", checkpoint, style, "f32", gguf_export.tokenizer_fields(checkpoint), "m")
    written = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    sizes = {"context_length": 48, "embedding_length": 32, "block_count": 2, "feed_forward_length": 40, "vocab_size": len(start)}
    for name, value in {**sizes, "attention.head_count": 4, **expected}.items():
        assert written.pop(f"{style}.{name}") == pytest.approx(value, rel=1e-6)
    assert not [name for name in written if name.startswith(style + ".")]
    assert written["tokenizer.ggml.add_bos_token"] is adds_bos


@pytest.mark.parametrize("layout", QWEN)
@torch.no_grad()
def test_llama_cpp_computes_the_same_logits_in_qwens_layouts(export, tokenizer, tmp_path, layout):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    model = save_qwen(tmp_path / "ours", tokenizer, layout)
    path, _ = export(tmp_path / "ours")
    ids = torch.randint(0, len(tokenizer), (1, 32), generator=torch.Generator().manual_seed(0))
    assert_equal(llama_cpp_logits(path, ids[0].tolist()), model(ids).logits[0])
    assert llama_cpp_tokens(path, ids[0, :20].tolist(), 40) == greedy(model, ids[0, :20].tolist(), 40)


SCALINGS = {
    "linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "without a type": {"rope.scaling.factor": 4.0},
    "none": {"rope.scaling.type": "none", "rope.scaling.factor": 4.0},
    "until 2023": {"rope.scale_linear": 4.0},
    "yarn": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    "yarn without its length": {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
}


@pytest.mark.parametrize("name", SCALINGS)
@torch.no_grad()
def test_scaled_positions_are_read_as_llama_cpp_reads_them(script, tokenizer, tmp_path, monkeypatch, name):
    """A file with keys that this package never writes, read by the conversion and by llama.cpp."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    tiny_model("llama", **sizes).save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    write_sizes = gguf_export._write_sizes

    def with_scaling(writer, config, target):
        write_sizes(writer, config, target)
        for key, value in SCALINGS[name].items():
            add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
            add(f"llama.{key}", value)

    monkeypatch.setattr(gguf_export, "_write_sizes", with_scaling)
    checkpoint = recognize(str(tmp_path / "ours"), Options())
    fields = gguf_export.tokenizer_fields(checkpoint)
    gguf_export.write_gguf(tmp_path / "scaled.gguf", checkpoint, "llama", "f32", fields, "scaled")
    convert = script("convert_checkpoint")
    convert.main(convert.parse([str(tmp_path / "scaled.gguf"), str(tmp_path / "back")]))
    ids = torch.randint(0, len(tokenizer), (1, 60), generator=torch.Generator().manual_seed(0))
    logits = AutoModelForCausalLM.from_pretrained(tmp_path / "back")(ids).logits[0]
    assert_equal(llama_cpp_logits(tmp_path / "scaled.gguf", ids[0].tolist()), logits)


@pytest.mark.thorough
def test_quantized_weights_change_the_logits_little(export, checkpoint):
    _, exact = export(checkpoint)
    _, half = export(checkpoint, "--type", "f16")
    _, quarter = export(checkpoint, "--type", "q8_0")
    _, eighth = export(checkpoint, "--type", "q4_0")
    sizes = [figures["bytes"] for figures in (exact, half, quarter, eighth)]
    assert sizes == sorted(sizes, reverse=True)
    differences = [figures["max_logit_difference"] for figures in (exact, half, quarter, eighth)]
    assert differences == sorted(differences) and differences[1] < 0.05 and differences[2] < 1


@torch.no_grad()
def test_llama_cpp_computes_the_same_logits(export, checkpoint, style):
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    path, _ = export(checkpoint)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(checkpoint), AutoTokenizer.from_pretrained(checkpoint)
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        logits = llama_cpp_logits(path, ids, text)
        # its GELU is a table of 16-bit floats
        assert_equal(logits, model(torch.tensor([ids])).logits[0], tolerance={"gpt2": 4e-3, "llama": 1e-5}[style])
        assert llama_cpp_tokens(path, ids, 64 - len(ids)) == greedy(model, ids, 64 - len(ids))


@torch.no_grad()
def test_llama_cpp_on_mistrals_shape(export, tokenizer, tmp_path):
    """Without a window, or with one that covers all positions, Mistral is Llama in GGUF; a shorter window is refused by name."""
    pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "head_dim": 16, "sliding_window": 64}
    model = tiny_model("llama", **sizes)
    model.save_pretrained(tmp_path / "ours")
    tokenizer.save_pretrained(tmp_path / "ours")
    path, _ = export(tmp_path / "ours")
    ids = torch.randint(0, len(tokenizer), (1, 32), generator=torch.Generator().manual_seed(0))
    assert_equal(llama_cpp_logits(path, ids[0].tolist()), model(ids).logits[0])
    assert llama_cpp_tokens(path, ids[0].tolist(), 32) == greedy(model, ids[0].tolist(), 32)


@pytest.mark.thorough
def test_wrong_rows_are_refused_and_the_old_file_stays(export, checkpoint, style, monkeypatch, capsys):
    path, _ = export(checkpoint)
    before = path.read_bytes()
    original = gguf_export.Tensor.read
    wrong = {"gpt2": "blk.1.attn_qkv.bias", "llama": "blk.1.attn_q.weight"}[style]
    monkeypatch.setattr(
        gguf_export.Tensor, "read", lambda self, checkpoint: original(self, checkpoint)[:: -1 if self.name == wrong else 1].copy()
    )
    with pytest.raises(SystemExit):
        export(checkpoint)
    assert "error: verification failed" in capsys.readouterr().err
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("style", "setting", "told"),
    [
        ("gpt2", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("gpt2", {"qk_norm": True}, "qk_norm=True"),
        ("gpt2", {"norm_type": "rmsnorm"}, "norm_type='rmsnorm'"),
        (
            "llama",
            {"qkv_bias": True, "o_bias": True},
            r"o_bias=True \(it needs False\) in the layout qwen2, the nearest, where 1 setting differs",
        ),
        ("llama", {"qkv_bias": True, "qk_norm": True}, "qk_norm=True .* in the layout qwen2"),
        ("llama", {"sliding_window": 8}, "sliding_window=8"),
        (
            "gpt2",
            {"lm_head_bias": True, "hidden_act": "relu"},
            "lm_head_bias=True .*, hidden_act='relu' .*where 2 settings differ",
        ),
        ("llama", {"mlp_bias": True}, "mlp_bias=True"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_parameters=.*linear"),
    ],
)
def test_unsupported_settings_are_refused_by_name(style, setting, told):
    config = tiny_config(style, **setting)
    with pytest.raises(UserError, match=told):
        gguf_export.refuse_settings(config, gguf_export.target_of(config))


def test_bad_input_is_refused_in_one_line(checkpoint, tmp_path, tokenizer):
    def refusal(model, output="x.gguf", **arguments) -> str:
        with pytest.raises(UserError) as error:
            gguf_export.export_gguf(str(model), str(tmp_path / output), **arguments)
        assert not (tmp_path / output).exists() and "\n" not in str(error.value)
        return str(error.value)

    assert "the output is a file, NAME.gguf" in refusal(checkpoint, "directory")
    assert "choose one of f32, f16" in refusal(checkpoint, type="q9")
    shutil.copytree(checkpoint, tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    assert "has no tokenizer" in refusal(tmp_path / "bare")
    shutil.copytree(checkpoint, tmp_path / "split")
    told = json.loads((checkpoint / "tokenizer.json").read_text())
    told["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "split" / "tokenizer.json").write_text(json.dumps(told))
    assert "only GPT-2's pattern is supported" in refusal(tmp_path / "split")
    tiny_model("llama", GPTScratchForSequenceClassification).save_pretrained(tmp_path / "classifier")
    assert "is a classifier" in refusal(tmp_path / "classifier")
    narrow = tiny_model("gpt2", vocab_size=len(tokenizer), hidden_size=48)
    narrow.save_pretrained(tmp_path / "narrow")
    tokenizer.save_pretrained(tmp_path / "narrow")
    assert "q8_0 needs rows of a multiple of 32 values" in refusal(tmp_path / "narrow", type="q8_0")
