"""Files as people had them, from public bug reports, with the right outcome for every script that reads such a file.

The cases themselves are optional data (`shared/cases`); small files of the same kinds are written here.
"""

import argparse
import json
from pathlib import Path

import pytest

from gpt_scratch import GPTScratchConfig
from gpt_scratch.data import opening
from gpt_scratch.data.instruction import encode_conversations, prompt_ids, read_conversations, set_prompt_style
from gpt_scratch.data.language_modeling import BlockSettings
from gpt_scratch.data.opening import Reading
from gpt_scratch.data.preference import read_preferences
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.classification import ClassificationArguments
from gpt_scratch.training.classification import read_splits as read_labelled_splits
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.instructions import read_splits as read_instruction_splits
from gpt_scratch.training.made_with import fingerprint
from gpt_scratch.training.preferences import PreferenceArguments, read_pairs
from gpt_scratch.training.pretraining import PretrainingArguments, open_corpus, prepare_data

END = "<|endoftext|>"
WORDS = ["free", "win", "prize", "call", "now", "later", "meet", "home", "thanks", "you"]


def line(i: int) -> str:
    return " ".join(WORDS[(i * k + k) % 10] for k in range(1, 6)) + f" {i}"


def kinds_of_rows(text=line, label=lambda i: ("ham", "spam")[i % 3 == 0], count=30) -> list[dict]:
    return [{"text": text(i), "label": label(i)} for i in range(count)]


def jsonl(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def csv_of(rows, header="text,label") -> str:
    return header + "\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows)


TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
LATE = [
    *TALK,
    {"role": "system", "content": "In French."},
    {"role": "user", "content": "bye"},
    {"role": "assistant", "content": "au revoir"},
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOLS = [TALK[0], {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}, TALK[1]]
ALPACA = [{"instruction": f"Name thing {i}", "output": f"First {i}"} for i in range(30)]
HALF = "\ud83d"

# The same kinds, small: name of the case to content.
TWINS = {
    "byte-order-mark/excel.csv": ("\ufeff" + csv_of(kinds_of_rows())).encode(),
    "byte-order-mark/excel.tsv": ("\ufeff" + "".join(f"{r['label']}\t{r['text']}\n" for r in kinds_of_rows())).encode(),
    "byte-order-mark/notepad.txt": ("\ufeff" + "\n".join(map(line, range(30)))).encode(),
    "unquoted-commas/hand_written.csv": ("label,text\n" + "".join(f"ham,{line(i)}, ok\n" for i in range(30))).encode(),
    "unquoted-commas/qa.csv": ("instruction,output\n" + "".join(f"Name {i},One, two\n" for i in range(30))).encode(),
    "unquoted-commas/stories.csv": ("text\n" + "".join(f"I ate pie {i}, and went home\n" for i in range(30))).encode(),
    "half-an-emoji/tweets.jsonl": jsonl(kinds_of_rows(text=lambda i: line(i) + (HALF if i == 7 else " 🙂"))),
    "half-an-emoji/chats.json": json.dumps([{**row, "output": "x" + HALF} if i == 7 else row for i, row in enumerate(ALPACA)]).encode(),
    "half-an-emoji/prefs.json": json.dumps([{"instruction": f"{i}", "chosen": "a" + (HALF if i == 7 else ""), "rejected": "b"} for i in range(30)]).encode(),
    "class-names/math.csv": csv_of(kinds_of_rows(label=lambda i: ("$\\alpha$", "$5 to $_9")[i % 2])).encode(),
    "class-names/price.csv": csv_of(kinds_of_rows(label=lambda i: ("$10_to_$$50", "under $10")[i % 2])).encode(),
    "history-and-system/factory.json": json.dumps([{**row, "input": "", "system": "You are a gardener.", "history": [["How many?", "5 plants."]]} for row in ALPACA]).encode(),
    "history-and-system/late_system.json": json.dumps([{"messages": LATE}] * 30).encode(),
    "history-and-system/prompt_system.json": json.dumps([{"system": "You are a pirate.", "prompt": f"hi {i}", "completion": "arr"} for i in range(30)]).encode(),
    "end-of-text-in-text/docs.txt": END.join(line(i) for i in range(40)).encode(),
    "end-of-text-in-text/faq.json": json.dumps([{"instruction": "Which token?", "output": f"It is {END} ({i})."} for i in range(30)]).encode(),
    "tools-and-reasoning/tools.json": json.dumps([{"messages": TOOLS}] * 30).encode(),
    "tools-and-reasoning/empty_content.json": json.dumps([{"messages": [TALK[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}, *TALK], "tools": [{"name": "weather"}]}] * 30).encode(),
    "tools-and-reasoning/reasoning.json": json.dumps([{"messages": [TALK[0], {**TALK[1], "reasoning_content": "greet back"}]}] * 30).encode(),
    "odd-labels/float.jsonl": jsonl(kinds_of_rows(label=lambda i: float(i % 2))),
    "odd-labels/header.tsv": ("label\ttext\n" + "".join(f"{r['label']}\t{r['text']}\n" for r in kinds_of_rows())).encode(),
    "odd-labels/numbers.jsonl": jsonl(kinds_of_rows(text=lambda i: 1000 + i)),
    "odd-labels/spaces.csv": csv_of(kinds_of_rows(label=lambda i: ("ham", " ham", "spam ", "Ham", "Ham", "spam")[i % 6])).encode(),
    "resume-with-more-text/corpus.txt": "".join(line(i) + (" then later still" if i > 40 else "") + "\n" for i in range(80)).encode(),
    "spaced-header/spaced.csv": csv_of(kinds_of_rows(), header="text, label").encode(),
}  # fmt: skip


@pytest.fixture(params=["the case", "a twin"])
def case(request, tmp_path):
    """A function from the name of a case to its file."""
    if request.param == "a twin":

        def write(name: str) -> str:
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(TWINS[name])
            return str(path)

        return write
    folder = request.getfixturevalue("shared_data").parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}")
    return lambda name: str(folder / name)


# One function for each script: what it does with a file before any model is loaded.


def pretrain(file: str, **flags):
    return open_corpus(PretrainingArguments(train_file=[file], **flags), END)


def finetune_classifier(file: str, **flags):
    return read_labelled_splits(ClassificationArguments(train_file=file, split_fractions=[0.6, 0.2, 0.2], **flags))


def finetune_instructions(file: str, **flags):
    return read_instruction_splits(InstructionArguments(train_file=file, split_fractions=[0.6, 0.2, 0.2], **flags)).records


def finetune_preferences(file: str, **flags):
    return read_pairs(PreferenceArguments(train_file=file, split_fractions=[0.6, 0.2, 0.2], **flags)).rows


@pytest.fixture
def scripts(script, tmp_path):
    def train_tokenizer(file: str, **flags):
        module = script("train_tokenizer")
        words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in flags.items()]
        return module.main(
            module.parse(["--train_file", file, "--vocab_size", "270", "--output_dir", str(tmp_path / "out"), *words])
        )

    def classify(file: str, **flags):
        module = script("classify")
        args = module.parse(["model", "--file", file])
        vars(args).update(flags)
        return list(module.read_texts(args, opening.check_files([file])))

    def evaluate_instructions(file: str, **flags):
        module = script("evaluate_instructions")
        args = module.parse(["--model", "model", "--data_file", file, "--output", "x.json"])
        vars(args).update(flags)
        return module.records_to_reply_to(args)

    return {function.__name__: function for function in (train_tokenizer, classify, evaluate_instructions)} | {
        function.__name__: function for function in (pretrain, finetune_classifier, finetune_instructions, finetune_preferences)
    }


