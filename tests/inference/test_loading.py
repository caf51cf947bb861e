"""One loader for every script: an incomplete checkpoint is refused by name in one line, within bounds of time and memory.

All hostile checkpoints are opened by one process, one after the other.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bounds import run_bounded
from safetensors.torch import load_file, save_file

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.inference.loading import load_classifier, load_language_model, load_model, load_tokenizer
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

SECONDS, MEBIBYTES = 20, 900

DRIVER = """
import json, resource, sys, time
from gpt_scratch.errors import UserError
from gpt_scratch.inference import loading

for line in sys.stdin:
    case = json.loads(line)
    start = time.perf_counter()
    try:
        getattr(loading, case["call"])(case["name"])
        said = "nothing was refused"
    except UserError as error:
        said = str(error)
    print(json.dumps({"said": said, "seconds": time.perf_counter() - start}), flush=True)
"""


def tiny(classifier: bool = False, **sizes) -> torch.nn.Module:
    torch.manual_seed(0)
    config = GPTScratchConfig(
        **({"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.4} | sizes)
    )
    return (GPTScratchForSequenceClassification if classifier else GPTScratchForCausalLM)(config)


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokenizer) -> Path:
    """One folder each of a language model, a classifier and an adapter on the language model."""
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("whole")
    tiny().save_pretrained(root / "lm")
    tiny(classifier=True, num_labels=3).save_pretrained(root / "classifier")
    adapted = get_peft_model(load_model(str(root / "lm"), "lm"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted.save_pretrained(root / "adapter")
    for folder in root.iterdir():
        tokenizer.save_pretrained(folder)
    return root


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def edit_tensors(folder: Path, edit, file: str = "model.safetensors") -> None:
    tensors = load_file(folder / file)
    edit(tensors)
    save_file(tensors, folder / file, {"format": "pt"})


def rename_all(tensors: dict) -> None:
    for name in list(tensors):
        tensors[f"_orig_mod.{name}"] = tensors.pop(name)


def poison(tensors: dict, value: float, dtype: torch.dtype = torch.float32) -> None:
    for name in tensors:
        tensors[name] = tensors[name].to(dtype)
    tensors["model.norm.weight"][3] = value


def shard(folder: Path, **changes) -> None:
    """Two shards, and an index in which `changes` are made."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, folder / f"part-{number}.safetensors", {"format": "pt"})
        weight_map |= dict.fromkeys(part, f"part-{number}.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map} | changes
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def add_tensor(tensors: dict) -> None:
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 32)


def add_token(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["model"]["vocab"]["Anna"] = 5000
    path.write_text(json.dumps(content), encoding="utf-8")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch " + str(folder / "executed").encode() + b"'\ntR.")


def panic(folder: Path) -> None:
    path = folder / "tokenizer.json"
    broken = {"type": "Split", "pattern": {"Regex": "(?<=" + "(" * 300 + "a*" * 50}, "behavior": "Isolated", "invert": False}
    content = json.loads(path.read_text(encoding="utf-8")) | {"pre_tokenizer": broken}
    path.write_text(json.dumps(content), encoding="utf-8")


def llama(**changes):
    """A configuration of another model type, whose class has no bounds of its own."""
    base = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 300}  # fmt: skip
    return lambda folder: (folder / "config.json").write_text(json.dumps(base | changes), encoding="utf-8")


def config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def text(name: str, content: str):
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def tensors(edit, file: str = "model.safetensors"):
    return lambda folder: edit_tensors(folder, edit, file)


