"""`check` passes what the installed release wrote, and names what a changed file changes."""

import json
import subprocess
import sys

import check_tokenizer
import pytest

from gpt_scratch.data.instruction import CHAT_TEMPLATES
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.portable import save_tokenizer


@pytest.fixture
def saved(tmp_path):
    """A directory, and what its tokenizer did before it was saved."""
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. It's 2020, isn't it?\n" * 20], 320)
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer", check_tokenizer.describe(tokenizer)


def test_equal(saved):
    check_tokenizer.check(*saved)


FAULTS = {
    "padding_side": ("tokenizer_config.json", '"padding_side": "right"', '"padding_side": "left"', "settings, loaded"),
    "inputs": ("tokenizer_config.json", '"attention_mask"', '"token_type_ids", "attention_mask"', "ids of a pair|inputs, loaded"),
    "pad": ("tokenizer_config.json", '"pad_token": "<|pad|>"', '"pad_token": "<|endoftext|>"', "special ids, loaded"),
    "special": ("tokenizer_config.json", '"additional_special_tokens"', '"forgotten"', "special ids, loaded"),
    "cleaned": ("tokenizer.json", '"use_regex": true', '"use_regex": false', "ids, loaded"),
    "template": ("chat_template.jinja", "assistant", "helper", "chat, loaded"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_difference_is_named(saved, name):
    folder, expected = saved
    file, old, new, message = FAULTS[name]
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(AssertionError, match=message):
        check_tokenizer.check(folder, expected)


@pytest.mark.thorough
def test_the_command(saved, tmp_path):
    folder, expected = saved

    def run(*arguments):
        return subprocess.run([sys.executable, check_tokenizer.__file__, *arguments], capture_output=True, text=True)

    described = run("describe", folder)
    assert json.loads(described.stdout) == expected
    (tmp_path / "expected.json").write_text(described.stdout, encoding="utf-8")
    assert run("check", folder, tmp_path / "expected.json").returncode == 0
    (tmp_path / "expected.json").write_text(json.dumps(expected | {"tokens": 7}), encoding="utf-8")
    failed = run("check", folder, tmp_path / "expected.json")
    assert failed.returncode == 1 and f"tokens, loaded: {expected['tokens']}, expected 7" in failed.stderr
