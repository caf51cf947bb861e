"""The conversion script in processes of its own: what it writes loads without this package, and errors end in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import CODE_FILES
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from gpt_scratch.conversion.checkpoint import Options
from gpt_scratch.conversion.formats import without_tokenizer
from gpt_scratch.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"

WITHOUT_THE_PACKAGE = """
import sys
sys.modules["gpt_scratch"] = None  # as if it were not installed
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("converted", trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules.")
torch.save(model(torch.arange(20)[None]).logits, "logits.pt")
"""


def python(*arguments, cwd) -> subprocess.CompletedProcess:
    environment = os.environ | {"HF_HOME": str(cwd / "hf_home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True)


def tiny_gpt2(folder: Path) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    settings = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.25}
    model = GPT2LMHeadModel(GPT2Config(**settings, bos_token_id=None, eos_token_id=None)).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.thorough
def test_the_directory_is_whole_and_loads_without_the_package(script, tmp_path):
    reference = tiny_gpt2(tmp_path / "original")
    module = script("convert_checkpoint")
    proof = module.main(module.parse([str(tmp_path / "original"), str(tmp_path / "converted")]))
    folder = tmp_path / "converted"
    assert {file.name for file in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        *CODE_FILES,
        "reference_outputs.json",
        ".gpt_scratch.json",
        "conversion.json",
        "README.md",
    }
    record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    assert record["proof"] == proof and record["format"] == "gpt2" and str(tmp_path) not in json.dumps(record)
    assert proof["parameters"] == reference.num_parameters() and proof["tied"] and len(proof["sha256"]) == 64
    assert set(json.loads((folder / "config.json").read_text(encoding="utf-8"))["auto_map"]) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    }
    done = python("-c", WITHOUT_THE_PACKAGE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = AutoModelForCausalLM.from_pretrained(folder)(torch.arange(20)[None]).logits
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)
    torch.testing.assert_close(expected, reference(torch.arange(20)[None]).logits, atol=1e-5, rtol=0)


@pytest.mark.thorough
def test_an_error_is_one_line_and_status_2(tmp_path):
    tiny_gpt2(tmp_path / "original")
    weights = tmp_path / "original" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = python(SCRIPT, "original", "converted", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: original/model.safetensors is damaged or truncated")
    assert {path.name for path in tmp_path.iterdir()} <= {"original", "hf_home"}


@pytest.mark.thorough
def test_an_output_that_is_not_empty_stays(script, tmp_path):
    tiny_gpt2(tmp_path / "original")
    module = script("convert_checkpoint")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted" / "mine.txt").write_text("mine", encoding="utf-8")
    arguments = [str(tmp_path / "original"), str(tmp_path / "converted")]
    for more in ([], ["--overwrite"]):
        with pytest.raises(UserError, match="contains 'mine.txt', which this package did not write"):
            module.main(module.parse([*arguments, *more]))
    assert [file.name for file in (tmp_path / "converted").iterdir()] == ["mine.txt"]
    (tmp_path / "converted" / "mine.txt").unlink()
    module.main(module.parse(arguments))
    before = (tmp_path / "converted" / "model.safetensors").stat().st_ino
    with pytest.raises(UserError, match="is not empty: choose another output directory, or pass --overwrite"):
        module.main(module.parse(arguments))
    module.main(module.parse([*arguments, "--overwrite"]))
    assert (tmp_path / "converted" / "model.safetensors").stat().st_ino != before


@pytest.mark.parametrize("output", [".", "..", "original", "original/", "link"])
def test_neither_the_source_nor_the_current_directory_is_replaced(script, tmp_path, monkeypatch, output):
    tiny_gpt2(tmp_path / "project" / "original")
    (tmp_path / "project" / "link").symlink_to("original")
    monkeypatch.chdir(tmp_path / "project")
    before = {path: path.lstat().st_ino for path in tmp_path.rglob("*")}
    module = script("convert_checkpoint")
    for source in ("original", "link"):
        with pytest.raises(
            UserError, match="is the (source|current directory)|contains the current directory|is a link to original"
        ):
            module.main(module.parse([source, output, "--overwrite"]))
    with pytest.raises(UserError, match="is the (source|current directory)|contains the current directory|is a link to original"):
        module.main(module.parse(["--download", "124M", "original", output, "--overwrite"]))  # before anything is fetched
    assert {path: path.lstat().st_ino for path in tmp_path.rglob("*")} == before


class Arrived(Exception):
    """What a function of the script was called with."""


@pytest.mark.parametrize(("flags", "function"), [([], "import_weights"), (["--to", "gpt2"], "export_weights")])
def test_each_flag_reaches_its_function(script, tmp_path, monkeypatch, flags, function):
    module = script("convert_checkpoint")
    checkpoint = SimpleNamespace(format="gpt_scratch" if flags else "book", reason="", notes=[], tokenizer="words")

    def recognized(source, options, form):
        checkpoint.seen = (source, options, form)
        return checkpoint

    def stop(*arguments):
        raise Arrived(*arguments[2:])

    monkeypatch.setattr(module, "recognize", recognized)
    monkeypatch.setattr(module, function, stop)
    flags += ["--format", "book", "--tokenizer", "words", "--config_overrides", "n_head=2", "--lora_alpha", "8", "--lora_scaling", "alpha",
              "--dtype", "bfloat16", "--max_shard_size", "7KB"]  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(["model.pth", str(tmp_path / "out"), *flags]))
    source, options, form = checkpoint.seen
    assert (source, options, form) == ("model.pth", Options({"n_head": 2}, 8.0, "alpha", "words"), "book")
    assert arrived.value.args == (*(["gpt2"] if "--to" in flags else []), torch.bfloat16, 7000)
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_an_edited_card_is_kept_by_overwrite(script, tmp_path):
    tiny_gpt2(tmp_path / "original")
    module = script("convert_checkpoint")
    arguments, card = [str(tmp_path / "original"), str(tmp_path / "converted")], tmp_path / "converted" / "README.md"
    module.main(module.parse(arguments))
    card.write_text(card.read_text(encoding="utf-8") + "\nMine.\n", encoding="utf-8")
    module.main(module.parse([*arguments, "--overwrite", "--dtype", "bfloat16"]))
    text = card.read_text(encoding="utf-8")
    assert text.endswith("\nMine.\n") and "| dtype | bfloat16 |" in text
    card.write_text("# Mine\n", encoding="utf-8")
    module.main(module.parse([*arguments, "--overwrite"]))
    assert card.read_text(encoding="utf-8") == "# Mine\n" and (tmp_path / "converted" / "README.proposed.md").is_file()


def test_a_missing_tokenizer_is_named_before_the_weights_are_written(script, tmp_path, capsys):
    tiny_gpt2(tmp_path / "original")
    module = script("convert_checkpoint")
    module.main(module.parse([str(tmp_path / "original"), str(tmp_path / "converted")]))
    shown = capsys.readouterr()
    assert "note: the source has no tokenizer: --tokenizer adds one to the directory\n" in shown.out
    assert shown.out.index("note: the source has no tokenizer") < shown.out.index("parameters:")
    assert "--tokenizer gpt2" in without_tokenizer(50257) and "gpt2" not in without_tokenizer(61)
