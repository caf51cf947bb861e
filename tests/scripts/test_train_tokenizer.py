"""The tokenizer script: each kind is trained, measured and saved so that AutoTokenizer and the other scripts take it."""

import json

import pytest
from old_releases import assert_old_releases_open
from transformers import AutoTokenizer

from gpt_scratch.data.language_modeling import texts_of
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe, train_byte_pair

LINE = "One day, Anna lost her key; it wasn't there! Tom's dog had {} of them.\n"
TRAIN = "".join(LINE.format(number % 3) for number in range(60))
HELD_OUT = "Anna saw a zebra.\nTom's dog was there!\n"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "train.txt").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "held_out.jsonl").write_text(json.dumps({"story": HELD_OUT}) + "\n", encoding="utf-8")
    (tmp_path / "held_out.txt").write_text(HELD_OUT, encoding="utf-8")
    return tmp_path


def run(script, *argv):
    module = script("train_tokenizer")
    return module.main(module.parse([str(argument) for argument in argv]))


@pytest.mark.parametrize(("kind", "unknown"), [("bpe", 0), ("word", 4 / 12), ("treebank", 3 / 11), ("whitespace", 4 / 8)])
def test_each_kind_is_trained_measured_and_saved(script, files, capsys, kind, unknown):
    flags = ["--type", kind, "--train_file", files / "train.txt", "--validation_file", files / "held_out.txt"]
    report = run(
        script, *flags, "--vocab_size", 330, "--model_max_length", 64, "--output_dir", files / "out", "--example", "Anna's key"
    )
    tokenizer = AutoTokenizer.from_pretrained(files / "out")
    tokens = tokenizer(HELD_OUT)["input_ids"]
    assert tokenizer.model_max_length == 64
    assert (report.vocabulary, report.tokens) == (len(tokenizer), len(tokens))
    assert report.bytes_per_token == len(HELD_OUT) / len(tokens)
    # "saw", "a" and "zebra" were never seen, and "was" only in "wasn't", which treebank cuts in two
    assert report.unknown_share == pytest.approx(unknown)
    output = capsys.readouterr().out
    assert f"vocabulary: {len(tokenizer)} tokens" in output
    assert f"{len(tokens)} tokens, {len(HELD_OUT) / len(tokens):.2f} bytes per token, {unknown:.2%} unknown" in output
    assert "Anna" in output and " ".join(map(str, tokenizer("Anna's key")["input_ids"])) in output


def test_the_last_part_is_held_out_and_its_lines_are_shown(script, files, capsys):
    report = run(script, "--train_file", files / "train.txt", "--vocab_size", 300, "--output_dir", files / "out")
    assert report.tokens * report.bytes_per_token == pytest.approx(len(TRAIN) / 10)
    assert LINE.format(1).strip() in capsys.readouterr().out


def test_all_files_are_counted(script, files):
    flags = ["--train_file", files / "train.txt", files / "train.txt", "--validation_file", files / "train.txt", "--type", "word"]
    counted_twice = run(script, *flags, "--min_frequency", 21, "--output_dir", files / "two")
    once = run(script, *flags[:2], *flags[3:], "--min_frequency", 21, "--output_dir", files / "one")
    assert counted_twice.vocabulary == once.vocabulary + 3  # "0", "1" and "2" occur 20 times in a file


def test_a_word_list(script, files, capsys):
    (files / "words.txt").write_text("Anna\nTom's\nthere\n", encoding="utf-8")
    flags = ["--word_list", files / "words.txt", "--validation_file", files / "held_out.jsonl", "--text_column", "story"]
    report = run(script, *flags, "--type", "word", "--output_dir", files / "out")
    assert report.vocabulary == 5
    assert "1 entries" in capsys.readouterr().out
    assert report.unknown_share == pytest.approx(10 / 12)
    assert_old_releases_open(files / "out")


def test_a_minbpe_file_is_converted(script, files):
    (files / "toy.model").write_text("minbpe v1\n\n1\n<|endoftext|> 258\n65 110\n256 110\n", encoding="utf-8")
    flags = ["--from_files", files / "toy.model", "--validation_file", files / "held_out.txt"]
    report = run(script, *flags, "--output_dir", files / "out")
    assert report.vocabulary == 259
    assert AutoTokenizer.from_pretrained(files / "out")("Anna<|endoftext|>")["input_ids"] == [257, 97, 258]
    assert_old_releases_open(files / "out")


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_files_are_converted(script, files, names):
    trained = train_byte_level_bpe([(files / "held_out.txt").read_text(encoding="utf-8")], vocab_size=270)
    model = json.loads(trained.backend_tokenizer.to_str())["model"]
    (files / names[0]).write_text(json.dumps(model["vocab"]), encoding="utf-8")
    (files / names[1]).write_text("#version: 0.2\n" + "\n".join(map(" ".join, model["merges"])) + "\n", encoding="utf-8")
    flags = ["--from_files", *map(files.joinpath, names), "--validation_file", files / "held_out.txt"]
    run(script, *flags, "--output_dir", files / "out")
    text = "Tom said: the key!"
    assert AutoTokenizer.from_pretrained(files / "out")(text)["input_ids"] == trained(text)["input_ids"]


