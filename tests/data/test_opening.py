"""Encodings, archives, folders and globs; and one report of everything that is wrong."""

import bz2
import codecs
import gzip
import lzma
import sys

import pyarrow
import pytest
from bounds import refused_in_one_line, run_bounded

from gpt_scratch.data import opening
from gpt_scratch.data.opening import (
    Faults,
    Reading,
    check_files,
    invalid_place,
    read_lines,
    read_text,
    replaced,
    suffix_of,
    warn_of_shared_files,
)
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.errors import UserError

TEXT = "Grüße, 1 €\nzweite Zeile 🙂\n"


def text_of(path, **flags) -> str:
    return "".join(read_text(str(path), Reading.of(Reading(**flags))))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_are_not_text(tmp_path, capsys, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode(encoding))
    assert text_of(path) == TEXT
    assert [piece.text for piece in read_pieces([str(path)])] == [TEXT]
    told = capsys.readouterr().err
    assert ("read as UTF-" in told) == (encoding in ("utf-16", "utf-32"))


def test_a_byte_order_mark_across_two_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "READ_BYTES", 5)
    path = tmp_path / "a.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes(TEXT.encode(encoding))
        assert text_of(path) == TEXT


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (
            "Grüße".encode("latin-1"),
            {},
            r"byte 2 is not UTF-8 \(invalid start byte, line 1\): give its --encoding, such as cp1252",
        ),
        (b"\n\n" + "é".encode("cp1252"), {}, "line 3"),
        (TEXT.encode("utf-16-le"), {}, "looks like UTF-16 without a byte order mark: pass --encoding utf-16-le"),
        ("a line of text\n".encode("utf-16-be"), {}, "pass --encoding utf-16-be"),
        (TEXT.encode("utf-8-sig"), {"encoding": "latin-1"}, "has the byte order mark of UTF-8: leave out --encoding latin-1"),
        (TEXT.encode("utf-16"), {"encoding": "utf-8"}, "has the byte order mark of UTF-16"),
        ("é".encode(), {"encoding": "ascii"}, "byte 0 is not ascii"),
    ],
)
def test_other_encodings_are_refused_with_the_flag_that_helps(tmp_path, content, flags, message):
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        text_of(path, **flags)
    assert "a.txt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16-le", "utf-16-be", "cp1251", "shift_jis"])
def test_an_encoding_that_is_given(tmp_path, encoding):
    text = "Привет\n" if encoding == "cp1251" else "日本\n" if encoding == "shift_jis" else "Grüße\n"
    path = tmp_path / "a.csv"
    path.write_bytes(("text\n" + text).encode(encoding))
    assert [piece.text for piece in read_pieces([str(path)], reading=Reading(encoding=encoding))] == [text.strip()]


@pytest.mark.parametrize("flags", [{"encoding": "klingon"}, {"encoding": "hex"}, {"delimiter": "ab"}, {"delimiter": '"'}])
def test_impossible_flags_are_refused(flags):
    with pytest.raises(UserError, match=f"--{next(iter(flags))}"):
        Reading.of(Reading(**flags))


def test_delimiters_by_name():
    assert [Reading.of(Reading(delimiter=name)).delimiter for name in ("tab", "\\t", "semicolon", "|")] == ["\t", "\t", ";", "|"]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_files_are_read(tmp_path, suffix):
    rows = "".join(f'{{"text": "row {i}"}}\n' for i in range(3)).encode()
    path = tmp_path / f"a.jsonl{suffix}"
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(pack[suffix](rows) if suffix in pack else pyarrow.compress(rows, "zstd", asbytes=True))
    assert suffix_of(str(path)) == ".jsonl"
    assert [piece.text for piece in read_pieces([str(path)])] == ["row 0", "row 1", "row 2"]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"a.jsonl{suffix} cannot be decompressed"):
        list(read_pieces([str(path)]))
    path.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="cannot be decompressed"):
        list(read_pieces([str(path)]))


READ = """
import sys
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.errors import run_script
run_script(lambda: print(sum(len(piece.text) for piece in read_pieces(sys.argv[1:]))))
"""


@pytest.mark.fault("a .gz and a .zst of some kB that unpack to 300 MB and more", seconds=60, mebibytes=900)
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.thorough
def test_an_archive_bomb_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.txt{suffix}"
    block = b"a b " * (1 << 18)
    with gzip.open(path, "wb") if suffix == ".gz" else pyarrow.output_stream(path, compression="zstd") as file:
        for _ in range(300):
            file.write(block)
    assert path.stat().st_size < 2_000_000
    refused_in_one_line(run_bounded([sys.executable, "-c", READ, path], 60, 900), path.name, "decompresses to more than")