TEXTS = ("pretrain", "train_tokenizer", "classify")
LABELLED = (*TEXTS, "finetune_classifier")
RECORDS = ("finetune_instructions", "evaluate_instructions")
COMMAS = r"{file}: lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11: \d fields but the header has \d .* in double quotes"
HALVES = r"{file} row 7: '\w+' contains a lone surrogate.*--replace_invalid"
NUMBERS = r"{file}: rows 0, 1, 2, .* is int, not text"


@pytest.mark.parametrize(
    ("name", "script_name", "message"),
    [
        *((f"unquoted-commas/{file}.csv", script, COMMAS) for file in ("hand_written",) for script in LABELLED),
        *(("unquoted-commas/stories.csv", script, COMMAS) for script in TEXTS),
        *(("unquoted-commas/qa.csv", script, COMMAS) for script in RECORDS),
        *(("half-an-emoji/tweets.jsonl", script, HALVES) for script in LABELLED),
        *(("half-an-emoji/chats.json", script, HALVES) for script in RECORDS),
        ("half-an-emoji/prefs.json", "finetune_preferences", HALVES),
        *(("odd-labels/numbers.jsonl", script, NUMBERS) for script in LABELLED),
    ],
)
def test_refused_in_one_line_with_the_places(case, scripts, name, script_name, message):
    file = case(name)
    with pytest.raises(UserError, match=message.format(file=file.replace("\\", r"\\"))) as caught:
        scripts[script_name](file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("script_name", LABELLED)
def test_lone_surrogates_are_replaced_by_a_flag(case, scripts, capsys, script_name):
    scripts[script_name](case("half-an-emoji/tweets.jsonl"), replace_invalid=True)
    assert "replaced by U+FFFD in 1 rows" in capsys.readouterr().err


def test_byte_order_marks_are_not_text(case, scripts):
    for name in ("excel.csv", "excel.tsv"):
        splits = finetune_classifier(case(f"byte-order-mark/{name}"))
        assert splits.ids == {"ham": 0, "spam": 1} and sum(map(len, splits.texts.values())) in (30, 60)
    for name, script_name in (("excel.csv", "classify"), ("notepad.txt", "classify")):
        assert not any("\ufeff" in text for text in scripts[script_name](case(f"byte-order-mark/{name}")))
    for name in ("excel.csv", "notepad.txt"):
        assert not any("\ufeff" in text for text in pretrain(case(f"byte-order-mark/{name}")).training_texts())


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("odd-labels/float.jsonl", ["0", "1"]),
        ("odd-labels/header.tsv", ["ham", "spam"]),
        ("odd-labels/spaces.csv", ["Ham", "ham", "spam"]),
        ("class-names/math.csv", ["$5 to $_9", "$\\alpha$"]),
        ("class-names/price.csv", ["$10_to_$$50", "under $10"]),
    ],
)
def test_labels_are_read_as_written(case, capsys, name, classes):
    splits = finetune_classifier(case(name))
    assert list(splits.ids) == classes
    assert "label" not in {label for part in splits.texts.values() for label in part.labels}
    if "spaces" in name:
        told = capsys.readouterr().err
        assert "labels were removed" in told and "'Ham' and 'ham' differ only in case" in told


