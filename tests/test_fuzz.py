"""Any configuration or file works or is refused in one clear line; never by another exception, never slowly.

Examples are drawn by hypothesis from the same seed each time.
"""

import csv
import io
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_scratch import GPTScratchConfig
from gpt_scratch.data.classification import label_ids, read_labelled_texts
from gpt_scratch.data.instruction import read_conversations
from gpt_scratch.data.readers import check_files, read_pieces
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair_files import read_book_bpe, read_minbpe
from gpt_scratch.tokenization.gpt2 import load_gpt2_tokenizer
from gpt_scratch.tokenization.word_level import word_level_from_list
from gpt_scratch.training.arguments import parse_config_overrides

fuzz = settings(
    max_examples=int(os.environ.get("GPT_SCRATCH_FUZZ", 60)),
    derandomize=True,
    deadline=2000,
    database=None,
    suppress_health_check=list(HealthCheck),
)

NUMBERS = st.one_of(
    st.integers(-2, 130), st.integers(), st.floats(), st.sampled_from([0, 1, 2, 64, 2**31, 2**63, 10**30, 1e-5, float("nan")])
)
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(["rope", "learned", "rmsnorm", "layernorm", "gated", "plain", "silu", "llama3", "linear", "default", "abs", "hf"]))  # fmt: skip
ROPE_KEYS = [
    "rope_type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
    "type",
]
ANYTHING = st.one_of(
    NUMBERS, WORDS, st.none(), st.booleans(), st.lists(NUMBERS, max_size=3), st.dictionaries(st.sampled_from(ROPE_KEYS), NUMBERS | WORDS)
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)
NAMES = sorted(
    (GPTScratchConfig().to_dict().keys() | GPTScratchConfig.attribute_map.keys() | {"drop_rate", "rope_theta", "rope_scaling"})
    - {"auto_map", "gpt_scratch_version", "model_type", "transformers_version"}
)


def works_or_is_refused(call, *arguments, **keywords):
    """The result, or `None` where it was refused by one line."""
    try:
        return call(*arguments, **keywords)
    except ValueError as error:
        message = str(error)
        assert message.strip() and len(message) < 3000
        assert "\n" not in message
        return None


OWN = [name for name in NAMES if name in GPTScratchConfig._fields() or name in GPTScratchConfig.attribute_map]


@fuzz
@given(st.dictionaries(st.sampled_from([*OWN, "rope_theta", "rope_scaling", "drop_rate"]), ANYTHING, max_size=5))
@pytest.mark.thorough
def test_configurations(values):
    config = works_or_is_refused(GPTScratchConfig, **values)
    if config is not None:
        assert config.num_attention_heads % config.num_key_value_heads == 0 and config.head_dim > 0
        config.to_json_string()


@fuzz
@given(st.one_of(st.text(max_size=30), JSON.map(json.dumps), st.lists(st.tuples(st.sampled_from(NAMES), st.text(max_size=6))).map(lambda pairs: ",".join(f"{k}={v}" for k, v in pairs))))  # fmt: skip
@pytest.mark.thorough
def test_overrides(text):
    try:
        parse_config_overrides(text, GPTScratchConfig)
    except UserError as error:
        assert "\n" not in str(error)


LINES = st.lists(st.one_of(st.text(max_size=20), st.tuples(st.integers(-3, 300), st.integers(-3, 300)).map(lambda p: f"{p[0]} {p[1]}")), max_size=8).map("\n".join)  # fmt: skip
CONTENT = st.one_of(st.binary(max_size=60), LINES.map(lambda text: text.encode("utf-8", "surrogatepass")), JSON.map(lambda value: json.dumps(value).encode()))  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@fuzz
@given(CONTENT)
def test_minbpe_files(folder, content):
    (folder / "a.model").write_bytes(b"minbpe v1\n" + content)
    works_or_is_refused(read_minbpe, folder / "a.model")
    (folder / "b.model").write_bytes(content)
    works_or_is_refused(read_minbpe, folder / "b.model")


