"""Saved tokenizers hold what old releases of transformers read; classes that are more than their files keep their own form."""

import json

import pytest
from old_releases import assert_old_releases_open
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, ByT5Tokenizer, CodeLlamaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from gpt_scratch.data.instruction import CHAT_TEMPLATES
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.portable import load_tokenizer, save_tokenizer
from gpt_scratch.tokenization.word_level import RULES, train_word_level

TEXT = ["One day, Anna lost her key. It's 2020, isn't it? She looked by the river, and there it was.\n" * 20]
START = "<|im_start|>"


def trained() -> PreTrainedTokenizerFast:
    return train_byte_level_bpe(TEXT, 320)


def talking(template) -> PreTrainedTokenizerFast:
    tokenizer = trained()
    tokenizer.chat_template, tokenizer.padding_side = template, "left"
    tokenizer.add_special_tokens({"additional_special_tokens": [START]})
    return tokenizer


MADE = {
    "bpe": trained,
    "chat": lambda: talking(CHAT_TEMPLATES["chatml"]),
    "chats": lambda: talking({"default": CHAT_TEMPLATES["chatml"], **CHAT_TEMPLATES}),
    **{rule: lambda rule=rule: train_word_level(TEXT, rule, None, 1, 64) for rule in RULES},
}


@pytest.mark.parametrize("name", MADE)
def test_old_releases_open_what_is_saved(name, tmp_path):
    tokenizer = MADE[name]()
    save_tokenizer(tokenizer, tmp_path)
    config = assert_old_releases_open(tmp_path)
    assert config["padding_side"] == tokenizer.padding_side and config["model_max_length"] == tokenizer.model_max_length
    assert config.get("additional_special_tokens", []) == ([START] if "chat" in name else [])
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXT[0] + START)["input_ids"] == tokenizer(TEXT[0] + START)["input_ids"]
    assert again.chat_template == tokenizer.chat_template and again.padding_side == tokenizer.padding_side
    assert again.all_special_ids == tokenizer.all_special_ids
    save_tokenizer(again, tmp_path / "again")
    for file in ("tokenizer_config.json", "tokenizer.json"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("name", ["bpe", "chat", "chats"])
def test_files_as_transformers_5_writes_them_are_detected(name, tmp_path):
    MADE[name]().save_pretrained(tmp_path)
    with pytest.raises(AssertionError, match="TokenizersBackend"):
        assert_old_releases_open(tmp_path)


@pytest.mark.parametrize(
    "fault",
    [
        {"extra_special_tokens": [START]}, {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}, {"chat_template": "{{ messages }}"},
        {"is_local": True}, {"add_prefix_space": True}, {"tokenizer_class": "TokenizersBackend"},
        *({name: None} for name in ("model_input_names", "padding_side", "truncation_side", "clean_up_tokenization_spaces", "chat_template")),
    ],
    ids=str,
)  # fmt: skip
def test_each_difference_is_found(fault, tmp_path):
    save_tokenizer(MADE["chat"](), tmp_path)
    config = assert_old_releases_open(tmp_path) | fault
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(AssertionError):
        assert_old_releases_open(tmp_path)


class OwnTokenizer(PreTrainedTokenizerFast):
    """A class outside of transformers, of which nothing is known."""


@pytest.mark.parametrize(
    "make",
    [ByT5Tokenizer, CodeLlamaTokenizer, lambda: OwnTokenizer(tokenizer_object=trained().backend_tokenizer)],
    ids=["python", "methods", "own"],
)
def test_a_class_that_does_more_than_its_file_keeps_its_form(make, tmp_path):
    tokenizer = make()
    tokenizer.save_pretrained(tmp_path / "plain")
    save_tokenizer(tokenizer, tmp_path / "ours")
    for path in (tmp_path / "plain").iterdir():
        assert (tmp_path / "ours" / path.name).read_bytes() == path.read_bytes()
    assert json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())["tokenizer_class"] == type(tokenizer).__name__


def foreign(folder, pre_tokenizer, normalizer=None, **settings) -> Tokenizer:
    """A directory whose class is not what its tokenizer.json describes, as SmolLM2's; returns what that file describes."""
    backend = Tokenizer.from_str(trained().backend_tokenizer.to_str())
    backend.pre_tokenizer, backend.normalizer = pre_tokenizer, normalizer
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64, **special, **settings}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return backend


def digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def words() -> pre_tokenizers.PreTokenizer:
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{L}+|\s|\p{N}|."), "isolated"), to_bytes])


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [(digits(), None), (words(), normalizers.NFC()), (digits(), normalizers.Lowercase())],
    ids=["digits", "NFC", "lowercase"],
)
def test_a_foreign_tokenizer_has_the_pipeline_of_its_file(pre_tokenizer, normalizer, tmp_path):
    written = foreign(tmp_path / "foreign", pre_tokenizer, normalizer)
    text = "In 2020 the 2020 e\u0301 RIVER isn't.<|endoftext|>"
    save_tokenizer(load_tokenizer(str(tmp_path / "foreign")), tmp_path / "ours")
    assert_old_releases_open(tmp_path / "ours")
    again = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert again(text)["input_ids"] == written.encode(text).ids
    assert again.unk_token == "<|endoftext|>" and again.model_max_length == 64
    # The test would prove nothing if the class had this pipeline already.
    assert AutoTokenizer.from_pretrained(tmp_path / "foreign")(text)["input_ids"] != written.encode(text).ids


def test_a_space_before_the_text_is_as_the_configuration_says(tmp_path):
    foreign(tmp_path / "foreign", pre_tokenizers.ByteLevel(add_prefix_space=False), add_prefix_space=True)
    tokenizer = load_tokenizer(str(tmp_path / "foreign"))
    assert tokenizer("day")["input_ids"] == tokenizer(" day")["input_ids"]
    save_tokenizer(tokenizer, tmp_path / "ours")
    assert assert_old_releases_open(tmp_path / "ours")["add_prefix_space"] is True


def test_the_sides_of_a_class_are_written(tmp_path):
    llama = LlamaTokenizer(vocab={"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4}, merges=[])
    save_tokenizer(llama, tmp_path)
    assert llama.padding_side == "left" and assert_old_releases_open(tmp_path)["padding_side"] == "left"


def test_a_tokenizer_of_other_files_is_opened_as_it_is(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    assert isinstance(load_tokenizer(str(tmp_path)), ByT5Tokenizer)
