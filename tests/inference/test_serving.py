"""The guard before transformers' server, in a process of its own: what is answered, what is refused, and that nothing takes it down."""

import json
import socket
import subprocess
import sys
import threading
import time

import pytest
from bounds import refused_in_one_line, run_bounded
from served import KEY, ROOT, make_model, serving

from gpt_scratch.errors import UserError
from gpt_scratch.inference.limits import CHAT, COMPLETIONS, RESPONSES, Limits
from gpt_scratch.inference.serving import serve

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
MEBIBYTES = 900
LIMITS = Limits(max_tokens=3000, max_characters=20_000, time_limit=2, max_waiting=2, max_connections=40, send_seconds=1.5)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    make_model(path / "model")
    flags = [word for name, value in vars(LIMITS).items() for word in (f"--{name}", str(value))]
    with serving(path / "model", path / "log", *flags, key=KEY) as server:
        yield server
    log = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in log and KEY not in log, log


@pytest.fixture
def question(server):
    return {"model": server.model, "prompt": "one two", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def chat(server):
    return {"model": server.model, "messages": [{"role": "user", "content": "one"}], "max_tokens": 4, "temperature": 0}


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


def test_settings_are_used_and_not_swallowed(server, question):
    def ask(**settings):
        return json.loads(server.ask(COMPLETIONS, question | {"max_tokens": 30} | settings)[2])["choices"][0]

    # The model's own settings are greedy; a temperature asks for a draw, which the stock app overlooks.
    assert ask(temperature=1.5, seed=1)["text"] == ask(temperature=1.5, seed=1)["text"] != ask(temperature=1.5, seed=2)["text"]
    greedy = ask(temperature=0)["text"]
    assert ask(temperature=1.5, seed=1)["text"] != greedy == ask(temperature=1.5, top_p=1e-6)["text"]
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
        "messages.0.tool_calls",
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
    "a JSON key given twice": (b'{"model": "a", "model": "b"}', 400, "twice"),
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


@pytest.mark.fault("a chunked body of 10 MB without a length", seconds=2, mebibytes=MEBIBYTES)
def test_a_body_without_a_length_is_bounded(server):
    with server_socket(server) as connection:
        connection.sendall(head(server, COMPLETIONS, "Transfer-Encoding: chunked"))
        start = time.monotonic()
        try:
            for _ in range(160):
                connection.sendall(b"10000\r\n" + b" " * 65_536 + b"\r\n")
        except OSError:  # the server has closed the connection
            pass
        answer = read_all(connection)
    assert time.monotonic() - start < 2 and server.mebibytes < MEBIBYTES
    assert answer == b"" or b" 413 " in answer  # the answer is lost where the kernel resets first
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize(
    "headers, status, words",
    [
        pytest.param({"Host": "evil.example"}, 403, "Host", marks=pytest.mark.fault("a foreign Host header (DNS rebinding)", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Host": "127.0.0.1@evil.example"}, 400, "Host", marks=pytest.mark.fault("a Host header with a user", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Origin": "http://evil.example"}, 403, "pages of other origins", marks=pytest.mark.fault("a request from another origin", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Origin": "null"}, 403, "pages of other origins", marks=pytest.mark.fault("a request from a sandboxed page", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Content-Type": "text/plain"}, 415, "application/json", marks=pytest.mark.fault("JSON as plain text, which a page may send without asking", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Content-Encoding": "gzip"}, 415, "not compressed", marks=pytest.mark.fault("a compressed request", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": ""}, 401, "API key", marks=pytest.mark.fault("a request without the API key", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": f"Bearer {KEY}x"}, 401, "API key", marks=pytest.mark.fault("a wrong API key", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": "Bearer \xff"}, 401, "API key", marks=pytest.mark.fault("an API key that is not ASCII", seconds=2, mebibytes=MEBIBYTES)),
    ],
)  # fmt: skip
def test_a_caller_who_may_not_ask_is_refused(server, question, headers, status, words):
    refused, error = server.error(COMPLETIONS, question, headers)
    assert refused == status and words in error["message"], error


def test_a_caller_who_may_ask_is_heard(server, question):
    for headers in ({"Origin": f"http://127.0.0.1:{server.port}"}, {"Host": f"LOCALHOST:{server.port}"}, {"Host": "[::1]:1"}):
        assert server.ask(COMPLETIONS, question, headers)[0] == 200, headers
    assert server.ask("/health", headers={"Authorization": "", "Host": "probe"})[0] == 200


@pytest.mark.fault(
    "routes of the stock app: load a model, unload it, transcribe, read its own documentation", seconds=5, mebibytes=MEBIBYTES
)
def test_other_routes_are_closed(server, question):
    for path in (
        "/reset",
        "/v1/systemone",
        "/v1/audio/transcriptions",
        "/nowhere",
        "/v1/completions/",
        "//v1/completions",
        "/V1/completions",
    ):
        assert server.error(path, {})[0] == 404, path
    for path in ("/docs", "/openapi.json", "/redoc", "/v1/models/gpt2", "generation_config"):
        assert server.error(path)[0] == 404, path
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert server.error(COMPLETIONS, method=method)[0] == 405, method
    before = server.mebibytes
    for name in ("gpt2", "/etc", f"{server.model}/", f"{server.model}:weights.gguf", "../model", "a" * 900):
        assert server.error("/load_model", {"model": name})[0] == 404, name
        status, error = server.error(COMPLETIONS, question | {"model": name})
        assert (status, error["code"]) == (404, "model_not_found") and name not in error["message"]
    assert server.mebibytes - before < 50
    assert '"ready"' in server.ask("/load_model", {"model": server.model})[2]


@pytest.mark.fault("a prompt longer than the model's positions", seconds=5, mebibytes=MEBIBYTES)
def test_failures_of_the_model_are_one_json_error(server, question):
    status, error = server.error(COMPLETIONS, question | {"prompt": "one " * 2000})
    assert status == 400 and "4,096 positions" in error["message"]
    status, _, text = server.ask(COMPLETIONS, question | {"prompt": "one " * 2000, "stream": True})
    assert text.count("data: ") == 1 and "4,096 positions" in json.loads(text[len("data: ") :])["error"]["message"]
    assert server.error(COMPLETIONS, question | {"prompt": ""})[0] == 400


@pytest.mark.fault("a generation that takes longer than the time limit", seconds=10, mebibytes=MEBIBYTES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_long_generation_really_ends(server, question, stream):
    start = time.monotonic()
    status, _, text = server.ask(COMPLETIONS, question | {"max_tokens": 3000, "stream": stream})
    assert 1.9 < time.monotonic() - start < 6
    assert status == (200 if stream else 504)
    assert "the time limit of 2 s is exceeded" in json.loads(text.split("data: ")[-1])["error"]["message"]
    start = time.monotonic()
    assert server.ask(COMPLETIONS, question)[0] == 200 and time.monotonic() - start < 4  # nothing runs on in the background


def test_a_client_that_goes_away_frees_its_turn(server, question):
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


@pytest.mark.parametrize(
    "start, drip",
    [
        pytest.param("", "", marks=pytest.mark.fault("a connection that sends nothing", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("POST /v1/completions HTTP/1.1\r\n", "X-A: b\r\n", marks=pytest.mark.fault("headers that drip (slowloris)", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("body", " ", marks=pytest.mark.fault("a body that drips", seconds=6, mebibytes=MEBIBYTES)),
        pytest.param("second", "X-A: b\r\n", marks=pytest.mark.fault("headers of a second request that drip", seconds=8, mebibytes=MEBIBYTES)),
    ],
)  # fmt: skip
def test_slow_connections_are_ended(server, start, drip):
    with server_socket(server) as connection:
        connection.settimeout(0.1)
        first = {
            "body": head(server, COMPLETIONS, "Content-Length: 10000").decode(),
            "second": "GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\n",
        }.get(start, start)
        connection.sendall(first.encode())
        begin, received = time.monotonic(), b""
        while time.monotonic() - begin < 8:
            try:
                connection.sendall(drip.encode())
                part = connection.recv(4096)
                if not part:
                    break
                received += part
            except TimeoutError:
                continue
            except OSError:
                break
        took = time.monotonic() - begin
    assert took < 5, received
    assert (b" 408 " in received) == (start == "body")


@pytest.mark.fault("a client that never reads the reply it asked for", seconds=20, mebibytes=MEBIBYTES)
def test_a_client_that_does_not_read_holds_up_nobody(server, question):
    body = json.dumps(question | {"max_tokens": 3000, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(head(server, COMPLETIONS, f"Content-Length: {len(body)}") + body)
        time.sleep(0.3)
        start = time.monotonic()
        assert server.ask(COMPLETIONS, question)[0] == 200  # after its turn or its 2 s
        assert time.monotonic() - start < 4


@pytest.mark.fault("200 open connections that say nothing", seconds=10, mebibytes=MEBIBYTES)
def test_connections_are_bounded_and_come_free(server):
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    try:
        time.sleep(0.5)
        refused = sum(b" 503 " in read_all(connection, 0.01) for connection in connections[60:])
        assert refused > 100
        time.sleep(LIMITS.send_seconds + 0.5)
        assert server.ask("/health")[0] == 200
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.fault("HTTP that is none: binary noise, two lengths, an endless header, HTTP/2", seconds=5, mebibytes=MEBIBYTES)
def test_noise_is_refused(server):
    for noise in (
        b"\x16\x03\x01\x02\x00" * 50,
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
    ):
        with server_socket(server) as connection:
            connection.settimeout(3)
            connection.sendall(noise)
            answer = read_all(connection)
            assert b"websocket" in noise or b" 400 " in answer or answer == b"", answer
    assert server.ask("/health")[0] == 200 and server.mebibytes < MEBIBYTES


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_others_reach_no_server_without_a_key(tmp_path, host):
    with pytest.raises(UserError, match="set an API key in the variable GPT_SCRATCH_API_KEY"):
        serve(str(tmp_path), host=host)


def test_keys_flags_and_folders_are_checked_before_anything_is_loaded(tmp_path):
    for key in ("", "short", "a" * 20 + "\n", "ü" * 20, "a b" * 9):
        with pytest.raises(UserError, match="GPT_SCRATCH_API_KEY must be at least 16 printable ASCII"):
            serve(str(tmp_path), key=key)
    for limits in (Limits(max_tokens=0), Limits(time_limit=float("nan")), Limits(time_limit=-1), Limits(max_characters=10**12)):
        with pytest.raises(UserError, match=r"--\w+ is .*: it must be between"):
            serve(str(tmp_path), limits=limits)
    with pytest.raises(UserError, match="--port is 70000"):
        serve(str(tmp_path), port=70000)
    with pytest.raises(UserError, match="holds no config.json"):
        serve(str(tmp_path), port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match="cannot listen"):
        serve(str(tmp_path), port=taken.getsockname()[1])


@pytest.mark.slow
def test_a_flag_that_is_not_understood_is_refused(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "serve.py", tmp_path]
    outcome = run_bounded([*command, "--enable-cors"], 30, 1500, env={"PYTHONPATH": str(ROOT)})
    assert outcome.status == 2 and "--enable-cors" in outcome.last_line
    refused_in_one_line(
        run_bounded([*command, "--host", "0.0.0.0"], 30, 1500, env={"PYTHONPATH": str(ROOT)}), "GPT_SCRATCH_API_KEY"
    )


@pytest.mark.slow
def test_transformers_chat_talks_to_it(tmp_path):
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


def server_socket(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=10)


def head(server, path: str, *lines: str) -> bytes:
    every = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Authorization: Bearer {KEY}", *lines]
    return ("\r\n".join(every) + "\r\n\r\n").encode()


def read_all(connection: socket.socket, seconds: float = 5) -> bytes:
    connection.settimeout(seconds)
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except OSError:
        pass
    return b"".join(parts)
