"""Tables of any format: text is kept, lone surrogates are refused or replaced, several files are one table."""

import json

import datasets
import pytest

from gpt_scratch.data.tables import class_names, read_table
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
