"""Labelled texts in every shape, the published rows, and clean splits."""

import json
import zipfile

import datasets
import pytest

from gpt_scratch.data import opening
from gpt_scratch.data.classification import (
    LabelledTexts,
    balance,
    check_labels,
    deduplicate,
    encode_texts,
    label_ids,
    overlap,
    published_split,
    read_labelled_texts,
    stratified_split,
)
from gpt_scratch.data.opening import Reading
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

PAIRS = [("ham", 'He said "hi", ok?'), ("spam", "WIN £1000 now"), ("ham", '"open quote'), ("ham", "see you;\tlater")]
RAW = "".join(f"{label}\t{text}\n" for label, text in PAIRS[:3]) + "ham\tsee you\n"


def labelled(*counts: tuple[str, int]) -> LabelledTexts:
    rows = [(f"{label} text {i}", label) for label, count in counts for i in range(count)]
    return LabelledTexts([text for text, _ in rows], [label for _, label in rows], list(range(len(rows))))


@pytest.mark.parametrize("name", ["SMSSpamCollection", "sms.tsv", "sms.zip"])
def test_the_raw_collection_is_read_with_literal_quotes(tmp_path, name):
    path = tmp_path / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "about")
            archive.writestr("SMSSpamCollection", RAW)
    else:
        path.write_text(RAW, encoding="utf-8")
    data = read_labelled_texts(str(path))
    assert data.texts == ['He said "hi", ok?', "WIN £1000 now", '"open quote', "see you"]
    assert data.labels == ["ham", "spam", "ham", "ham"] and data.counts() == {"ham": 3, "spam": 1}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "saved"])