def test_the_tokenizer_equals_that_of_the_library(script, files):
    run(script, "--train_file", files / "train.txt", "--validation_file", files / "held_out.txt", "--output_dir", files / "out")
    assert AutoTokenizer.from_pretrained(files / "out")(HELD_OUT)["input_ids"] == train_byte_pair([TRAIN], 8000).encode(HELD_OUT)


def test_special_tokens_and_a_chat_template_are_saved(script, files):
    run(script, "--train_file", files / "train.txt", "--vocab_size", 300, "--special_tokens", "<|im_start|>", "--prompt_style", "chatml",
        "--output_dir", files / "out")  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(files / "out")
    messages = [{"role": "user", "content": "Anna"}, {"role": "assistant", "content": "Tom"}]
    ids = tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2 and ids.count(tokenizer.eos_token_id) == 2
    assert_old_releases_open(files / "out")


def test_each_flag_of_the_text_has_its_effect(script, files):
    """By the held-out text, which the report is measured on, and the saved length."""
    module = script("train_tokenizer")
    (files / "lines.jsonl").write_text("\n".join(json.dumps({"text": LINE.format(i)}) for i in range(20)), encoding="utf-8")

    def parse(*flags):
        return module.parse([str(word) for word in ("--output_dir", files / "out", *flags)])

    def held_out(*flags) -> list[str]:
        return list(texts_of(module.read_texts(parse("--train_file", files / "lines.jsonl", *flags))[1]))

    whole = "".join(LINE.format(i) for i in range(20))
    assert held_out() == [LINE.format(18), LINE.format(19)] and len(held_out("--validation_split_percentage", "30")) == 6
    cut = "".join(held_out("--split_by", "characters", "--validation_split_percentage", "7"))
    assert cut == whole[int(len(whole) * 0.93) :]
    story = module.read_texts(
        parse("--train_file", files / "held_out.jsonl", "--validation_file", files / "held_out.jsonl", "--text_column", "story")
    )
    assert [list(texts_of(part)) for part in story] == [[HELD_OUT], [HELD_OUT]]
    train = module.read_texts(parse("--train_file", files / "lines.jsonl"))[0]
    sizes = [len(module.make_tokenizer(parse("--min_frequency", count), train)) for count in ("1", "2", "18")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    (files / "words.txt").write_text("Anna\n", encoding="utf-8")
    flags = ("--word_list", files / "words.txt", "--type", "word", "--validation_file", files / "held_out.txt")
    assert module.make_tokenizer(parse(*flags, "--model_max_length", "77"), None).model_max_length == 77


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --train_file, --word_list and --from_files"),
        (["--train_file", "train.txt", "--word_list", "train.txt"], "give one of"),
        (["--train_file", "none.txt"], "none.txt: no such file"),
        (["--word_list", "train.txt", "--type", "word"], "--validation_file is needed"),
        (["--word_list", "train.txt", "--validation_file", "held_out.txt"], "--word_list needs"),
        (["--from_files", "a", "b", "c", "--validation_file", "held_out.txt"], "--from_files needs"),
        (["--from_files", "a", "--validation_file", "held_out.txt", "--vocab_size", "9"], "need --train_file"),
        (["--train_file", "train.txt", "--validation_split_percentage", "100"], "100.0: it must be between 0"),
        (["--train_file", "train.txt", "--special_tokens", "<|a|>", "<|a|>"], r"'<\|a\|>': each must be text, given once"),
        (["--train_file", "train.txt", "--type", "word", "--special_tokens", "<|a|>"], "have no effect on other tokenizers"),
        (["--train_file", "train.txt", "--vocab_size", "100"], "needs at least 258"),
        (["--train_file", "held_out.jsonl"], "has no column 'text'"),
    ],
)
def test_wrong_flags_are_refused_and_nothing_is_written(script, files, monkeypatch, flags, message):
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=message):
        run(script, *flags, "--output_dir", "out")
    assert sorted(path.name for path in files.iterdir()) == ["held_out.jsonl", "held_out.txt", "train.txt"]


def test_an_existing_directory_is_kept_unless_overwrite_is_given(script, files):
    flags = ["--train_file", files / "train.txt", "--vocab_size", 300, "--output_dir", files / "out"]
    run(script, *flags)
    before = (files / "out" / "tokenizer.json").stat().st_ino
    with pytest.raises(UserError, match="not empty"):
        run(script, *flags)
    run(script, *flags, "--overwrite")
    assert (files / "out" / "tokenizer.json").stat().st_ino != before
    (files / "out" / "mine").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="contains 'mine', which this package did not write"):
        run(script, *flags, "--overwrite")
    assert (files / "out" / "mine").read_text(encoding="utf-8") == "mine"


def test_the_current_directory_is_not_replaced(script, files, monkeypatch):
    monkeypatch.chdir(files)
    before = sorted(path.name for path in files.iterdir())
    for output in (".", ".."):
        with pytest.raises(UserError, match="current directory"):
            run(script, "--train_file", "train.txt", "--vocab_size", 300, "--output_dir", output, "--overwrite")
    assert sorted(path.name for path in files.iterdir()) == before
