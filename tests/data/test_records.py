"""Records in the forms in which people have them: every key that carries content is used, or refused by its name."""

import json

import pytest

from gpt_scratch.data import opening
from gpt_scratch.data.instruction import (
    CHAT_TEMPLATES,
    encode_conversations,
    encode_record,
    prompt_ids,
    read_conversations,
    set_prompt_style,
    to_messages,
)
from gpt_scratch.data.opening import Reading
from gpt_scratch.data.preference import preference_rows, prompt_of, read_preferences, replies_of
from gpt_scratch.errors import UserError
from gpt_scratch.inference.tool_calls import parse_reply
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
# As models with tools have it: reasoning, calls and tools are written, and generation is marked.
TOOLS_TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>\n{% endif %}"
    "{% for message in messages %}<{{ message['role'] }}>"
    "{% if message['role'] == 'assistant' %}{% generation %}"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] }}{% for call in message['tool_calls'] or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}"
    "{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(autouse=True)
def say_again(monkeypatch):
    monkeypatch.setattr(opening, "_printed", set())


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_byte_level_bpe(["Hi Hello"], vocab_size=258)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read(path, *rows, **settings):
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_conversations(str(path), **settings)


def messages_of(path, row) -> list[dict]:
    return to_messages(read(path, row).records[0], "phi3")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "Hi", "output": "Hello", "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "system": "", "history": [], "input": None}, [USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi", "Hello"]], "system": "Be brief."}, [SYSTEM, USER, REPLY, USER, REPLY]),
        ({"instruction": "Hi", "output": "Hello", "history": '[["Hi", "Hello"]]'}, [USER, REPLY, USER, REPLY]),
        ({"Instruction": "Hi", " Output ": "Hello"}, [USER, REPLY]),
        ({"prompt": "Hi", "completion": "Hello", "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"prompt": [SYSTEM, USER], "completion": [REPLY]}, [SYSTEM, USER, REPLY]),
        ({"messages": [USER, REPLY], "system": "Be brief."}, [SYSTEM, USER, REPLY]),
        ({"messages": [USER, REPLY, SYSTEM, USER, REPLY]}, [USER, REPLY, SYSTEM, USER, REPLY]),
        ({"messages": json.dumps([USER, REPLY])}, [USER, REPLY]),
        ({"messages": [{**USER, "name": None, "tool_calls": None}, {**REPLY, "tool_calls": []}], "tools": None}, [USER, REPLY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}, REPLY]}, [USER, REPLY]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}, REPLY]}, [USER, REPLY]),
        ({"messages": [{"role": "developer", "content": "Be brief."}, USER, REPLY]}, [SYSTEM, USER, REPLY]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, [USER, REPLY]),
        ({"conversations": [{"from": "system", "value": "Be brief."}, {"from": "user", "value": "Hi"}, {"from": "assistant", "value": "Hello"}]}, [SYSTEM, USER, REPLY]),
        ({"conversations": [USER, REPLY], "system": "Be brief.", "id": 7}, [SYSTEM, USER, REPLY]),
        ({"conversations": json.dumps([{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}])}, [USER, REPLY]),
        ({"conversations": [{"from": "human", "value": "Hi", "weight": None}, {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'}, {"from": "observation", "value": "sunny"}, {"from": "gpt", "value": "Hello"}]},
         [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}, REPLY]),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}]}, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, REPLY]},
         [USER, {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": "1"}]}, {"role": "tool", "content": "sunny", "tool_call_id": "1"}, REPLY]),
        ({"messages": [USER, {**REPLY, "reasoning": "well"}]}, [USER, {**REPLY, "reasoning_content": "well"}]),
        ({"messages": [USER, {**REPLY, "weight": 0}, USER, {**REPLY, "weight": 1}]}, [USER, {**REPLY, "weight": 0}, USER, REPLY]),
    ],
)  # fmt: skip
def test_every_form_becomes_messages(tmp_path, row, expected):
    assert messages_of(tmp_path, row) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "Hi", "output": "Hello", "context": "x"}, "unknown key 'context', which would be lost: rename, or pass --ignore_keys context"),
        ({"instruction": "Hi", "output": "Hello", "a": 1, "b": 2}, "unknown keys 'a', 'b'.*--ignore_keys a b"),
        ({"instruction": "Hi", "output": "Hello", "chosen": "x", "rejected": "y"}, "keys 'chosen', 'rejected'"),
        ({"instruction": "Hi", "output": "Hello", "weight": 0.5}, "'weight' is 0.5"),
        ({"instruction": "Hi", "output": "Hello", "history": "Hi"}, "'history' is a string that is not valid JSON"),
        ({"instruction": "Hi", "output": "Hello", "history": [["Hi"]]}, r"'history' must be a list of \[question, answer\]"),
        ({"instruction": "Hi", "output": "Hello", "system": 3}, "'system' is int"),
        ({"messages": [SYSTEM, USER, REPLY], "system": "Be long."}, "the record has both 'system' and a first message"),
        ({"messages": [USER, REPLY], "conversations": [USER, REPLY]}, "both 'messages' and 'conversations'"),
        ({"messages": [USER, {**REPLY, "mood": "glad"}]}, "messages: message 1: unknown key 'mood'"),
        ({"messages": [USER, {**REPLY, "function_call": {"name": "x"}}]}, "message 1: unknown key 'function_call'"),
        ({"messages": [USER, {**REPLY, "weight": 0.5}]}, "message 1 has the weight 0.5"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, REPLY]}, "message 0 has a part of type 'image_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": "x"}]}, REPLY]}, "message 0 has a part"),
        ({"messages": [{"role": "user", "content": None}, REPLY]}, "message 0 needs the strings role and content"),
        ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": 3}]}]}, "a tool call needs a function with a name"),
        ({"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "the arguments of 'f' are not valid JSON"),
        ({"messages": "Hi"}, "'messages' is a string that is not valid JSON"),
        ({"messages": []}, "must be a non-empty list of messages"),
        ({"messages": [USER, REPLY], "tools": [3]}, "'tools' must be a list of objects"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "martian", "value": "x"}]}, "the role 'martian'"),
        ({"input_ids": [1, 2], "labels": [1, 2], "attention_mask": [1, 0]}, "'attention_mask' masks tokens"),
        ({"input_ids": [1, 2], "labels": [1, 2], "position_ids": [0, 0]}, "key 'position_ids'"),
        ({"prompt": "Hi", "completion": "Hello", "messages": [USER, REPLY]}, "unknown keys 'prompt', 'completion'"),
    ],
)  # fmt: skip
def test_content_without_a_place_is_refused_by_name(tmp_path, row, message):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, row)
    assert "rows.jsonl row 0: " in str(caught.value) and "\n" not in str(caught.value)