def test_a_spaced_header_is_a_header(case, scripts):
    file = case("spaced-header/spaced.csv")
    assert all(" " not in label for label in scripts["classify"](file, text_column="label"))
    assert len(scripts["classify"](file)) in (1, 30)


@pytest.mark.parametrize("style", ["alpaca", "phi3", "chatml"])
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("factory", ["gardener", "plants", "Name thing|green"]),
        ("late_system", ["hi", "hello", "French", "bye", "au revoir"]),
        ("prompt_system", ["You are a pirate.", "hi", "arr"]),
    ],
)
def test_earlier_turns_and_system_prompts_are_used(case, style, name, parts):
    tokenizer = new_tokenizer(style)
    data = read_conversations(case(f"history-and-system/{name}.json"))
    encoded = encode_conversations(data, tokenizer, style, True, 2000)
    assert encoded.left_out == 0 and len(encoded.rows) == len(data)
    text = tokenizer.decode(encoded.rows[0]["input_ids"])
    places = [min(text.find(word) for word in part.split("|") if word in text) for part in parts]
    assert places == sorted(places)
    # Evaluation gives the model the same prompt.
    assert (
        tokenizer.decode(prompt_ids(data.records[0], tokenizer, style))
        == text[: text.rindex(tokenizer.decode(reply_of(encoded)))]
    )


def reply_of(encoded) -> list[int]:
    """The last run of labels."""
    labels = encoded.rows[0]["labels"]
    start = max(i for i, label in enumerate(labels) if label == -100) + 1
    return labels[start:]


def new_tokenizer(style: str = "chatml"):
    tokenizer = train_byte_level_bpe(["You are a gardener. " * 5], vocab_size=270)
    tokenizer.pad_token = tokenizer.eos_token
    set_prompt_style(tokenizer, style)
    return tokenizer


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
@pytest.mark.parametrize(
    ("name", "what"), [("tools", "tool_calls"), ("empty_content", "tools"), ("reasoning", "reasoning_content")]
)
def test_templates_without_tools_or_reasoning_refuse_them_by_name(case, style, name, what):
    file, tokenizer = case(f"tools-and-reasoning/{name}.json"), new_tokenizer(style)
    data = read_conversations(file)
    with pytest.raises(UserError, match=rf"rows 0, 1, 2, .* omits .*{what}.*--ignore_keys .*30 faults in total"):
        encode_conversations(data, tokenizer, style, True, 2000)
    with pytest.raises(UserError, match=what):
        prompt_ids(data.records[0], tokenizer, style)
    if name == "reasoning":
        ignored = read_conversations(file, ignore_keys=["reasoning_content"])
        assert len(encode_conversations(ignored, tokenizer, style, True, 2000).rows) == 30


