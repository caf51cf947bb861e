"""Rows of csv and tsv: delimiters, headers and quotes in every common form; nothing of a row is lost silently."""

import pytest

from gpt_scratch.errors import UserError

TWO = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "note"),
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
    ],
)
def test_shapes_that_are_recognized(rows_of, capsys, name, content, note):
    assert rows_of(name, content) == TWO
    printed = capsys.readouterr().err
    assert note in printed and (note or not printed)


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
    ],
)  # fmt: skip
def test_unreadable_rows_are_reported_with_their_places(rows_of, name, content, message):
    with pytest.raises(UserError, match=message) as caught:
        rows_of(name, content)
    assert "\n" not in str(caught.value)


def test_quotes_in_a_tsv_are_literal_unless_a_spreadsheet_wrote_them(rows_of):
    assert rows_of("a.tsv", 'ham\t"open quote\nham\tHe said "hi"\n') == [
        {"label": "ham", "text": '"open quote'},
        {"label": "ham", "text": 'He said "hi"'},
    ]
    assert rows_of("b.tsv", 'label\ttext\nham\t"He said ""hi"""\n') == [{"label": "ham", "text": 'He said "hi"'}]
    assert rows_of("c.tsv", "ham\tsee you;\tlater\nspam\twin\n")[0]["text"] == "see you;\tlater"


def test_a_delimiter_that_is_given(rows_of):
    assert rows_of("a.csv", "text:label\na:x\n", delimiter=":") == [{"text": "a", "label": "x"}]
