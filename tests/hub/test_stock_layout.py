"""`push_to_hub.py --layout` against a Hub on loopback: what is uploaded is a stock checkpoint that loads without trust_remote_code and computes the same."""

import json

import pytest
import torch
from huggingface_hub import ModelCard
from run_records import RECORD, metrics
from stand_in_hub import card_problems
from stock_checkpoints import LABELS
from tiny_models import assert_equal, tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.conversion.stock_layouts import CLASSES, LAYOUTS
from gpt_scratch.errors import run_script
from gpt_scratch.hub import stock_layout
from gpt_scratch.hub.cards import write_card, write_classifier_card
from gpt_scratch.reference_outputs import write_reference_outputs
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

pytestmark = pytest.mark.thorough

ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 37.0}}
SETTINGS = {
    "gpt2": {},
    "llama": ROPE,
    "mistral": ROPE | {"sliding_window": 5},
    "qwen2": ROPE | {"qkv_bias": True},
    "qwen3": ROPE | {"qk_norm": True},
}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
IDS = torch.arange(1, 17)[None]


def our_model(layout: str, head: str = "lm"):
    style = "gpt2" if layout == "gpt2" else "llama"
    if head == "classifier":
        return tiny_model(style, GPTScratchForSequenceClassification, vocab_size=300, **SETTINGS[layout], **LABELS)
    model = tiny_model(style, vocab_size=300, **SETTINGS[layout])
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.7, pad_token_id=0)
    return model


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. Tom had a cat."] * 20, vocab_size=300)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture
def run(tokenizer, tmp_path):
    """A function `(layout, head) -> directory` as a training script leaves it."""

    def save(layout: str, head: str = "lm"):
        folder = tmp_path / "run"
        our_model(layout, head).save_pretrained(folder, max_shard_size="50KB")
        tokenizer.save_pretrained(folder)
        (folder / "loss.png").write_bytes(b"a plot")
        (folder / "metrics.json").write_text('{"loss": 1.5}', encoding="utf-8")
        (folder / "training_args.bin").write_bytes(b"a pickle")
        (folder / "adapter").mkdir()
        (folder / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "ada/base"}', encoding="utf-8")
        (folder / "adapter" / "adapter_model.safetensors").write_bytes(bytes(8))
        if head == "lm":
            write_card(str(folder), RECORD)
        else:
            split = {"test": {"rows": 300, "texts_also_in_train": 37}}
            write_classifier_card(str(folder), metrics(labels=["ham", "spam", "other"], test_accuracy=0.9, data=split))
        return folder

    return save


@pytest.fixture
def refused(script, capsys):
    """A function `(*argv) -> message` of a push that must fail: one line, status 2."""
    module = script("push_to_hub")

    def fail(*argv) -> str:
        with pytest.raises(SystemExit) as exit:
            run_script(lambda: module.main(module.parse([str(word) for word in argv])))
        message = capsys.readouterr().err.splitlines()[-1]
        assert exit.value.code == 2 and message.startswith("error: ")
        return message

    return fail


def without_trust(name: str, head: str, tmp_path):
    auto = AutoModelForSequenceClassification if head == "classifier" else AutoModelForCausalLM
    model = auto.from_pretrained(name, cache_dir=tmp_path / "cache", trust_remote_code=False).eval()
    assert type(model).__module__.startswith("transformers.models.")
    return model


