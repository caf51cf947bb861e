"""Chat templates in a process of their own: what they write is what transformers writes, and no template exceeds the limits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path

import pytest
from bounds import run_bounded
from transformers import processing_utils, tokenization_utils_base
from transformers.utils import chat_template_utils

from gpt_scratch.data.instruction import CHAT_TEMPLATES, set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.inference import chat_template
from gpt_scratch.inference.chat_template import RENDERER, TEMPLATE_FUNCTIONS, apply_chat_template, bound_chat_templates
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


START = """
import json, resource, sys, time
from gpt_scratch.errors import UserError
from gpt_scratch.inference import chat_template
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
question = [{"role": "user", "content": "Hi"}]
"""
RANGE = "{% for i in range(90000) %}"
DOUBLE = "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
HOSTILE = {
    "a chat template of one long operation": ("{{ (7**99999999) % 3 }}", "did not finish within 1 seconds"),
    "a chat template of one long operation on what it is given": ("{{ ((messages|length + 6)**99999999) % 3 }}", "did not finish within 1"),
    "a chat template of nested loops": (6 * RANGE + "a" + 6 * "{% endfor %}", "did not finish within 1 seconds"),
    "a chat template of nested loops without a word": (6 * RANGE + 6 * "{% endfor %}", "did not finish within 1 seconds"),
    "a chat template that doubles a string 99 times": (DOUBLE, "more than 512 MiB of memory"),
    "a chat template that pads to 10^9 characters": ("{{ '%0999999999d'|format(1) }}", "more than 512 MiB of memory"),
    "a chat template of a string of 5 GB": ("{{ 'a' * 5000000000 }}", "more than 512 MiB of memory"),
    "a chat template that writes 30 million characters": ("{{ 'a' * 30000000 }}", "its output exceeds 16,777,216 characters"),
    "a chat template that calls itself": ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "maximum recursion depth"),
    "a chat template of 10^5 brackets": ("{{ " + "(" * 100_000, "recursion"),
    "a chat template of 2 * 10^4 nested blocks": ("{% if 1 %}" * 20_000, ""),
    "a chat template of a long range": ("{% for i in range(10 ** 12) %}a{% endfor %}", "Range too big"),
    "a chat template that reaches for Python's classes": ("{{ messages.__class__.__mro__[-1].__subclasses__() }}", "__class__"),
    "a broken chat template": ("{% for %}", "Expected an expression"),
    "a chat template that divides by zero": ("{{ 1 // 0 }}", "by zero"),
    "a chat template whose error holds a terminal's commands": ("{{ raise_exception('\x1b]0;owned\x07\n\x1b[2Jgone') }}", "\\x1b]0;owned\\x07 \\x1b[2Jgone"),
    "a chat template that writes half a surrogate pair": ("{{ '\\ud83d' }}", "not valid Unicode at character 0"),
}  # fmt: skip


def limit(expected: str) -> int:
    """Seconds of one rendering: short where that limit is tested, else long enough for the other limits on a busy machine."""
    return 1 if "did not finish within 1" in expected else 20


@pytest.fixture(scope="module")
def refusals():
    code = START + (
        "for template, chat_template.SECONDS in json.load(sys.stdin):\n"
        "    start = time.perf_counter()\n"
        "    try:\n"
        "        told = repr(chat_template.apply_chat_template(tokenizer, question, chat_template=template, tokenize=False))[:99]\n"
        "    except UserError as error:\n"
        "        told = f'refused: {error}'\n"
        # Not ru_maxrss of the process itself, which begins with the peak of the one that started it.
        "    own = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024\n"
        "    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024\n"
        "    print(json.dumps([told, time.perf_counter() - start, own, children]), flush=True)\n"
    )
    done = run_bounded(
        [sys.executable, "-c", code],
        seconds=120,
        mebibytes=1900,
        stdin=json.dumps([(template, limit(expected)) for template, expected in HOSTILE.values()]),
    )
    assert done.exceeded is None and done.status == 0, (done.exceeded, done.stderr[-2000:])
    return dict(zip(HOSTILE, map(json.loads, done.stdout.splitlines())))


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.fault(name, seconds=limit(expected) + 14, mebibytes=1200))
        for name, (_, expected) in HOSTILE.items()
    ],
)
@pytest.mark.thorough
def test_a_hostile_template_is_refused_in_bounded_time_and_memory(refusals, name):
    told, seconds, own, children = refusals[name]
    assert told.startswith("refused: ") and HOSTILE[name][1] in told and "\n" not in told and "\x1b" not in told
    assert seconds < limit(HOSTILE[name][1]) + 14 and own + children < 1200  # MiB; torch and transformers are about 500 of them


@pytest.mark.skipif(sys.platform == "win32", reason="processes are suspended by a signal")
def test_a_rendering_that_is_suspended_is_not_late(monkeypatch):
    """As by Ctrl-Z, or on a machine whose cores are taken: what is limited is processor time."""
    monkeypatch.setattr(chat_template, "SECONDS", 0.5)
    renderer = chat_template.Renderer()
    process = renderer._running()
    process.send_signal(signal.SIGSTOP)
    threading.Timer(1.2, process.send_signal, [signal.SIGCONT]).start()
    start = time.monotonic()
    try:
        kwargs = {"conversations": [[{"role": "user", "content": "Hi"}]], "chat_template": "{{ messages[0].content }}"}
        assert renderer.call("render_jinja_template", (), kwargs)[0] == ["Hi"]
        assert time.monotonic() - start > 1
    finally:
        renderer.stop()


def run_hostile(code: str) -> subprocess.Popen:
    hostile = "chat_template.apply_chat_template(tokenizer, question, chat_template='{{ (7**99999999) % 3 }}', tokenize=False)\n"
    return subprocess.Popen(
        # A shell's background jobs ignore Ctrl-C, and what they start inherits that.
        [sys.executable, "-c", START + "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\nchat_template.RENDERER._running()\nprint('on', flush=True)\n" + code.replace("HOSTILE", hostile)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.fault("Ctrl-C during one long operation of a chat template", seconds=30, mebibytes=900)
@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
@pytest.mark.thorough
def test_ctrl_c_ends_a_long_operation_at_once():
    process = run_hostile(
        "try:\n    HOSTILE\nexcept KeyboardInterrupt:\n    print('stopped', chat_template.RENDERER._process, flush=True)\n"
        "print(chat_template.apply_chat_template(tokenizer, question, chat_template='{{ messages[0].content }}', tokenize=False))"
    )
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    time.sleep(1)
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stopped None\n" and time.monotonic() - start < 3
    stdout, stderr = process.communicate(timeout=30)
    assert stdout == "Hi\n", stderr  # rendered by the next process, not the late answer of the first


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.thorough
def test_the_process_ends_with_the_one_that_started_it():
    process = run_hostile("print(chat_template.RENDERER._process.pid, flush=True)\nimport time; time.sleep(60)")
    assert process.stdout is not None and process.stdout.readline() == "on\n"
    child = Path(f"/proc/{int(process.stdout.readline())}/cmdline")
    assert b"template_process.py" in child.read_bytes()
    process.kill()
    process.communicate()
    for _ in range(100):
        if not child.exists() or not child.read_bytes():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it still runs")


def test_a_process_that_died_is_replaced(tokenizer):
    settings = {"chat_template": "{{ messages[0].content }}", "tokenize": False}
    apply_chat_template(tokenizer, QUESTION, **settings)
    RENDERER._process.kill()
    RENDERER._process.wait()
    assert apply_chat_template(tokenizer, QUESTION, **settings) == QUESTION[0]["content"]
