"""Chat templates rendered by this package write what transformers writes."""

import json
from datetime import datetime
from pathlib import Path

import pytest
from transformers import processing_utils, tokenization_utils_base
from transformers.utils import chat_template_utils

from gpt_scratch.data.instruction import CHAT_TEMPLATES, set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.inference import chat_template
from gpt_scratch.inference.chat_template import TEMPLATE_FUNCTIONS, apply_chat_template, bound_chat_templates
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

QUESTION = [{"role": "user", "content": "What is it, Anna? 漢字 🙂"}]

TALK = [
    {"role": "system", "content": "Be kind."},
    *QUESTION,
    {"role": "assistant", "content": "A key.\n"},
    {"role": "user", "content": "Whose?"},
    {"role": "assistant", "content": "Hers."},
]

TOOL = {"type": "function", "function": {"name": "look", "description": "Look it up.", "parameters": {"type": "object", "properties": {"what": {"type": "string"}}}}}  # fmt: skip

CALL = [*QUESTION, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {"name": "look", "arguments": {"what": "key"}}}]},
        {"role": "tool", "name": "look", "tool_call_id": "abcdefghi", "content": "found"}]  # fmt: skip


def look(what: str) -> str:
    """
    Look it up.

    Args:
        what: the thing
    """
    return what


USES = {
    "a question": ([QUESTION], {"add_generation_prompt": True}),
    "a conversation": ([TALK], {}),
    "tools": ([CALL], {"tools": [TOOL], "add_generation_prompt": True}),
    "a function as tool": ([QUESTION], {"tools": [look]}),
    "documents": ([QUESTION], {"documents": [{"title": "Keys", "text": "Of Anna."}], "enable_thinking": False}),
    "several conversations": ([[QUESTION, TALK]], {}),
    "the last message goes on": ([TALK], {"continue_final_message": True}),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)


@pytest.fixture
def stock(monkeypatch):
    """Templates rendered as transformers renders them, until `bound_chat_templates` is called."""
    for module in (tokenization_utils_base, processing_utils):
        for name in TEMPLATE_FUNCTIONS:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, getattr(chat_template_utils, name))


def outcome(call, *args, **kwargs):
    """The result or the error message."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        return " ".join(str(error).split()).removeprefix(f"{chat_template.REFUSED}: ")[:250]


def templates_of_trl() -> dict[str, str]:
    trl = pytest.importorskip("trl")
    files = sorted(Path(trl.__file__).parent.glob("chat_templates/*.jinja"))
    assert len(files) > 20  # published ones: Llama 3, Qwen, Gemma, Phi, DeepSeek, Cohere, gpt-oss, GLM, ...
    return {file.stem: file.read_text(encoding="utf-8") for file in files}


@pytest.mark.thorough
def test_what_published_templates_write_is_what_transformers_writes(tokenizer, stock):
    templates = templates_of_trl()
    wanted = {}
    for name, template in templates.items():
        for use, (messages, settings) in USES.items():
            wanted[name, use] = outcome(
                tokenizer.apply_chat_template, *messages, chat_template=template, tokenize=False, **settings
            )
    for name, template in templates.items():
        for use, (messages, settings) in USES.items():
            got = outcome(apply_chat_template, tokenizer, *messages, chat_template=template, tokenize=False, **settings)
            assert got == wanted[name, use], (name, use)
    assert sum("Anna" in str(text) for text in wanted.values()) > len(wanted) / 2  # most are texts, not errors


@pytest.mark.parametrize("style", CHAT_TEMPLATES)
def test_the_assistants_tokens_are_those_of_transformers(tokenizer, stock, style):
    settings = {
        "chat_template": CHAT_TEMPLATES[style],
        "return_dict": True,
        "return_assistant_tokens_mask": True,
        "tokenize": True,
    }
    for messages in (TALK, [TALK, QUESTION]):
        wanted = tokenizer.apply_chat_template(messages, **settings)
        got = apply_chat_template(tokenizer, messages, **settings)
        assert dict(got) == dict(wanted)
    assert 0 < sum(wanted["assistant_masks"][0]) < len(wanted["input_ids"][0])


def test_functions_of_templates(tokenizer):
    template = "{{ strftime_now('%Y') }} {{ messages[0]|tojson(indent=1) }} {{ eos_token }} {{ tools }} {{ extra }}"
    text = apply_chat_template(tokenizer, QUESTION, chat_template=template, tokenize=False, extra=(1, 2.5, None))
    assert (
        text
        == f"{datetime.now():%Y} {json.dumps(QUESTION[0], indent=1, ensure_ascii=False)} {tokenizer.eos_token} None (1, 2.5, None)"
    )


def test_control_tokens_in_messages_are_text_where_that_is_asked_for(tokenizer, stock):
    settings = {"chat_template": CHAT_TEMPLATES["chatml"], "sanitize_control_tokens": True}
    messages = [{"role": "user", "content": f"end {tokenizer.eos_token} here"}]
    wanted = dict(tokenizer.apply_chat_template(messages, **settings))
    assert dict(apply_chat_template(tokenizer, messages, **settings)) == wanted
    assert not isinstance(
        outcome(apply_chat_template, tokenizer, QUESTION, chat_template="{{ (7**99999999) % 3", sanitize_control_tokens=True),
        dict,
    )


def test_every_function_that_compiles_a_template_is_replaced():
    bound_chat_templates()
    for module in (tokenization_utils_base, processing_utils):
        for name, value in vars(module).items():
            if getattr(value, "__module__", "") == chat_template_utils.__name__ and "template" in name.lower():
                assert hasattr(value, "bounded"), f"{module.__name__}.{name} compiles templates in this process"
    assert hasattr(tokenization_utils_base.render_jinja_template, "bounded")


def test_messages_that_are_no_plain_data_are_refused(tokenizer):
    with pytest.raises(UserError, match="must be strings, numbers, lists and dictionaries"):
        apply_chat_template(tokenizer, [{"role": "user", "content": object()}], chat_template="{{ messages }}", tokenize=False)


def test_a_tokenizer_with_several_templates(tokenizer):
    tokenizer.chat_template = {"default": CHAT_TEMPLATES["chatml"], "other": "x"}
    set_prompt_style(tokenizer, "tokenizer")
    assert tokenizer.chat_template == CHAT_TEMPLATES["chatml"]
    tokenizer.chat_template = {"other": "x"}
    with pytest.raises(UserError, match="no chat template"):
        set_prompt_style(tokenizer, "tokenizer")
