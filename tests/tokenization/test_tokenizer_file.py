"""Untrusted tokenizer.json files: steps that grow a text without end, panics of the library, ids without a row."""

import json
import sys

import pytest
from bounds import refused_in_one_line, run_bounded

from gpt_scratch.tokenization.tokenizer_file import check_tokenizer_file

LOAD = """
import json, sys
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.inference.loading import load_tokenizer
for folder in sys.argv[1:]:
    try:
        tokenizer = load_tokenizer(folder)
        said = len(tokenizer("a " * 1_000)["input_ids"])
    except UserError as error:
        said = str(error)
    print(json.dumps(said), flush=True)
"""
ENCODE = """
import sys
from gpt_scratch.errors import run_script
from gpt_scratch.inference.loading import load_tokenizer
run_script(lambda: load_tokenizer(sys.argv[1])("a" * 40 + "b"))
"""


def replace(content: str, **pattern: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(*steps: dict) -> dict:
    return {"type": "Sequence", "normalizers": list(steps)}


TEN = [replace("aaaaaaaaaa", String="a")] * 9
HOSTILE = {
    "a text ten times as long, nine times": ({"normalizer": sequence(*TEN)}, "1,000,000,000 times as long"),
    "the same in sequences": ({"normalizer": sequence(sequence(*TEN[:5]), sequence(*TEN[5:]))}, "1,000,000,000 times as long"),
    "something between all characters": ({"normalizer": replace("x" * 900, Regex="")}, "901 times as long"),
    "a decoder that grows": ({"decoder": {"type": "Sequence", "decoders": TEN}}, "1,000,000,000 times as long"),
    "a prefix of a megabyte": ({"normalizer": {"type": "Prepend", "prepend": "x" * 1_000_000}}, "inserts 1,000,000 characters"),
    "padding to 10^9": (
        {"padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}},
        "1,000,000,000 tokens",
    ),
    "a broken expression": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}},
        "parenthesis",
    ),
    "a broken table": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "Precompiled"),
}  # fmt: skip


def write(folder, **parts):
    folder.mkdir()
    added = [
        {
            "id": 0,
            "content": "a" * 100,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": True,
            "special": False,
        }
    ]
    model = {"type": "WordLevel", "vocab": {"a" * 100: 0, "a": 1, "<unk>": 2}, "unk_token": "<unk>"}
    content = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model}  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(content | parts), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}', encoding="utf-8")
    return folder


@pytest.mark.fault("a tokenizer.json that makes a text 10^9 times as long, or makes its library panic", seconds=40, mebibytes=900)
def test_a_pipeline_that_grows_a_text_is_refused(tmp_path):
    folders = [write(tmp_path / str(number), **parts) for number, (parts, _) in enumerate(HOSTILE.values())]
    for number, text in enumerate(["[]", "[" * 200_000, "no JSON"]):
        folders.append(write(tmp_path / f"json-{number}"))
        (folders[-1] / "tokenizer.json").write_text(text, encoding="utf-8")
    outcome = run_bounded([sys.executable, "-c", LOAD, *folders], 40, 900)
    assert outcome.exceeded is None and outcome.status == 0, (outcome.exceeded, outcome.stdout[-500:], outcome.stderr[-2000:])
    answers = [json.loads(line) for line in outcome.stdout.splitlines()]
    for name, words, said in zip(
        [*HOSTILE, "a list", "nested 200,000 deep", "no JSON"],
        [*(words for _, words in HOSTILE.values()), "must hold a JSON object", "nested too deeply", "is not JSON"],
        answers,
        strict=True,
    ):
        assert isinstance(said, str) and words in said and "\n" not in said, (name, said)


@pytest.mark.fault("a regular expression in tokenizer.json whose search never ends", seconds=20, mebibytes=900)
def test_a_panic_while_a_text_is_cut_is_one_line(tmp_path):
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    outcome = run_bounded([sys.executable, "-c", ENCODE, write(tmp_path / "panic", pre_tokenizer=split)], 20, 900)
    refused_in_one_line(outcome, "retry-limit-in-match", "tokenizer.json")


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": sequence({"type": "Prepend", "prepend": "▁"}, replace("▁", String=" "))},  # Llama 2
        {"normalizer": sequence({"type": "NFKC"}, replace(" ", Regex=" {2,}")), "decoder": replace(" ", String="▁")},
        {"normalizer": sequence(replace('"', String="``"), replace('"', String="''"), {"type": "Lowercase"})},  # ALBERT
    ],
)
def test_common_pipelines_are_accepted(tmp_path, parts):
    check_tokenizer_file(write(tmp_path / "usual", **parts) / "tokenizer.json")