def test_all_faults_of_a_file_in_one_report(tmp_path):
    rows = [
        {"instruction": "a", "output": "b"},
        {"instruction": 3, "output": "b"},
        {"question": "a"},
        {"instruction": "a", "output": None},
    ]
    with pytest.raises(UserError) as caught:
        read(tmp_path, *rows)
    told = str(caught.value)
    assert (
        "row 1: 'instruction' is int, not text" in told
        and "row 2: the keys are question" in told
        and "row 3: 'output' is missing" in told
    )


def test_what_only_describes_a_record_is_kept_said_and_not_trained_on(tmp_path, capsys):
    row = {"id": 3, "category": "greeting", "instruction": "Hi", "output": "Hello", "text": "### Hi\n### Hello", "note": "x"}
    data = read(tmp_path, row, ignore_keys=["note"])
    assert data.records == [
        {"id": 3, "category": "greeting", "instruction": "Hi", "output": "Hello", "text": "### Hi\n### Hello"}
    ]
    assert "unused keys: 'id', 'category', 'text', 'note'" in capsys.readouterr().err
    kept = read(tmp_path, {"instruction": "Hi", "output": "Hello", "answer": "x"}, kept_keys=["answer"])
    assert kept.records[0]["answer"] == "x"


def test_empty_rows_of_a_spreadsheet_are_left_out_on_demand(tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output\nHi;Hello\n;\n\n;\n", encoding="utf-8")
    assert len(read_conversations(str(path), reading=Reading(skip_empty=True))) == 1
    assert "2 empty rows were skipped" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["alpaca", "phi3", "chatml"])
def test_earlier_turns_and_system_messages_are_in_the_text(tokenizer, style):
    set_prompt_style(tokenizer, style)
    record = {"system": "SYS", "history": [["Q1", "A1"]], "messages": None, "instruction": "Q2", "input": "IN", "output": "A2"}
    record = {key: value for key, value in record.items() if value is not None}
    ids, labels = encode_record(record, tokenizer, style, mask_prompt=True)
    text = tokenizer.decode(ids)
    places = [text.index(part) for part in ("SYS", "Q1", "A1", "Q2", "IN", "A2")]
    assert places == sorted(places)
    assert tokenizer.decode([label for label in labels if label != -100]) == "A1<|endoftext|>A2<|endoftext|>"
    late = {"messages": [USER, REPLY, {"role": "system", "content": "LATE"}, USER, REPLY]}
    assert "LATE" in tokenizer.decode(encode_record(late, tokenizer, style, mask_prompt=True)[0])


