"""Inputs as people have them, five and more of each kind beside the cases of test_cases.py: spreadsheets, pandas, Kaggle, data sets of the Hub.

Each is read as what it is, or refused in one line that says where and what to do. Of runs that resume, checkpoints and cards, the siblings are in
training/test_resume.py, inference/test_loading.py and hub/test_cards.py.
"""

import gzip
import io
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AddedToken

from gpt_scratch.data import opening
from gpt_scratch.data.classification import read_labelled_texts
from gpt_scratch.data.instruction import read_conversations, set_prompt_style
from gpt_scratch.data.opening import Reading
from gpt_scratch.data.preference import prompt_of, read_preferences, replies_of
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.data.records import to_messages
from gpt_scratch.errors import UserError
from gpt_scratch.inference.chat_template import encode_chat
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.special_tokens import encode_text


def texts(file: str, **flags) -> list[str]:
    """What pretrain.py and train_tokenizer.py read."""
    return [piece.text for piece in read_pieces([file], reading=Reading(**flags))]


def labelled(file: str, text_column=None, label_column=None, **flags) -> list[tuple[str, str]]:
    """What finetune_classifier.py reads."""
    data = read_labelled_texts(file, text_column, label_column, reading=Reading(**flags))
    return list(zip(data.texts, data.labels))


def labelled_as_latin_1(file: str) -> list[tuple[str, str]]:
    return labelled(file, encoding="latin-1")


def talks(file: str, ignore_keys=(), **flags) -> list[list[tuple[str, str]]]:
    """What finetune_instructions.py and evaluate_instructions.py read: role and content of each message."""
    records = read_conversations(file, reading=Reading(**flags), ignore_keys=ignore_keys).records
    return [[(message["role"], message["content"]) for message in to_messages(record, "chatml")] for record in records]


def pairs(file: str, **flags) -> list[list[str]]:
    """What finetune_preferences.py reads: the contents of prompt, chosen and rejected."""
    records = read_preferences(file, reading=Reading(**flags)).records
    parts = [[prompt_of(record, "chatml"), *replies_of(record).values()] for record in records]
    return [[message["content"] for part in pair for message in part] for pair in parts]


