"""The process that renders chat templates: hostile templates are stopped at their limits, and the process ends with its parent and is replaced when it dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from bounds import run_bounded

from gpt_scratch.inference import chat_template
from gpt_scratch.inference.chat_template import RENDERER, apply_chat_template
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

pytestmark = pytest.mark.thorough

QUESTION = [{"role": "user", "content": "What is it, Anna? 漢字 🙂"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)


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