WITH_TOOLS = {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"}, REPLY],
              "tools": [{"type": "function", "function": {"name": "weather"}}]}  # fmt: skip


def test_tools_and_reasoning_are_written_by_a_template_that_can(tokenizer, tmp_path):
    tokenizer.chat_template = TOOLS_TEMPLATE
    row = {**WITH_TOOLS, "messages": [*WITH_TOOLS["messages"][:-1], {**REPLY, "reasoning_content": "SO SUNNY"}]}
    data = read(tmp_path, row)
    ids, labels = encode_record(data.records[0], tokenizer, "tokenizer", mask_prompt=True)
    text, learned = tokenizer.decode(ids), tokenizer.decode([label for label in labels if label != -100])
    assert '<tools>[{"type": "function"' in text and '"city": "Rome"' in learned and "<think>SO SUNNY</think>Hello" in learned
    assert "<tool>sunny" in text and encode_conversations(data, tokenizer, "tokenizer", True, 1000).left_out == 0


@pytest.mark.parametrize("style", ["alpaca", "phi3"])
def test_tools_and_reasoning_are_refused_by_templates_without_them(tokenizer, tmp_path, style):
    set_prompt_style(tokenizer, style)
    data = read(tmp_path, WITH_TOOLS, {"messages": [USER, {**REPLY, "reasoning_content": "why"}]}, {"messages": [USER, REPLY]})
    with pytest.raises(UserError) as caught:
        encode_conversations(data, tokenizer, style, True, 1000)
    told = str(caught.value)
    assert f"row 0: the chat template of --prompt_style {style} omits tool_calls of message 1" in told and "tools" in told
    assert "row 1: the chat template" in told and "reasoning_content of message 1" in told and "--skip_unusable" in told
    assert encode_conversations(data, tokenizer, style, True, 1000, skip_unusable=True).left_out == 2
    ignored = read(tmp_path, {"messages": [USER, {**REPLY, "reasoning_content": "why"}]}, ignore_keys=["reasoning_content"])
    assert len(encode_conversations(ignored, tokenizer, style, True, 1000).rows) == 1
    with pytest.raises(UserError, match="omits tool_calls"):
        prompt_ids(data.records[0], tokenizer, style)


SAID = [
    {**REPLY, "content": "It is warm."},
    {**REPLY, "content": "", "tool_calls": [CALL]},
    {**REPLY, "content": "I look.", "tool_calls": [CALL, CALL]},
    {**REPLY, "content": "", "reasoning_content": "why\nnot", "tool_calls": [CALL]},
    {**REPLY, "content": 'Äh: "quoted" {braces}', "reasoning_content": "why"},
]


@pytest.mark.parametrize("reply", SAID)
def test_chatml_writes_what_is_read_back(tokenizer, tmp_path, reply):
    """Reasoning, text and calls, through template and tokens and back."""
    set_prompt_style(tokenizer, "chatml")
    record = read(tmp_path, {"tools": WITH_TOOLS["tools"], "messages": [USER, reply]}).records[0]
    _, labels = encode_record(record, tokenizer, "chatml", mask_prompt=True)
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.endswith("<|endoftext|>")
    found = parse_reply(learned.removesuffix("<|endoftext|>"))
    assert found == {key: value for key, value in record["messages"][-1].items() if key != "id"} | (
        {"tool_calls": [{k: v for k, v in call.items() if k != "id"} for call in record["messages"][-1]["tool_calls"]]}
        if reply.get("tool_calls")
        else {}
    )


def test_chatml_with_tools_is_qwens_layout(tokenizer, tmp_path):
    set_prompt_style(tokenizer, "chatml")
    record = {**WITH_TOOLS, "messages": [SYSTEM, *WITH_TOOLS["messages"][:3], {"role": "tool", "content": "17 degrees"}, REPLY]}
    ids, labels = encode_record(read(tmp_path, record).records[0], tokenizer, "chatml", mask_prompt=True)
    function = '{"type": "function", "function": {"name": "weather"}}'
    end = "<|endoftext|>"
    assert tokenizer.decode(ids) == (
        f"<|im_start|>system\n{SYSTEM['content']}\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
        f"provided with function signatures within <tools></tools> XML tags:\n<tools>\n{function}\n</tools>\n\nFor each function call, return "
        "a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        f'{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>{end}\n'
        f"<|im_start|>user\n{USER['content']}{end}\n"
        f'<|im_start|>assistant\n<tool_call>\n{{"name": "weather", "arguments": {{"city": "Rome"}}}}\n</tool_call>{end}\n'
        f"<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\n17 degrees\n</tool_response>{end}\n"
        f"<|im_start|>assistant\n{REPLY['content']}{end}"
    )
    learned = tokenizer.decode([label for label in labels if label != -100])
    assert learned.startswith("<tool_call>") and "sunny" not in learned and learned.endswith(f"{REPLY['content']}{end}")