def test_line_ends_of_each_system(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "READ_BYTES", 3)
    path = tmp_path / "a.txt"
    for content, lines in {
        b"a\nbc\n": ["a\n", "bc\n"],
        b"a\r\nbc": ["a\r\n", "bc"],
        b"": [],
        b"\n\nx": ["\n", "\n", "x"],
    }.items():
        path.write_bytes(content)
        assert list(read_lines(str(path), Reading())) == lines
    monkeypatch.undo()
    path.write_bytes(b"text,label\ra,x\rb,y\r")
    assert list(read_lines(str(path), Reading())) == ["text,label\r", "a,x\r", "b,y\r"]


def test_folders_and_globs(tmp_path, capsys):
    (tmp_path / "books" / "old").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "old/c.txt", ".hidden.txt"):
        (tmp_path / "books" / name).write_text(name, encoding="utf-8")
    (tmp_path / "books" / "cover.png").write_bytes(b"x")
    texts = [piece.text for piece in read_pieces([str(tmp_path / "books")])]
    assert texts == ["a.txt", "b.txt", "old/c.txt"]
    assert "3 txt files; not read: cover.png" in capsys.readouterr().err
    assert [piece.text for piece in read_pieces([str(tmp_path / "books" / "*.txt")])] == ["a.txt", "b.txt"]
    assert len(check_files([str(tmp_path / "books" / "**" / "[abc].txt")])) == 3
    (tmp_path / "books" / "rows.csv").write_text("text\nx\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"a folder of 1 csv and 3 txt files|a folder of 3 txt and 1 csv files: select some with a glob"
    ):
        check_files([str(tmp_path / "books")])
    (tmp_path / "empty").mkdir()
    for name, message in {
        "empty": "a folder without readable files",
        "*.text": "no file matches it",
        "none.txt": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            check_files([str(tmp_path / name)])
    (tmp_path / "what[1].txt").write_text("brackets", encoding="utf-8")  # a file of that very name is no glob
    assert [piece.text for piece in read_pieces([str(tmp_path / "what[1].txt")])] == ["brackets"]


def test_all_faults_are_reported_at_once():
    faults = Faults()
    faults.check()
    faults.add("a.csv", "row", 3, "empty text")
    with pytest.raises(UserError, match="^a.csv row 3: empty text$"):
        faults.check()
    for number in range(4, 20):
        faults.add("a.csv", "row", number, "empty text")
    faults.add("a.csv", "line", 40, "3 fields")
    with pytest.raises(UserError) as caught:
        faults.check()
    assert str(caught.value) == (
        "a.csv: rows 3, 4, 5, 6, 7, 8, 9, 10, 11, 12: empty text; 18 faults in total, the first 10 are shown"
    )
    both = Faults()
    both.add("a.csv", "row", 1, "x")
    both.add("b.csv", "line", 2, "y")
    with pytest.raises(UserError, match="^a.csv row 1: x; b.csv line 2: y$"):
        both.check()
    with pytest.raises(UserError, match="row 0"):
        Faults(at_once=True).add("a", "row", 0, "x")


def test_lone_surrogates_are_found_anywhere():
    half = "\ud83d"
    assert invalid_place({"text": "fine 🙂 \x00\x1b"}) is None
    assert invalid_place({"a": 1, "text": half}) == "text"
    assert invalid_place({"messages": [{"content": "x"}, {"content": ["a", half]}]}) == "messages"
    assert invalid_place({half: 1}) == "a key"
    assert replaced({"a": [f"x{half}y🙂"], "b": 2}) == {"a": ["x\ufffdy🙂"], "b": 2}


def test_utf32_is_not_taken_for_utf16():
    assert next(encoding for mark, encoding in opening.MARKS.items() if codecs.BOM_UTF32_LE.startswith(mark)) == "utf-32"


def test_a_file_that_is_trained_and_validated_on_is_named(tmp_path, monkeypatch, capsys):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("text", encoding="utf-8")
    monkeypatch.setattr(opening, "_printed", set())
    warn_of_shared_files([str(tmp_path / "a.txt")], [str(tmp_path / "b.txt")])
    warn_of_shared_files([], [str(tmp_path / "b.txt")])  # trained on a data set
    assert capsys.readouterr().err == ""
    warn_of_shared_files([str(tmp_path / "*.txt")], [str(tmp_path / "." / "b.txt")])
    assert f"warning: --train_file and --validation_file both contain {tmp_path / 'b.txt'}" in capsys.readouterr().err
