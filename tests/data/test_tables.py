"""Rows of csv, tsv and JSON in every common shape; nothing of a row is lost silently."""

import json

import datasets
import pytest

from gpt_scratch.data.opening import Reading
from gpt_scratch.data.tables import class_names, find_column, read_table
from gpt_scratch.errors import UserError

HALF = "\ud83d"


def rows(path, content: str | bytes, **settings) -> list[dict]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    flags = {name: settings.pop(name) for name in ("encoding", "delimiter", "skip_empty", "replace_invalid") if name in settings}
    return [values for _, _, values in read_table(str(path), reading=Reading.of(Reading(**flags)), **settings)]


TWO = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "text,label\na,x\nb,y\n", ""),
        ("a.csv", "text,label\r\na,x\r\n\r\nb,y\r\n", ""),
        ("a.csv", "text,label\ra,x\rb,y\r", ""),
        ("a.csv", "\ufefftext,label\na,x\nb,y\n", ""),
        ("a.csv", 'text, label\n"a", x\nb, y\n', ""),
        ("a.csv", " text ,label\na,x\nb,y", ""),
        ("a.csv", '"text","label"\n"a","x"\n"b","y"\n', ""),
        ("a.csv", "text;label\na;x\nb;y\n", "separated by semicolons"),
        ("a.csv", "text\tlabel\na\tx\nb\ty\n", "separated by tabs"),
        ("a.csv", "text|label\na|x\nb|y\n", "separated by |"),
        ("a.csv", "text,label,,\na,x,,\nb,y,,\n", ""),
        ("a.csv", "text,label\na,x,\nb,y,,,\n", ""),
        ("a.tsv", "text\tlabel\na\tx\nb\ty\n", "read as the header: text, label"),
        ("a.tsv", "x\ta\ny\tb\n", ""),
        ("a.tsv", "text;label\na;x\nb;y\n", "separated by semicolons"),
        ("a.jsonl", "".join(json.dumps(row) + "\n" for row in TWO), ""),
        ("a.jsonl", json.dumps(TWO), "read as one list of rows"),
        ("a.jsonl", json.dumps(TWO, indent=2), "read as one list of rows"),
        ("a.json", json.dumps(TWO), ""),
        ("a.json", "".join(json.dumps(row) + "\n" for row in TWO), "read as one object per line"),
        ("a.json", json.dumps({"data": TWO}), "the rows under 'data'"),
        ("a.json", json.dumps({"version": 1, "rows": TWO}, indent=1), "the rows under 'rows'"),
        ("a.json", "\ufeff" + json.dumps(TWO), ""),
    ],
)
def test_shapes_that_are_recognized(tmp_path, capsys, name, content, said):
    assert rows(tmp_path / name, content) == TWO
    told = capsys.readouterr().err
    assert said in told and (said or not told)


def test_one_record_is_a_row_and_not_rows_under_a_key(tmp_path):
    one = {"messages": [{"role": "user", "content": "a"}]}
    assert rows(tmp_path / "a.json", json.dumps(one)) == rows(tmp_path / "b.jsonl", json.dumps(one)) == [one]
    assert rows(tmp_path / "c.json", json.dumps(one, indent=2)) == [one]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\na, b,x\nc,y\nd\n", r"a.csv: line 2: 3 fields but the header has 2 \(text, label\): enclose text with commas in double quotes.*; line 4: 1 field but"),
        ("a.csv", "text\nOne, two\nthree\n", r"line 2: 2 fields but the header has 1 \(text\)"),
        ("a.csv", 'text,label\n"two\nlines",x\na,b,c\n', "line 4: 3 fields"),
        ("a.csv", 'text,label\na,x\n"never closed,y\nb,z\n', "line 3: not valid CSV"),
        ("a.csv", 'text,label\n"a"b,x\n', "line 2: not valid CSV"),
        ("a.csv", "text,text\na,b\n", "two columns are named 'text'"),
        ("a.csv", "text;label\na;x;y\n", "enclose text with semicolons"),
        ("a.tsv", "text\tlabel\na\tx\tz\n", "line 2: 3 fields"),
        ("a.tsv", "ham\tok\nspam no tab\n", "line 2: no tab: each line must be label<TAB>text"),
        ("a.jsonl", '{"text": "a"}\n{"text": \n[1]\n{"text": "b", "text": "c"}\n', "line 2: not valid JSON.*line 3: a list, expected a JSON object.*line 4: not valid JSON: the key 'text' occurs twice"),
        ("a.json", '[{"text": "a"}, 3, "b"]', "row 1: it is int, not an object; row 2: it is str"),
        ("a.json", '{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "lists of rows under 'train', 'test'"),
        ("a.json", '[{"text": "a"}', "a.json is not valid JSON"),
        ("a.jsonl", '{"text": "' + HALF.encode("utf-16", "surrogatepass").decode("utf-16", "replace") + '"}\n{"text": "\\ud83d"}\n', "row 1: 'text' contains a lone surrogate"),
    ],
)  # fmt: skip
def test_unreadable_rows_are_reported_with_their_places(tmp_path, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows(tmp_path / name, content)
    assert "\n" not in str(caught.value)


def test_any_text_is_kept_and_lone_surrogates_are_replaced_if_requested(tmp_path, capsys):
    odd = 'He said "no", \x00 \x1b[31m \u202e 🙂\tok'
    assert rows(tmp_path / "a.jsonl", json.dumps({"text": odd})) == [{"text": odd}]
    assert rows(tmp_path / "a.csv", 'text,label\n"a ""quoted"" text, and\na line\x00",x\n') == [
        {"text": 'a "quoted" text, and\na line\x00', "label": "x"}
    ]
    content = '{"text": "a\\ud83d"}\n{"text": "\\ude00b"}\n{"text": "c"}\n'
    assert rows(tmp_path / "b.jsonl", content, replace_invalid=True) == [{"text": "a\ufffd"}, {"text": "\ufffdb"}, {"text": "c"}]
    assert "replaced by U+FFFD in 2 rows" in capsys.readouterr().err


def test_quotes_in_a_tsv_are_literal_unless_a_spreadsheet_wrote_them(tmp_path):
    assert rows(tmp_path / "a.tsv", 'ham\t"open quote\nham\tHe said "hi"\n') == [
        {"label": "ham", "text": '"open quote'},
        {"label": "ham", "text": 'He said "hi"'},
    ]
    assert rows(tmp_path / "b.tsv", 'label\ttext\nham\t"He said ""hi"""\n') == [{"label": "ham", "text": 'He said "hi"'}]
    assert rows(tmp_path / "c.tsv", "ham\tsee you;\tlater\nspam\twin\n")[0]["text"] == "see you;\tlater"


def test_a_delimiter_that_is_given(tmp_path):
    assert rows(tmp_path / "a.csv", "text:label\na:x\n", delimiter=":") == [{"text": "a", "label": "x"}]


def test_columns_are_found_in_any_case(capsys):
    assert find_column({"Text": 1}, "a.csv", "text") == "Text"
    assert "the column 'Text' is read as 'text'" in capsys.readouterr().err
    assert find_column({"TEXT": 1, "text": 2}, "a.csv", "text") == "text"
    assert find_column({"body": 1}, "a.csv", "text") is None
    with pytest.raises(UserError, match="differ only in case or spaces"):
        find_column({"TEXT": 1, "Text": 2}, "a.csv", "text")


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