@torch.no_grad()
@pytest.mark.parametrize(("layout", "head"), [case for case in CLASSES if case[1] == "lm" or case[0] in ("gpt2", "llama")])
@pytest.mark.quick_cases("llama-lm")
def test_a_stock_checkpoint_is_uploaded_completely(layout, head, run, push, logged_in, tokenizer, tmp_path):
    hub, folder = logged_in(), run(layout, head)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    push(folder, "first", "--layout", layout)
    files = hub.files("ada/first")
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"} < {
        *files
    }
    assert files["metrics.json"] == b'{"loss": 1.5}' and files["loss.png"] == b"a plot"
    assert not any(name.endswith((".py", ".bin")) or "adapter" in name or "-of-" in name for name in files)
    config = json.loads(files["config.json"])
    assert "auto_map" not in config and config["architectures"] == [CLASSES[layout, head]]
    if layout == "llama":
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 37.0  # for transformers 4, and for 5
    model = without_trust("ada/first", head, tmp_path)
    assert type(model).__name__ == CLASSES[layout, head]
    assert_equal(model(IDS).logits, our_model(layout, head)(IDS).logits)
    if head == "lm":
        assert model.generation_config.do_sample and model.generation_config.temperature == 0.7
    else:
        assert model.config.id2label == LABELS["id2label"]
    again = AutoTokenizer.from_pretrained("ada/first", cache_dir=tmp_path / "cache", trust_remote_code=False)
    assert again("Anna lost")["input_ids"] == tokenizer("Anna lost")["input_ids"] and again.chat_template == TEMPLATE
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.slow
def test_uploaded_downloaded_and_loaded_again(run, script, logged_in, capsys):
    hub, module = logged_in(), script("push_to_hub")
    commit = module.main(module.parse([str(run("llama")), "first", "--layout", "llama"]))
    printed = capsys.readouterr().out
    assert (
        "GPTScratchForCausalLM" in printed
        and "checksums equal; loaded without this package, its logits differ by 0.0e+00" in printed
    )
    assert (
        f'load it with from_pretrained("ada/first", revision="{commit}")' in printed
        and hub.repos["ada/first"].branches["main"] == commit
    )


@pytest.mark.thorough
def test_the_card_describes_the_stock_layout(run, push, logged_in):
    hub = logged_in()
    push(run("llama"), "first", "--layout", "llama")
    text = hub.files("ada/first")["README.md"].decode()
    assert card_problems(text) == ([], [])
    card = ModelCard(text)
    assert card.data.tags == ["gpt_scratch"] and card.data.library_name == "transformers" and len(card.data.eval_results) == 2
    assert 'AutoModelForCausalLM.from_pretrained("ada/first", revision="main")' in text
    assert "trust_remote_code=True" not in text and text.count("without `trust_remote_code`") == 1
    assert (
        "\n\nThis is a stock `LlamaForCausalLM` checkpoint: it holds no code" in text
        and "`push_to_hub.py --layout llama`" in text
    )
    assert "| validation_loss | 1.2346 |" in text and "![loss](loss.png)" in text and "\n\n\n" not in text


@pytest.mark.thorough
def test_the_card_names_its_own_repository_after_an_upload_in_our_layout(run, push, logged_in):
    """That upload has written its name into the directory's card, and its code would ask for trust."""
    hub, folder = logged_in(), run("gpt2")
    write_reference_outputs(folder)
    write_card(str(folder), RECORD)
    push(folder, "ours")
    assert '"ada/ours"' in (folder / "README.md").read_text(encoding="utf-8")
    push(folder, "stock", "--layout", "gpt2")
    text = hub.files("ada/stock")["README.md"].decode()
    assert text.count('"ada/stock", revision="main")') == 2 and 'verify_checkpoint "ada/stock"\n' in text
    assert "ada/ours" not in text and "PATH_OR_NAME" not in text


def test_a_card_of_another_form(tmp_path):
    proof = {"max_logit_difference": 1.4e-6, "max_logit": 5.94, "compared_with": "GPTScratchForCausalLM"}
    path, record = tmp_path / "README.md", {"to": "gpt2", "head": "lm", "proof": proof}
    path.write_text("---\nlicense: mit\n---\n# Mine\n\nMy words.\n\n## More\n\nOf them.\n", encoding="utf-8")
    stock_layout.adapt_card(path, record)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        "---\nlicense: mit\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n# Mine\n\nMy words.\n\nThis is"
    )
    assert text.endswith("differ by at most 1.4e-06 (the largest is 5.9).\n\n## More\n\nOf them.\n")
    path.write_text("Mine.\n", encoding="utf-8")
    stock_layout.adapt_card(path, record)
    assert "Mine.\n\nThis is a stock `GPT2LMHeadModel`" in path.read_text(encoding="utf-8")


@pytest.mark.thorough
def test_a_card_where_there_was_none(run, push, logged_in):
    hub, folder = logged_in(), run("gpt2")
    (folder / "README.md").unlink()
    push(folder, "none", "--layout", "gpt2")
    text = hub.files("ada/none")["README.md"].decode()
    assert "\n# run\n" in text and "This is a stock `GPT2LMHeadModel`" in text and card_problems(text) == ([], [])
    assert "trust_remote_code=True" not in text and "custom_code" not in text


