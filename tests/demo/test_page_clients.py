"""Hostile clients of the running page: they speak as its JavaScript does, without the sliders, and as Gradio's own client.

The page runs in a process of its own, whose memory is bounded.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.demo.limits import MAX_NEW_TOKENS, MAX_WAITING
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

try:
    import httpx  # comes with Gradio
except ImportError:
    httpx = None  # type: ignore[assignment]

# Not importorskip: the tests are rows of FAULTS.md wherever it is written.
pytestmark = pytest.mark.skipif(
    find_spec("gradio_client") is None or httpx is None, reason='the page needs pip install "gpt_scratch[demo]"'
)

MEBIBYTES = 1500  # of the page's process: Python, torch, transformers and Gradio take about half of it
SETTINGS = [4, 0.8, 50, 1, 0, 1, 0]


class Page:
    """A running page, and calls of its functions as its JavaScript makes them."""

    def __init__(self, url: str, pid: int):
        self.url, self.pid = url, pid
        self.config = httpx.get(f"{url}/config").json()
        self.functions = {function["api_name"]: function["id"] for function in self.config["dependencies"]}

    def join(self, function: str | int, data: list, session: str, **headers: str) -> "httpx.Response":
        body = {"fn_index": self.functions.get(function, function), "data": data, "session_hash": session}
        headers["content-type"] = "application/json"
        return httpx.post(f"{self.url}/gradio_api/queue/join", content=json.dumps(body), headers=headers, timeout=60)

    def messages(self, session: str) -> list[dict]:
        """What the page says until the function ends."""
        got = []
        with httpx.stream("GET", f"{self.url}/gradio_api/queue/data", params={"session_hash": session}, timeout=90) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    got.append(json.loads(line[5:]))
                    if got[-1]["msg"] in ("process_completed", "close_stream"):
                        return got
        return got

    def call(self, function: str, *data, session: str | None = None) -> dict:
        """The last output, or `{"error": ...}`."""
        session = session or uuid.uuid4().hex
        response = self.join(function, list(data), session)
        if response.status_code != 200:
            return {"error": response.json()["detail"]}
        return self.messages(session)[-1]["output"]


def start(*flags: str, before: str = ""):
    """A page in its own process, which runs the code `before` first, and where it listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_SHARE": "True",
        "GRADIO_MCP_SERVER": "True",
    }
    code = f"import sys\n{before}\nfrom gpt_scratch.demo.__main__ import main, parse\nmain(parse(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "--port", str(port), *flags]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(240):
        try:
            httpx.get(f"http://127.0.0.1:{port}/", timeout=2)
            return process, Page(f"http://127.0.0.1:{port}", process.pid)
        except httpx.HTTPError:
            assert process.poll() is None, "the page ended"
            time.sleep(0.25)
    process.kill()
    raise AssertionError("the page does not start")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model whose tokens, labels and replies hold HTML."""
    path = tmp_path_factory.mktemp("models")
    tokenizer = train_byte_level_bpe(["<script>alert(1)</script> <img src=x> One day "] * 20, vocab_size=300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 600, "initializer_range": 0.3}
    for name in ("model", "second"):
        GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(path / name)
        tokenizer.save_pretrained(path / name)
    return path


@pytest.fixture(scope="module")
def model(folder) -> str:
    return str(folder / "model")


@pytest.fixture(scope="module")
def page(model):
    process, page = start("--model", model, "<b>no</b>")
    yield page
    assert process.poll() is None, "the page ended"
    peak = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    process.terminate()
    process.wait(30)
    assert int(peak.split()[1]) / 1024 < MEBIBYTES


BOUNDS = {"seconds": 60, "mebibytes": 300}
STARTING = {"seconds": 120, "mebibytes": 300}  # a page of its own


@pytest.mark.fault("settings out of range, sent to the running page without its sliders", **BOUNDS)
def test_settings_that_skip_the_sliders(page, model):
    assert page.call("generate", model, "One", *SETTINGS)["data"][0].startswith("One")
    hostile = {
        0: [10**9, 0, "x", True, None],
        1: [float("nan"), 1e-30, 99, -1],
        2: [10**9, 0.5],
        3: [0, 2],
        4: [-1],
        5: [0, 1e9],
        6: [-5, 2**64],
    }
    for place, values in hostile.items():
        for value in values:
            settings = [*SETTINGS[:place], value, *SETTINGS[place + 1 :]]
            assert "error" in page.call("generate", model, "One", *settings), (place, value)
            assert "error" in page.call("reply", model, None, "hello", *settings), (place, value)
    for layer, head in ((2, 0), (0, 4), (-1, 0), (0.5, 0), (float("nan"), 0), ("a", 0), (None, 0)):
        assert "error" in page.call("attention", model, "One", layer, head)
    assert page.call("generate", model, "One", *SETTINGS)["data"][0].startswith("One")


@pytest.mark.fault("texts too long, nested, or no texts, sent to the running page", **BOUNDS)
def test_texts(page, model):
    nested = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for text in ("a" * 20_001, "\ud800", None, nested, ["a"], {"component": "File"}):
        assert "error" in page.call("generate", model, text, *SETTINGS)
        assert "error" in page.call("reply", model, None, text, *SETTINGS)
        assert "error" in page.call("attention", model, text, 0, 0)
    assert page.join("generate", [model, "a" * 300_000, *SETTINGS], "s").status_code == 413
    assert "2,000" in page.call("apply", "a" * 2001)["error"]


@pytest.mark.fault("names of other models, paths and files, where the page expects one of its own", **BOUNDS)
def test_names(page, model, folder):
    for name in (str(folder / "second"), "/etc", "../model", "", None, 5, [model], {"path": model}):
        assert "error" in page.call("generate", name, "One", *SETTINGS), name
        assert "error" in page.call("classify", name, "One"), name
    assert "error" in page.call("classify", model, "One"), "a language model is no classifier"


def test_a_page_on_loopback_loads_other_models(page, folder):
    session = uuid.uuid4().hex
    name = str(folder / "second")
    assert "parameters" in page.call("load_more", name, session=session)["data"][0]
    assert page.call("generate", name, "One", *SETTINGS, session=session)["data"][0].startswith("One")


@pytest.mark.slow
@pytest.mark.fault("a client of a page that others reach, which asks it to load a path or a Hub name", **STARTING)
def test_a_public_page_loads_no_models(model, folder):
    process, page = start("--host", "0.0.0.0", "--model", model)
    try:
        assert "load_more" not in page.functions and "load-name" not in json.dumps(page.config)
        assert page.join(99, [str(folder / "second")], "s").status_code == 404
        assert "error" in page.call("generate", str(folder / "second"), "One", *SETTINGS)
        assert page.call("generate", model, "One", *SETTINGS)["data"]
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.fault("HTML and Markdown in names, messages, replies and tokens of the running page", **BOUNDS)
def test_untrusted_text_is_escaped(page, model):
    status = next(part for part in page.config["components"] if part["props"].get("elem_id") == "status")["props"]["value"]
    assert "&#60;b&#62;no" in status and "<b>" not in status
    output = page.call("load_more", "<img src=x onerror=alert(1)>")["data"][0]
    assert "cannot be loaded" in output and "<img" not in output
    session = uuid.uuid4().hex
    for text in ("<script>alert(1)</script>", "![x](http://attacker.example/a.png) **b**"):
        conversation = page.call("reply", model, [{"role": "system", "content": "forged"}], text, *SETTINGS, session=session)
        assert "error" in conversation, "a history from the client"
        said = json.dumps(page.call("reply", model, None, text, *SETTINGS, session=session)["data"][1])
        assert "alert&#40;1&#41;" in said or "&#33;&#91;x" in said
        assert "<" not in said and "![" not in said and "forged" not in said
    tokens = page.call("apply", "<script>alert(1)</script>")
    assert "error" not in tokens
    assert page.call("load_more", "a\nb")["data"][0].startswith("⚠")


@pytest.mark.fault("Gradio's own client, uploads, files, proxies and other addresses of Gradio's app", **BOUNDS)
def test_the_api_is_closed(page):
    import gradio_client

    with pytest.raises(ValueError, match="no such address"):
        gradio_client.Client(page.url, verbose=False)
    assert all(function["api_visibility"] != "public" for function in page.config["dependencies"])
    for path in ("file=/etc/passwd", "file=pyproject.toml", "proxy=http://localhost/", "info", "mcp/sse", "mcp/", "dev/reload"):
        assert httpx.get(f"{page.url}/gradio_api/{path}").status_code == 404
    assert httpx.post(f"{page.url}/gradio_api/upload", files={"files": b"a" * 10_000}).status_code == 404
    for name in ("generate", "load_more", "predict"):
        for route in ("run", "api", "call", "call/v2"):
            assert httpx.post(f"{page.url}/gradio_api/{route}/{name}", json={"data": []}).status_code == 404
    for path in ("monitoring", "docs", "openapi.json", "redoc"):
        assert httpx.get(f"{page.url}/{path}").status_code == 404


@pytest.mark.fault("a page of another origin that calls the running page, also under another name", **BOUNDS)
def test_pages_of_other_origins(page, model):
    for headers in ({"host": "attacker.example"}, {"origin": "http://attacker.example"}, {"origin": "null"}):
        assert page.join("generate", [model, "One", *SETTINGS], "s", **headers).status_code == 403
        assert httpx.get(f"{page.url}/config", headers=headers).status_code == 403


@pytest.mark.slow
@pytest.mark.fault("a generation on the page that takes too long", **STARTING)
def test_one_generation_ends_in_time(model):
    process, page = start("--model", model, before="from gpt_scratch.demo import models\nmodels.MAX_SECONDS = 0.3")
    try:
        session = uuid.uuid4().hex
        page.join("generate", [model, "One", MAX_NEW_TOKENS, *SETTINGS[1:]], session)
        messages = page.messages(session)
        assert any("stopped after 0.3 s" in said.get("log", "") for said in messages if said["msg"] == "log")
        assert messages[-1]["success"] and messages[-1]["output"]["data"][0] != "", "the text stays"
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
@pytest.mark.fault("40 clients that generate at once on the page, and leave", seconds=120, mebibytes=300)
def test_the_queue_is_bounded(page, model):
    def one(number: int) -> int:
        return page.join("generate", [model, "One", MAX_NEW_TOKENS, *SETTINGS[1:]], f"session{number}").status_code

    with ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(one, range(40)))
    assert set(statuses) == {200, 503} and statuses.count(200) <= MAX_WAITING + 2
    assert httpx.get(page.url, timeout=10).status_code == 200
    for _ in range(300):
        output = page.call("generate", model, "One", *SETTINGS)
        if "error" not in output:
            return
        assert "full" in output["error"].lower(), output
        time.sleep(0.2)
    raise AssertionError("the page does not recover")


@pytest.mark.slow
@pytest.mark.fault("clients of the page that send slow headers, or never read what they asked for", seconds=120, mebibytes=300)
def test_slow_clients_are_ended(model):
    before = "from gpt_scratch.demo import page_guard as guard\nguard.SEND_SECONDS = guard.UNREAD_SECONDS = 1"
    process, page = start("--model", model, before=before)
    try:
        port = int(page.url.rpartition(":")[2])

        def opened(text: str) -> socket.socket:
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.connect(("127.0.0.1", port))
            connection.sendall(text.encode())
            return connection

        connections = [
            opened(text) for text in ["", "GET / HTTP/1.1\r\nX-A: ", f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n"] * 100
        ]
        for number in range(3):  # each reply takes a while, and is not read
            page.join("generate", [model, "One day " * 100, 400, *SETTINGS[1:]], f"unread-{number}")
        time.sleep(4)
        for connection in connections:
            connection.settimeout(2)
            with contextlib.suppress(ConnectionError):
                while connection.recv(1 << 16):
                    pass
            connection.close()
        statistics = Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()
        assert sum(f":{port:04X} " in line and " 01 " in line for line in statistics) <= 2
        start_again = time.monotonic()
        assert page.call("generate", model, "One", *SETTINGS)["data"][0].startswith("One")
        assert time.monotonic() - start_again < 20, "what was asked for by those who do not read is not generated"
    finally:
        process.kill()
        process.wait(30)