# What was tried: the folder that is damaged, how, and words of the refusal.
CASES = {
    "a checkpoint of a compiled model (_orig_mod.)": ("lm", tensors(rename_all), "begin with '_orig_mod.'"),
    "a checkpoint without a layer": ("lm", tensors(lambda t: [t.pop(n) for n in list(t) if ".1." in n]), "files: model.layers.1."),
    "a checkpoint with a layer too many": ("lm", tensors(add_tensor), "unexpected tensors in the weights files: model.layers.2.mlp.up_proj.weight"),
    "a weights file without tensors": ("lm", tensors(dict.clear), "model.safetensors contains no tensors"),
    "a tensor of another shape": (
        "lm", tensors(lambda t: t.update({"model.norm.weight": torch.ones(31)})), "model.norm.weight has the shape (31,) in the weights file, but (32,)"),
    "a NaN in the weights": ("lm", tensors(lambda t: poison(t, torch.nan)), "model.norm.weight contains NaN"),
    "an infinity in bf16 weights": ("lm", tensors(lambda t: poison(t, torch.inf, torch.bfloat16)), "contains infinite values"),
    "a NaN in sharded weights": ("lm", lambda f: (edit_tensors(f, lambda t: poison(t, torch.nan)), shard(f)), "contains NaN"),
    "an index of shards that points to /dev/zero": ("lm", lambda f: shard(f, weight_map={"a": "/dev/zero"}), "lists '/dev/zero'"),
    "an index of shards that points outside": ("lm", lambda f: shard(f, weight_map={"a": "../../x"}), "lists '../../x'"),
    "an index of shards without a map": ("lm", lambda f: shard(f, weight_map=[1]), "no weight_map"),
    "an index of shards that is a list": ("lm", lambda f: (shard(f), text("model.safetensors.index.json", "[]")(f)), "must hold a JSON object"),
    "a shard that is missing": ("lm", lambda f: (shard(f), (f / "part-1.safetensors").unlink()), "part-1.safetensors"),
    "no weights at all": ("lm", lambda f: (f / "model.safetensors").unlink(), "it contains no weights"),
    "truncated weights": ("lm", lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be loaded"),
    "weights that are a link to /dev/zero": (
        "lm", lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("/dev/zero")), "it contains no weights"),
    "a pickle with code for weights": ("lm", pickled, "cannot be loaded"),
    "no configuration": ("lm", lambda f: (f / "config.json").unlink(), "config.json"),
    "a configuration that is a list": ("lm", text("config.json", "[1]"), "config.json must hold a JSON object, not a list"),
    "a configuration nested 200,000 deep": ("lm", text("config.json", '{"a":' + "[" * 200_000), "config.json is nested too deeply"),
    "a configuration with auto_map as a list": ("lm", config(auto_map=["x"]), "auto_map must be a JSON object"),
    "a configuration with a model_type that is a number": ("lm", config(model_type=7), "cannot be loaded"),
    "a configuration with 10^9 labels": ("lm", config(num_labels=10**9, id2label=None), "num_labels is 1,000,000,000"),
    "a Llama configuration with 10^9 layers": ("lm", llama(num_hidden_layers=10**9), "num_hidden_layers is 1,000,000,000"),
    "a Llama configuration of a width of 10^6": ("lm", llama(hidden_size=10**6, head_dim=8), "but the weights have only"),
    "a vocabulary of 10^8 rows, and a small file": ("lm", config(vocab_size=10**8), "parameters, but the weights have only"),
    "a tokenizer with more tokens than the model": ("lm", config(vocab_size=200), "but the model's vocab_size is 200"),
    "a tokenizer with an id beyond the model's rows": ("lm", add_token, "has an id 5,000"),
    "a tokenizer that is no JSON": ("lm", text("tokenizer.json", "{"), "its tokenizer cannot be loaded"),
    "a tokenizer with a regular expression that cannot be": ("lm", panic, "its tokenizer cannot be loaded"),
    "a classifier taken for a language model": ("classifier", lambda f: None, "it is a classifier"),
    "a language model taken for a classifier": ("lm as classifier", lambda f: None, "no trained classification head"),
    "a classifier without its head": ("classifier as classifier", tensors(lambda t: t.pop("score.weight")), "no trained classification head"),
    "a classifier with a head of other classes": (
        "classifier as classifier", tensors(lambda t: t.update({"score.weight": torch.zeros(5, 32)})), "score.weight has the shape (5, 32)"),
    "an adapter without half of its tensors": (
        "adapter", tensors(lambda t: [t.pop(n) for n in list(t) if "lora_B" in n], "adapter_model.safetensors"), "missing tensors in the weights files"),
    "an adapter of another width": (
        "adapter", tensors(lambda t: t.update({n: torch.zeros(8, 31) for n in t if "q_proj.lora_A" in n}), "adapter_model.safetensors"), "q_proj.lora_A"),
    "an adapter with a NaN": (
        "adapter", tensors(lambda t: next(iter(t.values())).fill_(torch.nan), "adapter_model.safetensors"), "contains NaN"),
    "an adapter configuration that is a list": ("adapter", text("adapter_config.json", "[]"), "adapter_config.json must hold a JSON object"),
    "an adapter configuration without a base model": (
        "adapter", lambda f: edit_json(f / "adapter_config.json", base_model_name_or_path=None), "has no base model"),
    "an adapter configuration with a rank that is a text": (
        "adapter", lambda f: edit_json(f / "adapter_config.json", r="many"), "cannot be loaded as an adapter"),
    "an adapter configuration with a rank of 10^12": ("adapter", lambda f: edit_json(f / "adapter_config.json", r=10**12), "cannot be loaded as an adapter"),
    "an adapter configuration of an unknown type": (
        "adapter", lambda f: edit_json(f / "adapter_config.json", peft_type="EVIL"), "cannot be loaded as an adapter"),
}  # fmt: skip