def lines(*rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def reply(text: str, **more) -> dict:
    return {"role": "assistant", "content": text, **more}


SPAM = [("free, now", "spam"), ("see you", "ham")]
TABLE = 'text,label\n"free, now",spam\nsee you,ham\n'
ROW = {"instruction": "a", "output": "b"}
TALK = [[("user", "a"), ("assistant", "b")]]
SHAREGPT = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
TWO = [[("user", "a"), ("assistant", "b")], [("user", "c"), ("assistant", "d")]]
PAIR = [["a", "good", "bad"]]
STRINGS = {"prompt": "a", "chosen": "good", "rejected": "bad"}
MESSAGE_PAIR = {"chosen": [user("a"), reply("good")], "rejected": [user("a"), reply("bad")]}

# Of each kind: name of the file, who reads it, content, flags, and what is read or what the error says.
SIBLINGS = {
    "rows of csv": [
        ("empty_cells_of_one_column.csv", texts, 'text\n"a"\n""\n\n"b"\n', {}, ["a", "", "b"]),
        ("empty_cells_of_one_column_skipped.csv", texts, 'text\n"a"\n""\n\n"b"\n', {"skip_empty": True}, ["a", "b"]),
        ("excel_sep.csv", labelled, 'sep=;\ntext;label\nfree, now;spam\nsee you;ham\n', {}, SPAM),
        ("excel_sep_wrong.csv", labelled, 'sep=;\ntext;label\nfree; now;spam\n', {}, "line 3: 3 fields but the header has 2"),
        ("pandas_index.csv", labelled, ',text,label\n0,"free, now",spam\n1,see you,ham\n', {}, SPAM),
        ("quotes_doubled.csv", labelled, 'text,label\n"He said ""free"", now",spam\nsee you,ham\n', {}, [('He said "free", now', "spam"), SPAM[1]]),
        ("quotes_escaped.csv", labelled, 'text,label\n"He said \\"free\\", now",spam\n', {}, "line 2: not valid CSV .*quotes inside quotes must be doubled"),
        ("quotes_single.csv", labelled, "text,label\n'free, now',spam\n", {}, "line 2: 3 fields .* in double quotes"),
        ("quotes_around_lines.csv", labelled, '"text,label"\n"see you,ham"\n', {}, "each line stands in quotes as a whole"),
        ("trailing_delimiters.csv", labelled, 'text,label,\n"free, now",spam,\nsee you,ham,\n', {}, SPAM),
        ("kaggle_spam.csv", labelled, 'v1,v2,,,\nspam,"free, now",,,\nham,see you,,,\n', {"text_column": "v2", "label_column": "v1"}, SPAM),
        ("kaggle_spam_cut.csv", labelled, 'v1,v2,,,\nspam,"free, now",,,\nham,"see"," you",,\n', {"text_column": "v2", "label_column": "v1"}, "line 3: text in column 3, which has no name"),
        ("title_above.csv", labelled, "Feedback 2024,\n,\n" + TABLE, {}, r"named in line 3 \(text, label\): take off the lines above"),
        ("comment_above.csv", labelled, "# exported\n" + TABLE, {}, "named in line 2"),
        ("total_below.csv", labelled, TABLE + "Total: 2\n", {}, "line 4: 1 field but the header has 2"),
        ("no_header.csv", labelled, "free,spam\nsee you,ham\n", {}, "its columns are free, spam; pass --text_column, or name the columns in the first line"),
        ("old_mac.csv", labelled, TABLE.replace("\n", "\r"), {}, SPAM),
        ("blank_lines.csv", labelled, "\n\n" + TABLE.replace("\n", "\n\n"), {}, SPAM),
        ("json_inside.csv", labelled, json.dumps([{"text": "a", "label": "b"}]), {}, r"holds JSON, not csv: give it the suffix \.json"),
        ("web_page.csv", labelled, "<!DOCTYPE html>\n<html>404</html>", {}, "is a web page, not a table"),
        ("one_column.csv", texts, "text,\nI ate pie,\nand went home,\n", {}, ["I ate pie", "and went home"]),
        ("index_and_records.csv", talks, ",instruction,input,output\n0,a,,b\n", {}, TALK),
    ],
    "encodings": [
        ("excel_unicode_text.txt", labelled, 'text\tlabel\r\nfree, now\tspam\r\nsee you\tham\r\n'.encode("utf-16"), {}, SPAM),
        ("utf16_be.txt", texts, "\ufeffGröße\n".encode("utf-16-be"), {}, ["Größe\n"]),
        ("utf16_without_mark.txt", texts, "Größe und Maß\n".encode("utf-16-le"), {}, "looks like UTF-16 without a byte order mark: pass --encoding utf-16-le"),
        ("joined_files.txt", texts, "\ufeffone\n\ufefftwo\n".encode(), {}, ["one\ntwo\n"]),
        ("two_marks.jsonl", talks, b"\xef\xbb\xbf\xef\xbb\xbf" + lines(ROW), {}, TALK),
        ("mark_in_each_line.jsonl", talks, b"".join(b"\xef\xbb\xbf" + lines(ROW) for _ in range(2)), {}, TALK * 2),
        ("word_joiner.txt", texts, "in a\ufeffword\n".encode(), {}, ["in a\ufeffword\n"]),
        ("excel_german.csv", labelled, "Text;Label\r\nGröße, gut;Lob\r\n".encode("cp1252"), {"encoding": "cp1252"}, [("Größe, gut", "Lob")]),
        ("shift_jis.txt", texts, "日本語\n".encode("shift_jis"), {}, "byte 0 is not UTF-8 .*give its --encoding"),
        ("chinese.txt", texts, "中文\n".encode("gbk"), {"encoding": "gbk"}, ["中文\n"]),
        ("mixed.txt", texts, "Größe\n".encode() + "Größe\n".encode("latin-1"), {}, r"byte 10 is not UTF-8 \(.*line 2\)"),
        ("java_emoji.txt", texts, b"half \xed\xa0\xbd emoji\n", {}, "byte 5 begins half of a surrogate pair"),
    ],
    "files that are no text": [
        ("sheet.csv", labelled, b"PK\x03\x04" + bytes(99), {}, "no text but a zip archive, as of Excel"),
        ("sheet_as_latin.csv", labelled, b"PK\x03\x04" + bytes(99), {"encoding": "latin-1"}, "no text but a zip archive"),
        ("letter.txt", texts, b"\xd0\xcf\x11\xe0" + bytes(99), {}, "a document of an old Office"),
        ("paper.txt", texts, b"%PDF-1.7\n", {}, "no text but a PDF: export its text"),
        ("packed.txt", texts, gzip.compress(b"text"), {}, "compressed by gzip: add .gz to its name"),
        ("table.csv", texts, parquet({"text": "a"}), {}, "a parquet file: give it the suffix .parquet"),
        ("pointer.txt", texts, "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", {}, "a pointer of Git LFS"),
        ("pointer.parquet", texts, "version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", {}, "a pointer of Git LFS"),
        ("sheet.xlsx", labelled, b"PK\x03\x04", {}, "unknown format '.xlsx'; export the sheet as csv"),
        ("letter.docx", texts, b"PK\x03\x04", {}, "unknown format '.docx'; export it as plain text"),
        ("archive.tar.gz", texts, b"\x1f\x8b", {}, "unknown format '.tar'; unpack it"),
    ],
    "keys of records": [
        ("dolly.jsonl", talks, lines({"instruction": "a", "context": "c", "response": "b", "category": "closed_qa"}), {}, [[("user", "a\n\nc"), ("assistant", "b")]]),
        ("dolly_without_context.jsonl", talks, lines({"instruction": "a", "context": "", "response": "b"}), {}, TALK),
        ("openorca.jsonl", talks, lines({"id": "1", "system_prompt": "s", "question": "a", "response": "b"}), {}, [[("system", "s"), *TALK[0]]]),
        ("gsm8k.jsonl", talks, lines({"question": "a", "answer": "b"}), {}, TALK),
        ("flan.jsonl", talks, lines({"inputs": "a", "targets": "b", "task": "x"}), {}, TALK),
        ("alpaca_with_text.json", talks, json.dumps([{**ROW, "input": "", "text": "### Instruction:\na\n### Response:\nb"}]), {}, TALK),
        ("alpaca_other_text.json", talks, json.dumps([{**ROW, "text": "something else"}]), {}, "row 0: unknown key 'text'"),
        ("two_replies.jsonl", talks, lines({**ROW, "response": "c"}), {}, "row 0: unknown key 'response'"),
        ("openhermes.json", talks, json.dumps([{"conversations": SHAREGPT, "system_prompt": None, "skip_prompt_formatting": False, "views": None}]), {}, TALK),
        ("guanaco.jsonl", talks, lines({"text": "### Human: a### Assistant: b"}), {}, "row 0: the keys are text: expected instruction and output"),
        ("oasst_flat.jsonl", talks, lines({"message_id": "1", "parent_id": None, "text": "a", "role": "prompter"}), {}, "row 0: the keys are text, role"),
        ("empty_extras.jsonl", talks, lines({**ROW, "notes": "", "attachments": []}), {}, TALK),
        ("squad.jsonl", talks, lines({"context": "c", "question": "a", "answers": {"text": ["b"]}}), {}, "row 0: unknown key 'answers'"),
        ("images.json", talks, json.dumps([{"messages": [user("a"), reply("b")], "images": ["a.jpg"]}]), {}, "unknown key 'images'"),
    ],
    "conversations": [
        ("completion_of_a_user.jsonl", talks, lines({"prompt": [user("a")], "completion": [user("b")]}), {}, "row 0: completion contains no reply"),
        ("reasoning_twice.jsonl", talks, lines({"messages": [user("a"), reply("b", reasoning_content="x", thinking="y")]}), {}, "message 1 has different texts in 'reasoning_content' and 'thinking'"),
        ("openai.jsonl", talks, lines({"messages": [user("a"), reply("b")], "parallel_tool_calls": False}), {}, TALK),
        ("openai_functions.jsonl", talks, lines({"messages": [user("a"), reply(None, function_call={"name": "f", "arguments": "{}"}), {"role": "function", "name": "f", "content": "1"}, reply("b")], "functions": [{"name": "f"}]}), {}, [[("user", "a"), ("assistant", ""), ("tool", "1"), ("assistant", "b")]]),
        ("openai_answers.jsonl", talks, lines({"messages": [user("a"), reply("b", refusal=None, annotations=[])]}), {}, TALK),
        ("openai_batch.jsonl", talks, lines({"custom_id": "1", "method": "POST", "body": {"messages": [user("a")]}}), {}, "row 0: the keys are method, body"),
        ("anthropic.jsonl", talks, lines({"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, reply("b")]}), {}, [[("system", "s"), *TALK[0]]]),
        ("anthropic_cached.jsonl", talks, lines({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "x"}}]}, reply("b")]}), {}, "message 0 has a part with 'cache_control'"),
        ("ultrachat.jsonl", talks, lines({"prompt": "a", "prompt_id": "1", "messages": [user("a"), reply("b")]}), {}, TALK),
        ("ultrachat_other.jsonl", talks, lines({"prompt": "z", "messages": [user("a"), reply("b")]}), {}, "unknown key 'prompt'"),
        ("sharegpt_singular.json", talks, json.dumps([{"conversation": SHAREGPT}]), {}, TALK),
        ("langchain.jsonl", talks, lines({"messages": [{"role": "human", "content": "a"}, {"role": "ai", "content": "b"}]}), {}, TALK),
        ("other_keys.jsonl", talks, lines({"messages": [{"speaker": "a", "text": "b"}]}), {}, "message 0 needs the strings role and content; its keys are speaker, text"),
        ("hub.parquet", talks, parquet({"messages": [user("a"), reply("b")], "source": "x"}), {}, TALK),
        ("pandas.csv", talks, 'messages\n"[{\'role\': \'user\', \'content\': \'a\'}]"\n', {}, "row 0: 'messages' is a string that is not valid JSON .*write it by json.dumps"),
    ],
    "preference pairs": [
        ("history_of_messages.jsonl", pairs, lines({**STRINGS, "history": [user("z")]}), {}, r"row 0: 'history' must be a list of \[question, answer\]"),
        ("history_of_one.jsonl", pairs, lines({**STRINGS, "history": [["z"]]}), {}, "row 0: 'history' must be a list of"),
        ("history_without_answer.jsonl", pairs, lines({**STRINGS, "history": [["z", None]]}), {}, "row 0: 'history' must be a list of"),
        ("history.jsonl", pairs, lines({**STRINGS, "history": [["y", "z"]]}), {}, [["y", "z", *PAIR[0]]]),
        ("system_of_numbers.jsonl", pairs, lines({**STRINGS, "system": 5}), {}, "row 0: 'system' is int, not text"),
        ("input_of_numbers.jsonl", pairs, lines({"instruction": "a", "input": 5, "chosen": "good", "rejected": "bad"}), {}, "row 0: 'input' is int, not text"),
        ("weight_of_a_reply.jsonl", pairs, lines({"prompt": "a", "chosen": [reply("good", weight=0)], "rejected": [reply("bad")]}), {}, "row 0: .* has the weight 0, but pairs are trained as a whole"),
        ("ultrafeedback_binarized.jsonl", pairs, lines({"prompt": "a", "prompt_id": "1", **MESSAGE_PAIR, "messages": MESSAGE_PAIR["chosen"], "score_chosen": 9.0}), {}, PAIR),
        ("argilla.jsonl", pairs, lines({"source": "x", "prompt": "a", **MESSAGE_PAIR, "chosen-rating": 5.0, "chosen-model": "m", "rejected-rating": 1.0}), {}, PAIR),
        ("intel_orca.jsonl", pairs, lines({"system": "s", "question": "a", "chosen": "good", "rejected": "bad"}), {}, [["s", *PAIR[0]]]),
        ("openai_pairs.jsonl", pairs, lines({"input": {"messages": [user("a")], "tools": [], "parallel_tool_calls": True}, "preferred_output": [reply("good")], "non_preferred_output": [reply("bad")]}), {}, PAIR),
        ("llama_factory.json", pairs, json.dumps([{"conversations": SHAREGPT[:1], "chosen": {"from": "gpt", "value": "good"}, "rejected": {"from": "gpt", "value": "bad"}}]), {}, PAIR),
        ("ultrafeedback.jsonl", pairs, lines({"instruction": "a", "completions": [{"response": "x"}], "models": ["m"]}), {}, "row 0: unknown keys 'completions', 'models'"),
        ("hh_rlhf.jsonl", pairs, lines({"chosen": "\n\nHuman: a\n\nAssistant: good", "rejected": "\n\nHuman: a\n\nAssistant: bad"}), {}, "row 0: 'prompt' is missing"),
        ("kto.jsonl", pairs, lines({"prompt": "a", "completion": "b", "label": True}), {}, "unknown keys 'completion', 'label'"),
        ("margins.jsonl", pairs, lines({"prompt": "a", "chosen": "good", "rejected": "bad", "margin": 2.0}), {}, "unknown key 'margin'"),
        ("two_prompts.jsonl", pairs, lines({"prompt": "a", "instruction": "z", "chosen": "good", "rejected": "bad"}), {}, "unknown key 'prompt'"),
        ("input_of_a_prompt.jsonl", pairs, lines({"prompt": "a", "input": "z", "chosen": "good", "rejected": "bad"}), {}, "unknown key 'input'"),
    ],
    "surrogates and control characters": [
        ("half_in_a_key.json", talks, b'[{"instruction":"a","output":"b","no\\ud83dte":"x"}]', {}, "row 0: 'a key' contains a lone surrogate"),
        ("half_in_a_message.jsonl", talks, b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"\\udc00"}]}', {}, "row 0: 'messages' contains a lone surrogate"),
        ("half_in_json_in_csv.csv", talks, 'messages\n"[{""role"": ""user"", ""content"": ""a\\ud83d""}, {""role"": ""assistant"", ""content"": ""b""}]"\n', {}, "row 0: 'messages' contains a lone surrogate"),
        ("half_in_json_in_csv_replaced.csv", talks, 'messages\n"[{""role"": ""user"", ""content"": ""a\\ud83d""}, {""role"": ""assistant"", ""content"": ""b""}]"\n', {"replace_invalid": True}, [[("user", "a\ufffd"), ("assistant", "b")]]),
        ("half_in_a_call.jsonl", talks, lines({"messages": [user("a"), reply("", tool_calls=[{"name": "f", "arguments": '{"x": "\\ud83d"}'}])]}), {}, "row 0: 'messages' contains a lone surrogate"),
        ("half_in_a_label.jsonl", labelled, b'{"text":"a","label":"\\ud83d"}', {}, "row 0: 'label' contains a lone surrogate"),
        ("tab_in_a_string.jsonl", talks, b'{"instruction":"a\tz","output":"b"}', {}, [[("user", "a\tz"), ("assistant", "b")]]),
        ("newline_in_a_string.json", talks, b'[{"instruction":"a\nz","output":"b"}]', {}, [[("user", "a\nz"), ("assistant", "b")]]),
        ("newline_in_a_string.jsonl", talks, b'{"instruction":"a\nz","output":"b"}\n', {}, "line 1: not valid JSON: Unterminated string"),
        ("line_separator.jsonl", talks, '{"instruction":"a\u2028z","output":"b\u0085"}\n'.encode(), {}, [[("user", "a\u2028z"), ("assistant", "b\u0085")]]),
        ("form_feed.csv", labelled, "text,label\na\x0cz\x1f,x\n", {}, [("a\x0cz\x1f", "x")]),
        ("nul.txt", texts, b"a\0b\n", {}, ["a\0b\n"]),
        ("terminal_colours.csv", labelled, "text,label\n\x1b[31mred,x\n", {}, [("\x1b[31mred", "x")]),
        ("colours_in_labels.csv", labelled, "text,label\nred,\x1b[31mx\n", {}, "row 0: the label holds control characters"),
    ],
    "labels": [
        ("booleans.jsonl", labelled, lines({"text": "a", "label": True}, {"text": "b", "label": False}), {}, [("a", "True"), ("b", "False")]),
        ("half_stars.jsonl", labelled, lines({"text": "a", "label": 1.0}, {"text": "b", "label": 2.5}), {}, [("a", "1"), ("b", "2.5")]),
        ("no_break_space.csv", labelled, "text,label\na,\u00a0x\nb,\u200bx\n", {}, [("a", "x"), ("b", "x")]),
        ("several_labels.jsonl", labelled, lines({"text": "a", "label": ["x", "y"]}), {}, "row 0: the label is list, not a name or number"),
        ("sst2.tsv", labelled, "sentence\tlabel\nfine \t1\nbad \t0\n", {}, "no column 'text': its columns are sentence, label; pass --text_column"),
        ("sst2_told.tsv", labelled, "sentence\tlabel\nfine\t1\nbad\t0\n", {"text_column": "sentence"}, [("fine", "1"), ("bad", "0")]),
        ("kaggle_imdb.csv", labelled, 'review,sentiment\n"good, really",positive\n', {"text_column": "review", "label_column": "sentiment"}, [("good, really", "positive")]),
        ("fasttext.txt", labelled, "__label__spam free\n", {}, "line 1: no tab: each line must be label<TAB>text"),
        ("sms.txt", labelled, 'spam\tfree, "now\nham\tsee you\n', {}, [("free, \"now", "spam"), ("see you", "ham")]),
        ("unlabelled.jsonl", labelled, lines({"text": "a", "label": None}), {}, "row 0: empty label: fill it, or pass --skip_empty"),
    ],
    "names and shapes of JSON": [
        ("trailing_commas.jsonl", talks, b'{"instruction":"a","output":"b"},\n{"instruction":"c","output":"d"},\n', {}, TWO),
        ("trailing_comma.json", talks, b'[{"instruction":"a","output":"b"},]', {}, "is not valid JSON: .*; take off the last comma"),
        ("python.json", talks, b"[{'instruction': 'a', 'output': 'b'}]", {}, "single quotes: write it by json.dumps"),
        ("jq.jsonl", talks, "\n".join(json.dumps(row, indent=2) for row in (ROW, {"instruction": "c", "output": "d"})), {}, TWO),
        ("end_to_end.json", talks, b'{"instruction":"a","output":"b"}{"instruction":"c","output":"d"}', {}, TWO),
        ("pandas.json", talks, json.dumps({"instruction": {"0": "a", "1": "c"}, "output": {"0": "b", "1": "d"}}), {}, TWO),
        ("pandas_index.json", talks, json.dumps({"0": ROW, "1": {"instruction": "c", "output": "d"}}), {}, TWO),
        ("pandas_split.json", talks, json.dumps({"columns": ["instruction", "output"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]}), {}, TWO),
        ("columns.json", talks, json.dumps({"instruction": ["a", "c"], "output": ["b", "d"]}), {}, TWO),
        ("list_and_number.json", talks, json.dumps({"other": [1], "output": 5}), {}, "row 0: the keys are other, output: expected"),
        ("one_record.json", talks, json.dumps({"messages": [user("a"), reply("b")]}, indent=1), {}, TALK),
        ("squad_like.json", talks, json.dumps({"version": 1, "data": [ROW]}), {}, TALK),
        ("splits.json", talks, json.dumps({"train": [ROW], "test": [ROW]}), {}, "lists of rows under 'train', 'test'"),
        ("other_name.ndjson", talks, lines(ROW), {}, TALK),
        ("other_name.jl", talks, lines(ROW), {}, "unknown format '.jl'; rename it to .jsonl"),
        ("cut.jsonl", talks, lines(ROW) + b'{"instruction":"c","outp', {}, "line 2: not valid JSON"),
        ("c4.json.gz", texts, gzip.compress(lines({"text": "a", "url": "u"})), {}, ["a"]),
        ("strings.json", texts, b'["a", "b"]', {}, "rows 0, 1: it is str, not an object"),
        ("web_page.json", talks, "<html>404</html>", {}, "is a web page, not JSON"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "read", "content", "flags", "expected"),
    [pytest.param(*sibling, id=f"{kind}-{sibling[0]}") for kind, siblings in SIBLINGS.items() for sibling in siblings],
)
def test_read_as_what_it_is_or_refused_with_place_and_remedy(tmp_path, monkeypatch, name, read, content, flags, expected):
    monkeypatch.setattr(opening, "_printed", set())
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    if isinstance(expected, list):
        assert read(str(path), **flags) == expected
        return
    with pytest.raises(UserError, match=expected) as caught:
        read(str(path), **flags)
    assert name in str(caught.value) and "\n" not in str(caught.value)


