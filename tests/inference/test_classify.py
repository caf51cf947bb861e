"""Labels for a stream of texts: order, batches, padding, what is empty or too long; and the script around it."""

import csv
import io
import json

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.inference.classify import classify_texts
from gpt_scratch.inference.loading import load_classifier
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

TEXTS = ["One day", "", "Anna lost her key, and it was by the river.", "a b " * 200, "key"] * 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("classifier")
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4, pad_token_id=tokenizer.pad_token_id,
        id2label={0: "ham", 1: "spam", 2: "eggs"}, label2id={"ham": 0, "spam": 1, "eggs": 2},
    )  # fmt: skip
    GPTScratchForSequenceClassification(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_batches_give_what_each_text_gets_alone_in_order(folder):
    model, tokenizer = load_classifier(folder)
    together = list(classify_texts(model, tokenizer, TEXTS, batch_size=4, window=3))
    assert [result["text"] for result in together] == TEXTS
    for result, text in zip(together, TEXTS):
        alone = next(classify_texts(model, tokenizer, [text], batch_size=1))
        assert result["label"] == alone["label"]
        assert result.get("scores") == pytest.approx(alone.get("scores"), abs=1e-5)
    assert len({result["label"] for result in together}) > 2  # more than one class, so the comparison can fail


def test_empty_texts_are_not_judged_and_long_ones_are_cut_visibly(folder):
    results = list(classify_texts(*load_classifier(folder), TEXTS[:5]))
    assert results[1] == {"text": "", "label": None, "score": None, "error": "empty text"}
    assert results[3]["cut_to"] == 64 and "cut_to" not in results[0]
    assert sum(results[0]["scores"].values()) == pytest.approx(1, abs=1e-5)


def test_a_stream_is_answered_while_it_is_read(folder):
    read = []

    def stream():
        for text in TEXTS:
            read.append(text)
            yield text

    results = classify_texts(*load_classifier(folder), stream(), batch_size=2, window=1)
    next(results)
    assert len(read) == 2


def test_a_language_model_is_refused_as_a_classifier(tmp_path, folder):
    _, tokenizer = load_classifier(folder)
    GPTScratchForCausalLM(GPTScratchConfig(vocab_size=300, n_embd=16, n_layer=1, n_head=2)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no trained classification head"):
        load_classifier(str(tmp_path))
    with pytest.raises(UserError, match="nowhere cannot be loaded"):
        load_classifier(str(tmp_path / "nowhere"))


def run(script, *argv: str) -> int:
    module = script("classify")
    return module.main(module.parse(argv))


def test_the_script_reads_texts_files_tables_and_standard_input(script, folder, tmp_path, capsys, monkeypatch):
    assert run(script, folder, "--text", "One day", "key") == 2
    direct = capsys.readouterr().out
    assert [json.loads(line)["text"] for line in direct.splitlines()] == ["One day", "key"]
    (tmp_path / "texts.txt").write_text("One day\nkey\n", encoding="utf-8")
    (tmp_path / "texts.csv").write_text("id,message\n0,One day\n1,key\n", encoding="utf-8")
    run(script, folder, "--file", str(tmp_path / "texts.txt"))
    assert capsys.readouterr().out == direct
    run(
        script, folder, "--file", str(tmp_path / "texts.csv"), "--text_column", "message", "--output", str(tmp_path / "out.jsonl")
    )
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == direct
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"One day\r\nkey")))
    run(script, folder, "--batch_size", "1")
    assert [json.loads(line)["text"] for line in capsys.readouterr().out.splitlines()] == ["One day", "key"]


@pytest.mark.parametrize(
    ("given", "flags", "expected"),
    [
        (b"\xef\xbb\xbfOne\n\nkey\n", [], ["One", "", "key"]),
        (b"One\n \nkey\n", ["--skip_empty"], ["One", "key"]),
        (b"caf\xe9\n", ["--encoding", "latin-1"], ["café"]),
        (b"One\ncaf\xe9\n", [], "standard input line 2 is not utf-8 .*--encoding"),
        ("One\n".encode("utf-16"), [], "standard input cannot be UTF-16"),
        (b"One\n", ["--encoding", "utf-16"], "standard input cannot be UTF-16"),
    ],
)
def test_standard_input_is_read_as_files_are(script, monkeypatch, capsys, given, flags, expected):
    module = script("classify")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
    texts = module.read_texts(module.parse(["model", *flags]))
    if isinstance(expected, list):
        assert list(texts) == expected
        assert ("standard input: 1 empty lines were skipped" in capsys.readouterr().err) == ("--skip_empty" in flags)
    else:
        with pytest.raises(UserError, match=expected):
            list(texts)


