"""The guard before transformers' server, in a process of its own: what is answered, what is refused, and that nothing crashes it."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from bounds import refused_in_one_line, run_bounded
from served import MEBIBYTES, ROOT, head, make_model, server_socket, serving

from gpt_scratch.errors import UserError
from gpt_scratch.inference.limits import CHAT, COMPLETIONS, RESPONSES, Limits
from gpt_scratch.inference.serving import serve

pytest.importorskip("uvicorn")
pytest.importorskip("openai")


def test_the_three_endpoints_answer(server, question, chat):
    status, _, text = server.ask(CHAT, chat)
    reply = json.loads(text)
    assert status == 200 and reply["usage"]["completion_tokens"] == 4 and reply["choices"][0]["finish_reason"] == "length"
    content = [{"type": "text", "text": "one"}]
    status, _, text = server.ask(CHAT, chat | {"messages": [{"role": "user", "content": content}]})
    assert json.loads(text)["choices"] == reply["choices"]
    status, _, text = server.ask(COMPLETIONS, question)
    assert status == 200 and len(json.loads(text)["choices"][0]["text"]) > 0
    status, _, text = server.ask(RESPONSES, {"model": server.model, "input": "one", "max_output_tokens": 4})
    assert status == 200 and json.loads(text)["status"] == "completed"
    status, headers, text = server.ask(COMPLETIONS, question | {"stream": True})
    assert status == 200 and headers["content-type"].startswith("text/event-stream") and text.count("data: ") > 2
    assert json.loads(server.ask("/v1/models")[2])["data"][0]["id"] == server.model


def test_settings_are_used(server, question):
    def ask(**settings):
        return json.loads(server.ask(COMPLETIONS, question | {"max_tokens": 30} | settings)[2])["choices"][0]

    # The model's own settings are greedy; a temperature asks for a draw, which the stock app overlooks.
    assert ask(temperature=1.5, seed=1)["text"] == ask(temperature=1.5, seed=1)["text"] != ask(temperature=1.5, seed=2)["text"]
    greedy = ask(temperature=0)["text"]
    assert ask(temperature=1.5, seed=1)["text"] != greedy == ask(temperature=1.5, top_p=1e-6)["text"]
    assert greedy == ask(temperature=0, top_p=1)["text"] == ask(temperature=0, top_p=0.5)["text"]  # as OpenAI's clients send it
    assert ask(frequency_penalty=2)["text"] != greedy
    stop = greedy[10:12]
    stopped = ask(stop=stop)
    assert stopped["text"] == greedy[: greedy.index(stop) + 2] and stopped["finish_reason"] == "stop"
    assert ask(stop=["no such text", stop])["text"] == stopped["text"]


HOSTILE_CHAT = {
    "a chat template in a request": ({"chat_template_kwargs": {"chat_template": "{{ (7**99999999) % 3 }}"}}, "chat_template_kwargs"),
    "a chat template of its own in a request": ({"chat_template": "{{ 1 }}"}, "chat_template"),
    "a million beams in a request's generation_config": ({"generation_config": '{"num_beams": 1000000}'}, "generation_config.num_beams"),
    "padding to 10^8 in a request's generation_config": (
        {"generation_config": '{"pad_to_multiple_of": 100000000}'},
        "generation_config.pad_to_multiple_of",
    ),
    "10^9 new tokens in a request's generation_config": (
        {"generation_config": '{"max_new_tokens": 1000000000}'},
        "generation_config.max_new_tokens",
    ),
    "code to run as a request's generation_config": ({"generation_config": '{"custom_generate": "a/b"}'}, "generation_config.custom_generate"),
    "a generation_config nested 2,000 deep": ({"generation_config": "[" * 2000}, "generation_config"),
    "a request for a million beams": ({"num_beams": 10**6}, "num_beams"),
    "a request for 10^6 answers": ({"n": 10**6}, "n"),
    "a request for 10^9 tokens": ({"max_tokens": 10**9}, "max_tokens"),
    "a request for -1 tokens": ({"max_tokens": -1}, "max_tokens"),
    "a request for true tokens": ({"max_tokens": True}, "max_tokens"),
    "a temperature as text": ({"temperature": "0.5"}, "temperature"),
    "a temperature of 10^300": ({"temperature": 1e300}, "temperature"),
    "a negative top_p": ({"top_p": -1}, "top_p"),
    "a seed of 2^64": ({"seed": 2**64 - 1}, "seed"),
    "a stop string of 10^4 characters": ({"stop": "a" * 10_000}, "stop"),
    "an empty stop string": ({"stop": ""}, "stop"),
    "1,000 stop strings": ({"stop": ["a"] * 1000}, "stop"),
    "a bias for 10^3 tokens": ({"logit_bias": {str(i): 1 for i in range(1000)}}, "logit_bias"),
    "2,000 messages": ({"messages": [{"role": "user", "content": "a"}] * 2000}, "messages"),
    "no messages": ({"messages": []}, "messages"),
    "messages that are a text": ({"messages": "one"}, "messages"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages.0.content"),
    "a role of markup": ({"messages": [{"role": "<|system|>", "content": "a"}]}, "messages.0.role"),
    "an image to fetch from a private address": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}]},
        "messages.0.content.0.image_url",
    ),
    "tool calls with arguments to parse": (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"arguments": "[" * 9999}}]}]},
        "messages.0.tool_calls.0.id",
    ),
    "stream as a number": ({"stream": 1}, "stream"),
    "a model of no name": ({"model": None}, "model"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.fault(name, seconds=2, mebibytes=MEBIBYTES)) for name in HOSTILE_CHAT]
)
def test_a_field_out_of_bounds_is_refused_by_name(server, chat, case):
    fields, name = HOSTILE_CHAT[case]
    start = time.monotonic()
    status, error = server.error(CHAT, chat | fields)
    assert time.monotonic() - start < 2 and server.mebibytes < MEBIBYTES
    assert status == 400 and error["param"] == name and name in error["message"], error


HOSTILE_BODIES = {
    "JSON nested 15,000 deep": (b'{"prompt":' + b"[" * 15_000, 400, "nested"),
    "JSON nested 40 deep": (b'{"prompt":' + b"[" * 40 + b"]" * 40 + b"}", 400, "nested"),
    "a JSON key given twice": (b'{"model": "a", "model": "b"}', 400, "duplicate"),
    "NaN in JSON": (b'{"temperature": NaN}', 400, "NaN"),
    "an infinite number in JSON": (b'{"temperature": 1e999}', 400, "too large"),
    "an integer of 10,000 digits": (b'{"max_tokens": ' + b"9" * 10_000 + b"}", 400, "digits"),
    "JSON that breaks off": (b'{"model": ', 400, "not JSON"),
    "a list as the request": (b"[]", 400, "not a JSON object"),
    "bytes that are not UTF-8": (b'{"model": "\xff"}', 400, "not UTF-8"),
    "half of a surrogate pair": (b'{"model": "a", "prompt": "\\ud800"}', 400, "surrogate"),
    "100 KB of empty objects": (b'{"a":[' + b"{}," * 33_000 + b"{}]}", 400, "unknown field a"),
    "a body of 3 MB": (b" " * 3_000_000, 413, "longer than"),
    "no body": (b"", 400, "not JSON"),
}  # fmt: skip


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=pytest.mark.fault(name, seconds=2, mebibytes=MEBIBYTES)) for name in HOSTILE_BODIES]
)
def test_a_broken_body_is_refused(server, case):
    body, expected, words = HOSTILE_BODIES[case]
    start = time.monotonic()
    status, error = server.error(COMPLETIONS, body)
    assert time.monotonic() - start < 2 and server.mebibytes < MEBIBYTES
    assert status == expected and words in error["message"], error


@pytest.mark.fault("a prompt longer than the model's positions", seconds=5, mebibytes=MEBIBYTES)
def test_failures_of_the_model_are_one_json_error(server, question):
    status, error = server.error(COMPLETIONS, question | {"prompt": "one " * 2000})
    assert status == 400 and "4,096 positions" in error["message"]
    status, _, text = server.ask(COMPLETIONS, question | {"prompt": "one " * 2000, "stream": True})
    assert text.count("data: ") == 1 and "4,096 positions" in json.loads(text[len("data: ") :])["error"]["message"]
    assert server.error(COMPLETIONS, question | {"prompt": ""})[0] == 400


@pytest.mark.fault("a generation that takes longer than the time limit", seconds=10, mebibytes=MEBIBYTES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.thorough
def test_a_long_generation_is_ended(server, question, stream):
    start = time.monotonic()
    status, _, text = server.ask(COMPLETIONS, question | {"max_tokens": 3000, "stream": stream})
    assert 1.9 < time.monotonic() - start < 6
    assert status == (200 if stream else 504)
    assert "the time limit of 2 s is exceeded" in json.loads(text.split("data: ")[-1])["error"]["message"]
    start = time.monotonic()
    assert server.ask(COMPLETIONS, question)[0] == 200 and time.monotonic() - start < 4  # nothing runs on in the background


def test_a_disconnected_client_frees_its_turn(server, question):
    for stream in (False, True):
        body = json.dumps(question | {"max_tokens": 3000, "stream": stream}).encode()
        with server_socket(server) as connection:
            connection.sendall(head(server, COMPLETIONS, f"Content-Length: {len(body)}") + body)
            time.sleep(0.5)
        start = time.monotonic()
        assert server.ask(COMPLETIONS, question)[0] == 200 and time.monotonic() - start < 3


@pytest.mark.fault("more requests at once than may wait", seconds=15, mebibytes=MEBIBYTES)
def test_one_at_a_time_a_few_wait_and_health_is_always_answered(server, question):
    results = []
    ask = lambda: results.append(server.ask(COMPLETIONS, question | {"max_tokens": 3000}))  # noqa: E731
    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    slowest = 0.0
    while any(thread.is_alive() for thread in threads):
        start = time.monotonic()
        assert server.ask("/health")[0] == 200
        slowest = max(slowest, time.monotonic() - start)
        time.sleep(0.05)
    statuses = sorted(status for status, _, _ in results)
    assert statuses[0] in (429, 504) and statuses.count(504) in (1, 2) and statuses.count(429) >= 4, statuses
    assert all(int(headers["retry-after"]) >= 1 for status, headers, _ in results if status == 429)
    assert slowest < 3
    assert server.ask(COMPLETIONS, question)[0] == 200


def test_keys_flags_and_folders_are_checked_before_anything_is_loaded(tmp_path):
    for key in ("", "short", "a" * 20 + "\n", "ü" * 20, "a b" * 9):
        with pytest.raises(UserError, match="GPT_SCRATCH_API_KEY must be at least 16 printable ASCII"):
            serve(str(tmp_path), key=key)
    for limits in (Limits(max_tokens=0), Limits(time_limit=float("nan")), Limits(time_limit=-1), Limits(max_characters=10**12)):
        with pytest.raises(UserError, match=r"--\w+ is .*: it must be between"):
            serve(str(tmp_path), limits=limits)
    with pytest.raises(UserError, match="--port is 70000"):
        serve(str(tmp_path), port=70000)
    with pytest.raises(UserError, match="contains no config.json"):
        serve(str(tmp_path), port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen"):
        serve(str(tmp_path), port=taken.getsockname()[1])


@pytest.mark.slow
def test_a_flag_that_is_not_understood_is_refused(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "serve.py", tmp_path]
    outcome = run_bounded([*command, "--enable-cors"], 30, 1500, env={"PYTHONPATH": str(ROOT)})
    assert outcome.status == 2 and "enable-cors" in outcome.last_line
    refused_in_one_line(
        run_bounded([*command, "--host", "0.0.0.0"], 30, 1500, env={"PYTHONPATH": str(ROOT)}), "GPT_SCRATCH_API_KEY"
    )


@pytest.mark.slow
def test_transformers_chat_works_with_it(tmp_path):
    make_model(tmp_path / "model")
    with serving(tmp_path / "model", tmp_path / "log") as server:
        command = [
            sys.executable,
            "-m",
            "transformers.cli.transformers",
            "chat",
            server.model,
            f"http://127.0.0.1:{server.port}/v1",
            "max_new_tokens=9",
        ]
        done = subprocess.run(command, input="one two\nn\n!exit\n", capture_output=True, text=True, timeout=120, env={"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0", "HOME": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    assert "was already loaded" in " ".join(done.stdout.split()) and "9 tokens in" in done.stdout, done.stdout
    assert "Generation stopped after reaching the token limit" in done.stdout
