"""Tables of any format: text is kept, lone surrogates are refused or replaced, several files are one table."""

import json

import datasets
import pytest

from gpt_scratch.data.tables import class_names, load_table, read_table
from gpt_scratch.errors import UserError

TWO = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


def test_any_text_is_kept_and_lone_surrogates_are_replaced_if_requested(rows_of, capsys):
    odd = 'He said "no", \x00 \x1b[31m \u202e 🙂\tok'
    assert rows_of("a.jsonl", json.dumps({"text": odd})) == [{"text": odd}]
    assert rows_of("a.csv", 'text,label\n"a ""quoted"" text, and\na line\x00",x\n') == [
        {"text": 'a "quoted" text, and\na line\x00', "label": "x"}
    ]
    content = '{"text": "a\\ud83d"}\n{"text": "\\ude00b"}\n{"text": "c"}\n'
    assert rows_of("b.jsonl", content, replace_invalid=True) == [{"text": "a\ufffd"}, {"text": "\ufffdb"}, {"text": "c"}]
    assert "replaced by U+FFFD in 2 rows" in capsys.readouterr().err
    with pytest.raises(UserError, match="row 1: 'text' contains a lone surrogate"):
        rows_of("c.jsonl", '{"text": "a"}\n{"text": "\\ud83d"}\n')


def test_class_names_of_datasets_are_kept(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    data.to_parquet(tmp_path / "a.parquet")
    data.save_to_disk(tmp_path / "saved")
    assert class_names(str(tmp_path / "a.parquet"), "label") == class_names(str(tmp_path / "saved"), "label") == ["neg", "pos"]
    assert class_names(str(tmp_path / "a.parquet"), "text") is None


def test_several_files_are_one_table(tmp_path):
    for name, text in {"1.csv": "text,label\na,x\n", "2.csv": "label,text\ny,b\n"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = list(read_table(str(tmp_path / "*.csv")))
    assert [(number, values) for _, number, values in found] == [(0, TWO[0]), (0, TWO[1])]
    assert [name.rpartition("/")[2] for name, _, _ in found] == ["1.csv", "2.csv"]


def test_a_folder_is_read_like_its_files(tmp_path):
    """By `datasets`, and so by pandas, the first column of these rows would be an index, and the text cut at the comma."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("label,text\nham,hello, ok\nspam,a, b\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"train.csv: lines 2, 3: 3 fields but the header has 2"):
        list(read_table(str(tmp_path)))
    with pytest.raises(UserError, match="csv rows have more fields than the header"):
        load_table(str(tmp_path), None, "train", streaming=False)
    for split, text in (("train", "a;x"), ("test", "b;y")):
        (tmp_path / "data" / f"{split}.csv").write_text(f"text;label\n{text}\n", encoding="utf-16")
    assert [[values for _, _, values in read_table(str(tmp_path), split)] for split in ("train", "test")] == [TWO[:1], TWO[1:]]
    with pytest.raises(UserError, match="has no split 'validation'"):
        list(read_table(str(tmp_path), "validation"))