def test_bytes_that_are_not_utf8_are_named_and_leave_no_output(script, folder, tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(UserError, match=r"latin1.txt: byte 8 is not UTF-8 \(.*, line 2\)"):
        run(script, folder, "--file", str(tmp_path / "latin1.txt"), "--output", str(tmp_path / "out.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["latin1.txt"]


def test_a_table_keeps_its_columns_and_an_empty_text_has_no_label(script, folder, tmp_path, capsys):
    (tmp_path / "in.csv").write_text('id;label;message\n7;ham;"One; day"\n8;spam;\n9;ham;"  "\n10;eggs;key\n', encoding="utf-8")
    out = tmp_path / "out.csv"
    assert run(script, folder, "--file", str(tmp_path / "in.csv"), "--text_column", "message", "--output", str(out)) == 4
    assert "2 of 4 texts are empty and have no label" in capsys.readouterr().err
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [list(row.values())[:3] for row in rows] == [
        ["7", "ham", "One; day"],
        ["8", "spam", ""],
        ["9", "ham", "  "],
        ["10", "eggs", "key"],
    ]
    assert list(rows[0])[3:] == ["predicted_label", "predicted_score"]
    expected = list(classify_texts(*load_classifier(folder), ["One; day", "key"]))
    assert [row["predicted_label"] for row in rows] == [expected[0]["label"], "", "", expected[1]["label"]]
    assert float(rows[3]["predicted_score"]) == pytest.approx(expected[1]["score"], abs=1e-5) and rows[1]["predicted_score"] == ""


def test_texts_without_a_table_are_written_as_one(script, folder, tmp_path):
    run(script, folder, "--text", "One day", "a\tb", "--output", str(tmp_path / "out.tsv"))
    with (tmp_path / "out.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["text"] for row in rows] == ["One day", "a\tb"] and all(row["label"] and row["score"] for row in rows)


def test_the_delimiter_of_the_output_has_names_too(script, folder, tmp_path):
    (tmp_path / "in.csv").write_text('text\n"a, b"\n""\n', encoding="utf-8")
    out = tmp_path / "out.csv"
    assert run(script, folder, "--file", str(tmp_path / "in.csv"), "--delimiter", "semicolon", "--output", str(out)) == 2
    lines = out.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "text;label;score" and lines[1].startswith("a, b;") and lines[2] == ";;"
    with pytest.raises(UserError, match="out.csv.gz: the file is not compressed; leave out .gz"):
        run(script, folder, "--text", "a", "--output", str(tmp_path / "out.csv.gz"))


def test_a_column_that_comes_later_is_refused_by_a_table(script, folder, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "One day"}\n{"text": "key", "by": "Anna"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="columns of its first row: .*'by'"):
        run(script, folder, "--file", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.thorough
def test_a_trained_classifier_scores_a_message_the_same_whatever_is_around_it(attention):
    """Alone, in a batch, padded on either side to 120 or 1,024 tokens."""
    texts = ["free prize, call now", "see you at home then", "win", "are you at the river, Anna, or at home?"] * 8
    tokenizer = train_byte_level_bpe(texts, vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=1024, drop_rate=0.0, initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = GPTScratchForSequenceClassification._from_config(config, attn_implementation=attention).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    for _ in range(10):
        loss = model(**batch, labels=torch.tensor([1, 0] * 16)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    model.eval()
    with torch.no_grad():
        alone = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in texts[:4]]).softmax(-1)
        assert alone.max() > 0.9 and alone.min() < 0.1
        for side in ("left", "right"):
            for length in (None, 120, 1024):
                padding = {"padding": True} if length is None else {"padding": "max_length", "max_length": length}
                rows = tokenizer(texts[:4], padding_side=side, return_tensors="pt", **padding)
                scores = model(**rows).logits.softmax(-1)
                torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)


class Arrived(Exception):
    """What a function of the script was called with."""


def test_the_batch_size_flag_reaches_its_function(script, folder, monkeypatch):
    module = script("classify")

    def stop(model, tokenizer, texts, batch_size, window):
        raise Arrived(list(texts), batch_size)

    monkeypatch.setattr(module, "classify_texts", stop)
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse([folder, "--text", "one", "two", "--batch_size", "3"]))
    assert arrived.value.args == (["one", "two"], 3)