def test_all_replies_are_learned_or_the_last_alone(tokenizer, tmp_path):
    set_prompt_style(tokenizer, "chatml")
    talk = [USER, {"role": "assistant", "content": "first"}, USER, {"role": "assistant", "content": "second"}]
    record = read(tmp_path, {"messages": talk}).records[0]
    for learn, expected in (("all", "first<|endoftext|>second<|endoftext|>"), ("last", "second<|endoftext|>")):
        ids, labels = encode_record(record, tokenizer, "chatml", True, learn)
        assert tokenizer.decode([label for label in labels if label != -100]) == expected
        assert "first" in tokenizer.decode(ids)
    _, labels = encode_record(record, tokenizer, "chatml", False, "last")
    text = tokenizer.decode([label for label in labels if label != -100])
    assert "first" not in text and text.count(USER["content"]) == 2


def test_a_template_that_drops_a_message_is_refused(tokenizer, tmp_path):
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% elif m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    data = read(tmp_path, {"messages": [SYSTEM, USER, REPLY]})
    with pytest.raises(UserError, match=r"row 0: .* omits message 0 \(system\)"):
        encode_conversations(data, tokenizer, "tokenizer", True, 100)


def test_an_empty_reply_is_never_learned_wherever_it_stands(tokenizer, tmp_path):
    set_prompt_style(tokenizer, "chatml")
    empty = {"role": "assistant", "content": " \n"}
    data = read(
        tmp_path,
        {"messages": [USER, empty, USER, REPLY]},
        {"messages": [USER, REPLY]},
        {"instruction": "a", "output": "", "history": [["Hi", ""]]},
    )
    with pytest.raises(UserError, match=r"row 0: the reply is empty \(message 1\).*row 2: the reply is empty \(message 1, 3\)"):
        encode_conversations(data, tokenizer, "chatml", True, 100)
    assert encode_conversations(data, tokenizer, "chatml", True, 100, skip_unusable=True).left_out == 2


def test_replies_of_weight_0_are_read_and_not_learned(tokenizer, tmp_path):
    set_prompt_style(tokenizer, "chatml")
    talk = [USER, {"role": "assistant", "content": "bad", "weight": 0}, USER, {"role": "assistant", "content": "good"}]
    record = read(tmp_path, {"messages": talk}).records[0]
    for mask_prompt, learned in ((True, "good<|endoftext|>"), (False, None)):
        ids, labels = encode_record(record, tokenizer, "chatml", mask_prompt)
        text = tokenizer.decode([label for label in labels if label != -100])
        assert (
            "bad" in tokenizer.decode(ids)
            and "bad" not in text
            and (text == learned if learned else "good" in text and "Hi" in text)
        )


def test_the_pairs_of_trl(tmp_path):
    path = tmp_path / "pairs.jsonl"
    good, bad = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "What?"}
    rows = [
        {"prompt": "Hi", "chosen": "Hello", "rejected": "What?"},
        {"prompt": [USER], "chosen": [good], "rejected": [bad]},
        {"chosen": [USER, good], "rejected": [USER, bad]},
        {
            "prompt": "Hi",
            "chosen": [USER, good],
            "rejected": [USER, bad],
            "messages": [USER, good],
            "score_chosen": 8.0,
            "prompt_id": "x",
        },
        {"prompt": [USER], "chosen": json.dumps([good]), "rejected": json.dumps([bad])},
        {"instruction": "Hi", "chosen": [good], "rejected": [bad], "output": "Hello"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = read_preferences(str(path))
    for record in data.records:
        assert prompt_of(record, "alpaca") == [USER] and replies_of(record) == {"chosen": [good], "rejected": [bad]}, record
    table, equal = preference_rows(data, "alpaca")
    assert len(table) == 6 and equal == 0
    path.write_text(json.dumps({"prompt": "Other", "chosen": [USER, good], "rejected": [USER, bad]}), encoding="utf-8")
    with pytest.raises(UserError, match="begin with messages other than those of 'prompt'"):
        read_preferences(str(path))
    path.write_text(
        json.dumps({"system": "Be brief.", "history": [["a", "b"]], "prompt": "Hi", "chosen": "x", "rejected": "y"}),
        encoding="utf-8",
    )
    assert [m["content"] for m in prompt_of(read_preferences(str(path)).records[0], "alpaca")] == ["Be brief.", "a", "b", "Hi"]


def test_the_styles_say_every_role():
    assert all("system" in template or "message['role']" in template for template in CHAT_TEMPLATES.values())