@pytest.fixture(scope="module")
def refusals(whole, tmp_path_factory) -> dict[str, dict]:
    root, lines = tmp_path_factory.mktemp("damaged"), []
    for number, (kind, damage, _) in enumerate(CASES.values()):
        folder = root / str(number)
        shutil.copytree(whole / kind.split(" as ")[0], folder)
        damage(folder)
        call = "load_classifier" if kind.endswith("as classifier") else "load_language_model"
        lines.append(json.dumps({"name": str(folder), "call": call}))
    outcome = run_bounded([sys.executable, "-c", DRIVER], 300, MEBIBYTES, stdin="\n".join(lines))
    assert outcome.exceeded is None, (outcome.exceeded, outcome.stdout[-1000:])
    said = [json.loads(line) for line in outcome.stdout.splitlines() if line.startswith("{")]
    assert len(said) == len(CASES), (said[-1:], outcome.stderr[-3000:])
    assert not list(root.glob("*/executed")), "code was executed"
    return dict(zip(CASES, said))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(name, seconds=SECONDS, mebibytes=MEBIBYTES)) for name in CASES]
)
@pytest.mark.thorough
def test_incomplete_checkpoints_are_refused_in_one_line(refusals, name):
    said = refusals[name]
    assert CASES[name][2] in said["said"] and "\n" not in said["said"], said
    assert said["seconds"] < SECONDS


def test_complete_checkpoints_are_opened(whole, tokenizer, tmp_path):
    model, opened = load_language_model(str(whole / "lm"))
    ids = torch.tensor([opened("One day")["input_ids"]])
    assert opened.get_vocab() == tokenizer.get_vocab() and not model.training
    expected = tiny().eval()(ids).logits
    torch.testing.assert_close(model(ids).logits, expected)
    assert load_classifier(str(whole / "classifier"))[0].score.weight.shape == (3, 32)
    adapted, _ = load_language_model(str(whole / "adapter"))
    assert (adapted(ids).logits - expected).abs().max() > 0.1
    shutil.copytree(whole / "lm", tmp_path / "sharded")
    shard(tmp_path / "sharded")
    torch.testing.assert_close(load_language_model(str(tmp_path / "sharded"))[0](ids).logits, expected)
    tiny(tie_word_embeddings=False).bfloat16().save_pretrained(tmp_path / "untied")
    assert load_model(str(tmp_path / "untied"), "lm").dtype == torch.bfloat16


def test_only_a_head_that_is_to_be_trained_may_be_new(whole, tmp_path):
    model = load_model(str(whole / "lm"), "classifier", "float32", new_head=True, num_labels=4)
    assert model.score.weight.shape == (4, 32)
    assert torch.equal(model.model.embed_tokens.weight, load_model(str(whole / "lm"), "lm").model.embed_tokens.weight)
    shutil.copytree(whole / "lm", tmp_path / "damaged")
    edit_tensors(tmp_path / "damaged", lambda t: t.pop("model.norm.weight"))
    with pytest.raises(UserError, match="files: model.norm.weight"):
        load_model(str(tmp_path / "damaged"), "classifier", new_head=True, num_labels=4)


def test_a_missing_checkpoint_is_named(tmp_path):
    for load in (load_language_model, load_classifier, load_tokenizer):
        with pytest.raises(UserError, match="nowhere"):
            load(str(tmp_path / "nowhere"))


def test_every_script_uses_the_loader():
    """transformers alone initializes missing weights at random: a new script must use the loader, too."""
    root = Path(__file__).resolve().parents[2]
    found = subprocess.run(
        ["grep", "-rlE", r"Auto(Tokenizer|Model\w*)\.from_pretrained\(", "--include=*.py", "--exclude-dir=course", "gpt_scratch", "scripts"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    others = {  # the loader; text that is printed; references, foreign formats and what is measured, as strangers load it
        "gpt_scratch/tokenization/portable.py", "gpt_scratch/hub/cards.py", "gpt_scratch/__init__.py", "scripts/train_tokenizer.py",
        "scripts/push_to_hub.py", "gpt_scratch/conversion/hub_directories.py", "gpt_scratch/export/gguf.py", "gpt_scratch/conversion/gguf_files.py",
        "gpt_scratch/export/compatibility.py", "gpt_scratch/benchmarking/whole_run.py",
    }  # fmt: skip
    assert set(found) <= others