@fuzz
@given(CONTENT, CONTENT)
def test_files_of_two_parts(folder, first, second):
    for name, data in {"encoder.json": first, "vocab.bpe": second}.items():
        (folder / name).write_bytes(data)
    works_or_is_refused(load_gpt2_tokenizer, folder)
    works_or_is_refused(read_book_bpe, folder / "encoder.json", folder / "vocab.bpe")


@fuzz
@given(st.dictionaries(st.integers(0, 6).map(str) | st.text(max_size=3), st.text(max_size=3) | JSON), JSON | st.lists(st.fixed_dictionaries({"pair": JSON, "new_id": JSON}), max_size=3))  # fmt: skip
def test_the_books_tokenizer(folder, vocabulary, merges):
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary | {"7": "<|endoftext|>"}), encoding="utf-8")
    (folder / "merges.json").write_text(json.dumps(merges), encoding="utf-8")
    works_or_is_refused(read_book_bpe, folder / "vocabulary.json", folder / "merges.json")


@fuzz
@given(CONTENT)
def test_word_lists(folder, content):
    (folder / "words.txt").write_bytes(content)
    works_or_is_refused(word_level_from_list, folder / "words.txt")


def as_csv(rows) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


RECORDS = st.lists(
    st.dictionaries(
        st.sampled_from(["text", "Label", "label", "instruction", "input", "output", "messages", "prompt", "completion", "input_ids", "labels"]),
        JSON | st.lists(st.fixed_dictionaries({"role": WORDS | st.sampled_from(["user", "assistant"]), "content": JSON}), max_size=3)
        | st.lists(st.integers(-3, 9), max_size=3),
    ) | JSON,
    max_size=4,
)  # fmt: skip
TABLES = st.one_of(
    CONTENT,
    RECORDS.map(lambda rows: json.dumps(rows).encode()),
    RECORDS.map(lambda rows: "\n".join(map(json.dumps, rows)).encode()),
    st.lists(st.lists(st.text(max_size=6), min_size=1, max_size=3), max_size=4).map(lambda rows: as_csv([["text", "label"], *rows])),
    st.lists(st.tuples(st.text(max_size=5), st.text(max_size=9)), max_size=4).map(lambda rows: "\n".join(f"{a}\t{b}" for a, b in rows).encode("utf-8", "surrogatepass")),
)  # fmt: skip


@fuzz
@given(TABLES, st.sampled_from([".txt", "", ".tsv", ".zip", ".csv", ".json", ".jsonl", ".parquet"]))
def test_data_files(folder, content, suffix):
    file = folder / f"data{suffix}"
    file.write_bytes(content)

    def read_text():
        check_files([str(file)])
        return list(read_pieces([str(file)]))

    if suffix not in (".tsv", ".zip"):
        pieces = works_or_is_refused(read_text)
        assert pieces is None or sum(piece.end for piece in pieces) <= len(content) + 1
        conversations = works_or_is_refused(read_conversations, str(file)) if suffix not in ("", ".txt") else None
        assert conversations is None or len(conversations) > 0
    data = works_or_is_refused(read_labelled_texts, str(file))
    if data is not None:
        works_or_is_refused(label_ids, data.labels)


def test_deep_nesting_is_refused(folder):
    deep = "[" * 200_000
    for name in ("deep.json", "deep.jsonl", "encoder.json", "vocab.bpe"):
        (folder / name).write_text(deep, encoding="utf-8")
    for name in ("deep.json", "deep.jsonl"):
        with pytest.raises(UserError, match="not valid JSON"):
            read_conversations(str(folder / name))
    with pytest.raises(UserError, match="broken"):
        load_gpt2_tokenizer(folder)
    with pytest.raises(UserError, match="not valid JSON"):
        read_book_bpe(folder / "encoder.json", folder / "vocab.bpe")
    with pytest.raises(UserError, match="config_overrides"):
        parse_config_overrides('{"n_embd": ' + deep, GPTScratchConfig)