def test_tables_with_any_columns(tmp_path, kind):
    rows = datasets.Dataset.from_list([{"Label": i, "Text": f'a "quoted", text {i}\nof two lines'} for i in range(3)])
    path = tmp_path / f"table.{kind}"
    {"csv": lambda: rows.to_csv(path, index=False), "jsonl": lambda: rows.to_json(path), "parquet": lambda: rows.to_parquet(path),
     "saved": lambda: rows.save_to_disk(path)}[kind]()  # fmt: skip
    data = read_labelled_texts(str(path))
    assert data.texts == rows["Text"][:] and data.labels == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"Text,Class\nx,1\n", "no column 'label': its columns are Text, Class; pass --label_column"),
        ("a.csv", b"Label,Text\n1,x\n0,\n0,y\n1,  \n", "rows 1, 3: empty text"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "a.jsonl row 0: empty label"),
        ("a.tsv", b"ham\tok\nspam no tab\n", "a.tsv line 2: no tab: each line must be label<TAB>text"),
        ("a.tsv", b"ham\tok\nham\tcaf\xe9\n", "byte 14 is not UTF-8 .*, line 2.: give its --encoding"),
        ("a.zip", b"no zip", "not the SMS Spam Collection's zip"),
        ("a.doc", b"x", "unknown format '.doc'"),
        ("a.jsonl", b'{"text": 3, "label": "x"}\n', "row 0: the text is int, not text"),
        ("a.jsonl", b'{"text": "a", "label": ["x"]}\n', "row 0: the label is list, not a name"),
        ("a.jsonl", b'{"text": "a", "label": NaN}\n', "row 0: empty label"),
        ("a.csv", b'text,label\na,"x\ny"\n', "row 0: the label holds control characters"),
        ("a.csv", b"TEXT,Text,label\na,b,c\n", "the columns 'TEXT', 'Text' differ only in case or spaces"),
    ],
)
def test_broken_files_are_named_with_their_rows(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_labelled_texts(str(tmp_path / name))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        read_labelled_texts(str(tmp_path / "missing.csv"))


def test_class_ids_are_sorted_and_refused_where_they_cannot_work():
    assert label_ids(["spam", "ham", "spam"]) == {"ham": 0, "spam": 1}
    assert label_ids(["10", "9", "1"]) == {"1": 0, "9": 1, "10": 2}
    assert label_ids(["b", "a"], ["b", "c", "a"]) == {"b": 0, "c": 1, "a": 2}
    with pytest.raises(UserError, match="all texts have the label 'ham'"):
        label_ids(["ham", "ham"])
    with pytest.raises(UserError, match="label 'b' is not one of"):
        label_ids(["b", "a"], ["a", "x"])
    with pytest.raises(UserError, match=r"test: label 'c' in row 1 does not occur in training \(a, b\)"):
        check_labels(LabelledTexts(["x", "y"], ["a", "c"], [0, 1]), {"a": 0, "b": 1}, "test")


def test_deduplication_keeps_the_first_and_refuses_contradictions():
    data = LabelledTexts(["a", "b", "a ", "c", "b"], ["ham", "spam", "ham", "ham", "spam"], [0, 1, 2, 3, 4])
    kept, copies = deduplicate(data)
    assert (kept.rows, copies) == ([0, 1, 3], 2)
    clashing = LabelledTexts(["a", "b", "a", "c", "b", "b"], ["ham", "x", "spam", "ham", "y", "x"], [0, 1, 2, 3, 4, 5])
    with pytest.raises(UserError) as caught:
        deduplicate(clashing)
    assert str(caught.value).startswith(
        "2 texts occur with different labels: row 0 ('ham') and row 2 ('spam'); row 1 ('x') and row 4 ('y') and row 5 ('x'): "
    )
    assert "--conflicting_labels" in str(caught.value)
    kept, copies = deduplicate(clashing, "first")
    assert (kept.rows, kept.labels, copies) == ([0, 1, 3], ["ham", "x", "ham"], 3)
    kept, copies = deduplicate(clashing, "drop")
    assert (kept.rows, copies) == ([3], 5)


def test_clean_splits_share_nothing_and_keep_the_classes_shares():
    data = labelled(("ham", 80), ("spam", 20))
    parts = stratified_split(data, [0.7, 0.1, 0.2], seed=1)
    assert [part.counts() for part in parts] == [{"ham": 56, "spam": 14}, {"ham": 8, "spam": 2}, {"ham": 16, "spam": 4}]
    assert sorted(row for part in parts for row in part.rows) == data.rows
    assert overlap(parts[2], parts[0]) == 0
    assert (
        stratified_split(data, [0.7, 0.1, 0.2], seed=1)[0].rows
        == parts[0].rows
        != stratified_split(data, [0.7, 0.1, 0.2], 2)[0].rows
    )
    with pytest.raises(UserError, match="add up to 1"):
        stratified_split(data, [0.7, 0.2, 0.2], seed=1)
    with pytest.raises(UserError, match="too few texts of a label for 3 splits: 'odd' has 1, 'rare' has 2: add texts"):
        stratified_split(labelled(("ham", 50), ("odd", 1), ("rare", 2)), [0.7, 0.1, 0.2], seed=1)


def test_a_small_class_is_in_every_part():
    """The shares of 8 texts are 6, 0 and 2."""
    parts = stratified_split(labelled(("ham", 100), ("rare", 8), ("rarer", 3)), [0.7, 0.1, 0.2], seed=1)
    assert [part.counts() for part in parts] == [
        {"ham": 70, "rare": 5, "rarer": 1},
        {"ham": 10, "rare": 1, "rarer": 1},
        {"ham": 20, "rare": 2, "rarer": 1},
    ]


def test_balance_keeps_as_many_of_each_class_as_the_rarest_has():
    balanced = balance(labelled(("ham", 50), ("spam", 7)), seed=3)
    assert balanced.counts() == {"ham": 7, "spam": 7} and len(set(balanced.rows)) == 14


def test_texts_are_cut_with_a_count_and_not_padded():
    tokenizer = train_byte_level_bpe(["some words " * 50], vocab_size=270)
    data = LabelledTexts(["some words", "words " * 30_000], ["a", "b"], [0, 1])
    rows, cut = encode_texts(data, tokenizer, {"a": 0, "b": 1}, max_length=16)
    assert cut == 1 and rows["length"][:] == [len(tokenizer("some words")["input_ids"]), 16]
    assert rows["labels"][:] == [0, 1] and rows["attention_mask"][1] == [1] * 16


def test_the_published_split_row_for_row(shared_data):
    """Counts and overlaps of the committed CSVs; and the literal reading of all 5,574 lines."""
    path = str(shared_data / "SMSSpamCollection.tsv")
    data = read_labelled_texts(path)
    assert len(data) == 5574 and data.counts() == {"ham": 4827, "spam": 747}
    train, validation, test = published_split(path)
    assert [part.counts() for part in (train, validation, test)] == [
        {"ham": 528, "spam": 517},
        {"ham": 70, "spam": 79},
        {"ham": 149, "spam": 151},
    ]
    assert overlap(test, train) == 37 and overlap(validation, train) == 13 and len(set(train.texts)) == 997
    clean, copies = deduplicate(data)
    assert overlap(*stratified_split(clean, [0.8, 0.2], 1)) == 0 and copies > 400
    assert json.dumps(train.texts[0])  # every text is valid Unicode


def written(path, content: bytes | str) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.fixture
def said(monkeypatch, capsys):
    """What was printed about the files, each line once."""
    monkeypatch.setattr(opening, "_printed", set())
    return lambda: capsys.readouterr().err


def test_a_spreadsheet_of_german_classes(tmp_path, said):
    """latin-1, semicolons, empty rows, six classes of unlike sizes."""
    classes = ["Straße", "Müll", "Lärm", "Grün", "Bürgerbüro", "Öffnungszeiten"]
    rows = [f"Anfrage Nummer {i}: Größe, {name};{name}\n" for k, name in enumerate(classes) for i in range(10 * k + 5)]
    content = "Text;Label\n" + "".join([*rows[:5], ";\n", *rows[5:], ";;\n", "\n"])
    path = written(tmp_path / "a.csv", content.encode("latin-1"))
    with pytest.raises(UserError, match="is not UTF-8 .*--encoding"):
        read_labelled_texts(path)
    with pytest.raises(UserError, match="rows 5, 181: empty text: fill it, or pass --skip_empty"):
        read_labelled_texts(path, reading=Reading(encoding="latin-1"))
    data = read_labelled_texts(path, reading=Reading(encoding="latin-1", skip_empty=True))
    assert data.counts() == {name: 10 * k + 5 for k, name in sorted(enumerate(classes), key=lambda pair: pair[1])}
    told = said()
    assert "separated by semicolons" in told and "2 rows with an empty text or label were skipped" in told
    assert "the column 'Text' is read as 'text'" in told


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0, 1, 0], ["0", "1", "1", "0"]),
        (["1.0", "1", "2.5"], ["1", "1", "2.5"]),
        (["1.0", "1", "beta"], ["1.0", "1", "beta"]),
        ([True, False], ["True", "False"]),
        ([" ham", "ham\u00a0", "\ufeffham", "ham"], ["ham"] * 4),
        ([-1, 3, 10**30], ["-1", "3", str(10**30)]),
    ],
)
def test_labels_of_every_kind(tmp_path, said, values, labels):
    rows = "".join(json.dumps({"text": f"t {i}", "label": value}) + "\n" for i, value in enumerate(values))
    assert read_labelled_texts(written(tmp_path / "a.jsonl", rows)).labels == labels
    told = said()
    assert ("spaces around 3 labels were removed" in told) == (" ham" in values)
    assert ("1.0 is read as 1" in told) == ("2.5" in values)


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_the_names_of_a_class_label_are_kept_in_their_order(tmp_path, kind):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg", "mixed"])})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 0]}, features=features)
    path = tmp_path / f"a.{kind}"
    data.to_parquet(path) if kind == "parquet" else data.save_to_disk(path)
    read = read_labelled_texts(str(path))
    assert read.labels == ["pos", "neg", "pos"]
    assert label_ids(read.labels, read.class_order) == {"pos": 0, "neg": 1, "mixed": 2}
    if kind == "parquet":
        by_glob = read_labelled_texts(str(tmp_path / "a.par*"))
        assert (by_glob.labels, by_glob.class_order) == (read.labels, read.class_order)
    missing = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    missing.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="row 1: empty label"):
        read_labelled_texts(str(tmp_path / "b.parquet"))


def test_unused_columns_are_reported(tmp_path, said):
    data = read_labelled_texts(written(tmp_path / "a.csv", "id,Text,Label,note\n1,a,x,n\n2,b,y,n\n"))
    assert data.texts == ["a", "b"] and "unused columns: id, note" in said()


def test_several_files_of_labelled_texts(tmp_path):
    written(tmp_path / "1.csv", "text,label\na,x\n")
    written(tmp_path / "2.jsonl", '{"label": "y", "body": "b"}\n')
    written(tmp_path / "3.csv", "label,text\ny,c\n")
    data = read_labelled_texts(str(tmp_path / "*.csv"))
    assert (data.texts, data.labels) == (["a", "c"], ["x", "y"])


def test_all_faults_of_a_file_at_once(tmp_path):
    path = written(tmp_path / "a.csv", "text,label\na,x\n,y\nb, c,y\nd,\n")
    with pytest.raises(UserError) as caught:
        read_labelled_texts(path)
    assert "line 4: 3 fields" in str(caught.value) and "row 1: empty text" in str(caught.value)
    assert "row 3: empty label" in str(caught.value)
