"""What chat templates make of records: every message, tool and thought is in the tokens, or the record is refused; and which tokens are learned."""

import json

import pytest

from gpt_scratch.data.instruction import (
    CHAT_TEMPLATES,
    encode_conversations,
    encode_record,
    prompt_ids,
    read_conversations,
    set_prompt_style,
)
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


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_byte_level_bpe(["Hi Hello"], vocab_size=258)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read(path, *rows, **settings):
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_conversations(str(path), **settings)


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


def test_tools_and_reasoning_are_written_by_a_template_that_supports_them(tokenizer, tmp_path):
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


def test_all_replies_or_only_the_last_are_trained_on(tokenizer, tmp_path):
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


def test_empty_replies_are_never_trained_on(tokenizer, tmp_path):
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


def test_replies_of_weight_0_are_not_trained_on(tokenizer, tmp_path):
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


def test_every_style_writes_system_messages():
    assert all("system" in template or "message['role']" in template for template in CHAT_TEMPLATES.values())