def test_a_card_that_cannot_be_read(run, refused):
    folder = run("gpt2")
    (folder / "README.md").write_text("---\ntags: [\n---\n", encoding="utf-8")
    assert "README.md cannot be read as a model card: while parsing" in refused(folder, "first", "--layout", "gpt2", "--dry_run")


@pytest.mark.thorough
def test_a_dry_run_lists_what_would_go_up_and_sends_nothing(run, push, hub, capsys):
    assert push(run("gpt2"), "first", "--layout", "gpt2", "--dry-run") is None
    listed, stays = capsys.readouterr().out.split("no tokens found")[0].split("stays here, ", 1)
    assert "  model.safetensors\n" in listed and "  loss.png\n" in listed and "  README.md\n" in listed
    assert ".py" not in listed and "modeling_gpt_scratch.py" not in listed
    assert (
        "belongs to this package's own layout: adapter/adapter_config.json" in stays
        and "no use to others: training_args.bin" in stays
    )
    assert hub.requests == []


@pytest.mark.thorough
def test_the_same_command_again_is_no_new_commit(run, push, logged_in):
    logged_in()
    folder = run("gpt2")
    assert push(folder, "first", "--layout", "gpt2") == push(folder, "first", "--layout", "gpt2")


@pytest.mark.thorough
def test_code_and_shards_of_an_earlier_upload_are_deleted(run, push, logged_in):
    hub, folder = logged_in(), run("gpt2")
    push(folder, "first")
    assert any(name.endswith(".py") for name in hub.files("ada/first"))
    push(folder, "first", "--layout", "gpt2", "--update", "--exclude", "metrics.json")
    files = hub.files("ada/first")
    assert not any(name.endswith(".py") or "-of-" in name for name in files) and "model.safetensors" in files


def test_the_settings_that_cannot_be_expressed_are_named_and_nothing_is_sent(run, refused, logged_in):
    hub, folder = logged_in(), run("llama")
    message = refused(folder, "first", "--layout", "gpt2")
    assert "gpt2 cannot express position_embedding_type='rope' (it needs 'learned'), norm_type='rmsnorm' (it needs" in message
    assert "num_key_value_heads=2 (it needs 4)" in message
    assert "drop one" in refused(folder, "first", "--layout", "llama", "--with_training_state")
    next(folder.glob("*.py")).unlink()
    assert "is not complete" in refused(folder, "first", "--layout", "llama")
    assert hub.requests == []


@pytest.mark.thorough
def test_other_directories_are_refused(run, refused, script, tmp_path):
    folder = run("llama")
    convert = script("convert_checkpoint")
    convert.main(convert.parse([str(folder), str(tmp_path / "stock"), "--to", "llama"]))
    assert "is in the layout llama already" in refused(tmp_path / "stock", "first", "--layout", "llama")
    assert "holds an adapter: merge it" in refused(folder / "adapter", "first", "--layout", "llama")


@pytest.mark.thorough
def test_a_stock_layout_that_computes_something_else_is_not_uploaded(run, refused, logged_in, monkeypatch):
    hub = logged_in()

    def export_wrongly(checkpoint, folder, *rest):
        export_weights(checkpoint, folder, *rest)
        path = folder / "config.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        values["rope_parameters"]["rope_theta"] = values["rope_theta"] = 10000.0
        path.write_text(json.dumps(values), encoding="utf-8")

    export_weights = stock_layout.export_weights
    monkeypatch.setattr(stock_layout, "export_weights", export_wrongly)
    assert "verification failed: logits differ from those of" in refused(run("llama"), "first", "--layout", "llama")
    assert hub.requests == []


def test_the_flag_takes_every_layout_that_the_conversion_writes(script, capsys):
    module = script("push_to_hub")
    assert [module.parse(["run", "first", "--layout", layout]).layout for layout in LAYOUTS] == list(LAYOUTS)
    with pytest.raises(SystemExit):
        module.parse(["run", "first", "--layout", "bert"])
    message = capsys.readouterr().err
    assert all(layout in message for layout in LAYOUTS)