SAID = {
    "quotation marks of Windows": ("a.csv", labelled_as_latin_1, "text,label\na \x84b\x93,x\n", "2 characters are control characters in latin-1; .*pass --encoding cp1252"),
    "a header that is none": ("a.tsv", labelled, "class\tmessage\n" + "ham\ta\nspam\tb\n" * 3, "no other has its label 'class': if it is a header, .*--label_column"),
    "an unknown mark": ("a.txt", texts, "one\n\ufefftwo\n", "byte order marks at the start of 1 line were left out"),
    "renamed keys": ("a.jsonl", talks, lines({"question": "a", "answer": "b"}).decode(), "'question' is read as 'instruction', 'answer' is read as 'output'"),
    "commas": ("a.jsonl", talks, '{"instruction":"a","output":"b"},\n', "commas at the ends of 1 lines were left out"),
    "accents": ("a.csv", labelled, "text,label\na,Größe\nb,Gro\u0308ße\n", "differ only in how they are written and are 2 classes"),
    "zeros before a number": ("a.csv", labelled, "text,label\na,01\nb,1\n", "the labels '01' and '1' differ only in how they are written"),
    "quotes": ("a.csv", labelled, "text,label\na,'x'\nb,x\n", "differ only in how they are written"),
    "what pandas writes for nothing": ("a.csv", labelled, "text,label\na,nan\nb,x\n", "the label 'nan' is a class; if it stands for a missing one"),
    "a column without a name": ("a.csv", labelled, ",text,label\n0,a,x\n", r"unused columns: \(without a name\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", SAID)
def test_what_was_recognized_is_said(tmp_path, monkeypatch, capsys, what):
    name, read, content, said = SAID[what]
    monkeypatch.setattr(opening, "_printed", set())
    (tmp_path / name).write_text(content, encoding="latin-1" if "latin" in read.__name__ else "utf-8")
    read(str(tmp_path / name))
    assert re.search(said, capsys.readouterr().err)


def test_a_rare_class_in_the_first_row_is_no_header(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(opening, "_printed", set())
    (tmp_path / "a.tsv").write_text("label\ttext\nrare\ta\n" + "ham\tb\n" * 5, encoding="utf-8")
    labelled(str(tmp_path / "a.tsv"))
    (tmp_path / "b.tsv").write_text("x\ta\ny\tb\n", encoding="utf-8")
    labelled(str(tmp_path / "b.tsv"))
    assert "no other has its label" not in capsys.readouterr().err


# Marks of other models' chats, which a tokenizer from the Hub may have as special tokens.
MARKS = {
    "Llama 3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "Mistral": ["[INST]", "[/INST]", "</s>"],
    "Gemma": ["<start_of_turn>", "<end_of_turn>", "<bos>"],
    "Phi": ["<|user|>", "<|assistant|>", "<|end|>"],
    "GPT-OSS": ["<|start|>", "<|message|>", "<|return|>"],
}


@pytest.mark.parametrize("model", MARKS)
def test_marks_of_other_models_in_a_message_are_characters(model):
    tokenizer = train_byte_level_bpe(["It is a mark. " * 5], vocab_size=270)
    tokenizer.add_tokens([AddedToken(mark, special=True) for mark in MARKS[model]])
    set_prompt_style(tokenizer, "chatml")
    marks = set(tokenizer.convert_tokens_to_ids(MARKS[model]))
    content = "a".join(MARKS[model]) + "<|endoftext|>"
    encoded = encode_chat(tokenizer, [user(content), reply(content)])
    assert tokenizer.decode(encoded.ids).count(content) == 2 and not marks & set(encoded.ids)
    assert not {*marks, tokenizer.eos_token_id} & set(encode_text(tokenizer, content)["input_ids"])


def test_each_kind_has_five_siblings():
    assert all(len(siblings) >= 5 for siblings in SIBLINGS.values()) and len(MARKS) >= 5