@pytest.mark.parametrize("name", ["tools", "empty_content", "reasoning"])
def test_templates_with_tools_and_reasoning_write_them(case, name):
    tokenizer, data = new_tokenizer("chatml"), read_conversations(case(f"tools-and-reasoning/{name}.json"))
    encoded = encode_conversations(data, tokenizer, "chatml", True, 4000)
    assert len(encoded.rows) == len(data.records) == 30
    for row, record in zip(encoded.rows, data.records):
        text = tokenizer.decode(row["input_ids"])
        for tool in record.get("tools") or []:
            assert (
                f'"name": "{tool.get("function", tool)["name"]}"' in text[text.index("\n<tools>\n") : text.index("\n</tools>\n")]
            )
        for message in record["messages"]:
            for call in message.get("tool_calls") or []:
                assert f'"name": "{call["function"]["name"]}"' in text and "<tool_call>" in text
            assert (message.get("reasoning_content") or "") in text and (message["content"] or "") in text


def test_an_end_of_text_mark_in_a_reply_is_text(case):
    tokenizer = new_tokenizer()
    data = read_conversations(case("end-of-text-in-text/faq.json"))
    encoded = encode_conversations(data, tokenizer, "chatml", True, 2000)
    for row in encoded.rows:
        assert row["labels"].count(tokenizer.eos_token_id) == 1 and row["labels"][-1] == tokenizer.eos_token_id
        assert END in tokenizer.decode([label for label in row["labels"][:-1] if label != -100])


def test_the_end_of_text_in_a_document_is_text_unless_it_separates_documents(case, capsys):
    file, tokenizer = case("end-of-text-in-text/docs.txt"), new_tokenizer()
    marks = Path(file).read_text(encoding="utf-8").count(END)
    data = pretrain(file).blocks(tokenizer, BlockSettings(16))
    assert token_count(data.train, tokenizer.eos_token_id) == 0  # the file's one document ends in the validation text
    assert data.description["train"]["special_tokens"][END] + data.description["validation"]["special_tokens"][END] == marks
    told = capsys.readouterr().out
    assert f"{END} in the text are read as characters (--parse_special_tokens reads them as tokens)" in told
    corpus = pretrain(file, parse_special_tokens=True)
    assert sum(corpus.train["end"]) + sum(corpus.validation["end"]) == marks + 1 and corpus.train[-1]["end"]
    data = corpus.blocks(tokenizer, BlockSettings(16, parse_special_tokens=True))
    assert token_count(data.train, tokenizer.eos_token_id) == sum(corpus.train["end"])
    assert data.description["train"]["documents"] + data.description["validation"]["documents"] == marks + 1
    assert f"{END} in the text are read as tokens" in capsys.readouterr().out


def token_count(blocks, token: int) -> int:
    return int((blocks.tokens(0, blocks.num_tokens) == token).sum())


def test_pairs_with_a_chosen_and_rejected_of_any_characters(case):
    assert len(read_preferences(case("half-an-emoji/prefs.json"), reading=Reading(replace_invalid=True))) in (30, 40)


def test_the_flags_are_in_every_script(script):
    parsers = {name: script(name) for name in ("train_tokenizer", "classify", "evaluate_instructions")}
    required = {"train_tokenizer": ["--output_dir", "x"], "classify": ["model"], "evaluate_instructions": []}
    for name, module in parsers.items():
        args: argparse.Namespace = module.parse(
            [*required[name], "--encoding", "latin-1", "--delimiter", "tab", "--skip_empty", "--replace_invalid"]
        )
        assert vars(Reading.of(args)) == {"encoding": "latin-1", "delimiter": "\t", "skip_empty": True, "replace_invalid": True}
    for flags in (PretrainingArguments, ClassificationArguments, InstructionArguments, PreferenceArguments):
        assert Reading.of(flags(encoding="utf-16")).encoding == "utf-16"


def test_a_resumed_run_keeps_its_tokenizer_where_the_text_has_grown(case, tmp_path):
    """That the run is then refused, and what it says, is in tests/training/test_resume.py (a text that has grown)."""
    whole = Path(case("resume-with-more-text/corpus.txt")).read_text(encoding="utf-8")
    text, checkpoint = tmp_path / "text.txt", tmp_path / "checkpoint-2"
    args = PretrainingArguments(train_file=[str(text)], vocab_size=290, block_size=16)

    def prepare(resume: str | None = None):
        return prepare_data(args, GPTScratchConfig(n_positions=16), resume)

    text.write_text(whole[: len(whole) // 2], encoding="utf-8")
    before, tokenizer = prepare()
    tokenizer.save_pretrained(checkpoint)
    text.write_text(whole, encoding="utf-8")
    after, resumed = prepare(str(checkpoint))
    assert resumed.get_vocab() == tokenizer.get_vocab() != prepare()[1].get_vocab()
    assert fingerprint(after.train) != fingerprint(before.train)
