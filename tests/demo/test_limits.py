"""What a visitor gives to the page, checked without Gradio: texts, numbers, names, and whole requests at the middleware."""

import asyncio
import html
import json
import math

import pytest

from gpt_scratch.demo import models
from gpt_scratch.demo.__main__ import main, parse
from gpt_scratch.demo.limits import (
    MAX_CHARACTERS,
    MAX_MODELS,
    check_choice,
    check_new_name,
    check_settings,
    check_text,
    plain_markdown,
    plain_message,
)
from gpt_scratch.demo.models import Sampling, TimeIsUp, load_model, stream_reply, stream_text
from gpt_scratch.demo.page_guard import MAX_BODY_BYTES, MAX_REQUESTS, PageGuard
from gpt_scratch.errors import UserError

BOUNDS = {"seconds": 20, "mebibytes": 300}


@pytest.mark.fault("settings of the page out of range, NaN, infinite, of other types", **BOUNDS)
def test_settings():
    check_settings(vars(Sampling()))
    check_settings(
        vars(Sampling(max_new_tokens=1, temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1.0, seed=2**32 - 1))
    )
    hostile = ["5", None, True, [5], {}, math.nan, math.inf, -math.inf, -1, 10**400, 1e300]
    for name in vars(Sampling()):
        for value in hostile:
            with pytest.raises(UserError, match=f"^{name} (is|must be) .{{1,100}}$"):
                Sampling(**{name: value})
    for name, value in {
        "max_new_tokens": 1.5,
        "temperature": 1e-30,
        "top_k": 0.5,
        "seed": 0.5,
        "top_p": 0,
        "repetition_penalty": 0,
    }.items():
        with pytest.raises(UserError, match=name):
            Sampling(**{name: value})


@pytest.mark.fault("texts for the page that are too long, no texts, or half of a surrogate pair", **BOUNDS)
def test_texts():
    assert check_text("a" * MAX_CHARACTERS)
    for value in (None, 5, ["a"], {"path": "/etc/passwd"}, "a" * (MAX_CHARACTERS + 1), "\ud800"):
        with pytest.raises(UserError):
            check_text(value)


@pytest.mark.fault("names of models that the page does not offer, and too many models", **BOUNDS)
def test_names():
    assert check_choice("a", ["a"]) == "a" and check_new_name(" a/b ", []) == "a/b"
    for value in ("b", "", None, ["a"], {"a": 1}, "../a", "/etc"):
        with pytest.raises(UserError, match="choose one of the models"):
            check_choice(value, ["a"])
    many = [str(i) for i in range(MAX_MODELS)]
    assert check_new_name("3", many) == "3"
    for value, loaded in (("", []), (None, []), ("a\nb", []), ("a\x1b[2J", []), ("a" * 501, []), ("new", many)):
        with pytest.raises(UserError):
            check_new_name(value, loaded)


@pytest.mark.fault("HTML and Markdown in texts and errors that the page shows", **BOUNDS)
def test_shown_texts():
    for text in (
        "<script>alert(1)</script>",
        "![x](http://a/b)",
        "[x](javascript:alert(1))",
        "`a` *b* _c_ $$d$$ # e",
        "a &lt; b",
    ):
        shown = plain_markdown(text)
        assert html.unescape(shown) == text
        assert not set(shown) & set("<>[]()!`*_$:")
        assert "<" not in plain_message(UserError(text))
    assert plain_markdown("a\n    b\n\tc") == f"a\n{4 * chr(160)}b\n{4 * chr(160)}c"


def test_one_generation_ends_in_time(tmp_path, monkeypatch):
    import torch

    from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
    from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

    tokenizer = train_byte_level_bpe(["One day"], vocab_size=260)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64}
    GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path))
    steps = stream_text(loaded, "One", Sampling())
    next(steps)
    monkeypatch.setattr(models.time, "monotonic", lambda: math.inf)
    with pytest.raises(TimeIsUp, match="stopped after 60 s"):
        next(steps)
    monkeypatch.undo()
    with pytest.raises(UserError, match="20,001 characters"):
        next(stream_reply(loaded, [{"role": "user", "content": "a" * (MAX_CHARACTERS + 1)}], Sampling()))


@pytest.mark.fault("a page for others without models, and ports that are none", **BOUNDS)
def test_flags():
    for flags, message in (
        (["--host", "0.0.0.0"], "give them with --model"),
        (["--port", "0"], "--port is 0"),
        (["--port", "70000"], "--port is 70000"),
    ):
        with pytest.raises(UserError, match=message):
            main(parse(flags))


JOIN = {"fn_index": 3, "data": ["a", 1, None], "session_hash": "abc"}


def ask(path="/", method="GET", body=b"", headers=(), hosts=frozenset({"localhost"}), messages=None, guard=None) -> int:
    """The status that the middleware, or the app behind it (200, if it got this body), answers."""
    sent: list[dict] = []
    waiting = messages or [{"type": "http.request", "body": body}]

    async def app(scope, receive, send):
        if method == "POST":
            assert (await receive())["body"] == body
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        if not waiting:
            await asyncio.sleep(3600)
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    given = {b"host": b"localhost:7860"} | dict(headers)
    scope = {"type": "http", "method": method, "path": path, "headers": [item for item in given.items() if item[1] is not None]}
    if guard is None:
        guard = PageGuard(app, hosts, {3})
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"]


def join(**changes) -> int:
    return ask("/gradio_api/queue/join", "POST", json.dumps(JOIN | changes).encode())


def test_what_the_page_needs_passes():
    for path in (
        "/",
        "/config",
        "/assets/index-1.js",
        "/static/fonts/a/b.woff2",
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/a1",
    ):
        assert ask(path) == 200
    assert ask(headers={b"origin": b"http://localhost:7860"}) == 200
    assert ask(headers={b"host": b"elsewhere", b"origin": b"http://a"}, hosts=None) == 200
    assert join() == 200
    cancel = json.dumps({"session_hash": "a", "event_id": "b", "fn_index": 3}).encode()
    assert ask("/gradio_api/cancel", "POST", cancel) == 200


@pytest.mark.fault("addresses of Gradio that the page does not need: uploads, files, proxies, the API", **BOUNDS)
def test_closed_addresses():
    read = [
        "file=/etc/passwd",
        "file/etc/passwd",
        "proxy=http://a",
        "info",
        "openapi.json",
        "call/generate/1",
        "upload_progress",
        "dev/reload",
    ]
    for path in [
        *(f"/gradio_api/{name}" for name in read),
        "/monitoring",
        "/monitoring/summary",
        "/docs",
        "/openapi.json",
        "/static/../a",
        "/x",
    ]:
        assert ask(path) == 404, path
    write = [
        "upload",
        "run/generate",
        "api/generate",
        "call/generate",
        "call/v2/generate",
        "component_server",
        "process_recording",
        "vibe-edit",
    ]
    for path in [*(f"/gradio_api/{name}" for name in write), "/login", "/"]:
        assert ask(path, "POST", b"{}") == 404, path
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert ask("/gradio_api/queue/join", method) == 404


@pytest.mark.fault("a page elsewhere, or under another name for this machine, that talks to the page", **BOUNDS)
def test_pages_elsewhere():
    for headers in (
        {b"host": b"attacker.example"},
        {b"host": b"localhost.attacker.example:7860"},
        {b"host": b"a@localhost"},
        {b"host": None},
        {b"origin": b"http://attacker.example"},
        {b"origin": b"http://localhost:1"},
        {b"origin": b"null"},
    ):
        assert ask(headers=headers) == 403, headers


@pytest.mark.fault("requests to the page that are too long, nested, slow, or of another form", **BOUNDS)
def test_bodies(monkeypatch):
    for body in (
        b"",
        b"[" * 100_000,
        b"[]",
        b"{",
        b"\xff",
        b'{"session_hash": 5}',
        b'{"session_hash": "a", "x": %s}' % (b"1" * 5000),
    ):
        assert ask("/gradio_api/queue/join", "POST", body) == 400, body[:20]
    assert ask("/gradio_api/queue/join", "POST", b" " * (MAX_BODY_BYTES + 1)) == 413
    pieces = [{"type": "http.request", "body": b" " * 1000, "more_body": True} for _ in range(1000)]
    assert ask("/gradio_api/queue/join", "POST", messages=pieces) == 413 and len(pieces) > 700
    for index in (99, -1, "3", None, True, 3.0):
        assert join(fn_index=index) == 404
    nested = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    for data in (None, "a", {}, [nested], [["a"]], ["a"] * 17):
        assert join(data=data) == 400
    assert join(session_hash="a" * 101) == 400
    monkeypatch.setattr("gpt_scratch.demo.page_guard.BODY_SECONDS", 0.1)
    assert ask("/gradio_api/queue/join", "POST", messages=[{"type": "http.request", "body": b"{", "more_body": True}]) == 408


@pytest.mark.fault("more requests open at once than the page takes", **BOUNDS)
def test_open_requests():
    guard = PageGuard(None, {"localhost"}, {3})
    guard.open = MAX_REQUESTS
    assert ask(guard=guard) == 503 and guard.open == MAX_REQUESTS


@pytest.mark.fault("sessions of the page that ask for something and never read the answer", **BOUNDS)
def test_what_nobody_reads_is_forgotten(monkeypatch):
    monkeypatch.setattr("gpt_scratch.demo.page_guard.UNREAD_SECONDS", 0.3)
    forgotten, ended = [], asyncio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["method"] == "GET":
            await ended.wait()

    async def forget(session):
        forgotten.append(session)

    async def send(message):
        pass

    guard = PageGuard(app, None, {3}, forget)

    def request(session, read=False):
        waiting = [{"type": "http.request", "body": json.dumps(JOIN | {"session_hash": session}).encode()}]

        async def receive():
            return waiting.pop()

        path, method = ("/gradio_api/queue/data", "GET") if read else ("/gradio_api/queue/join", "POST")
        query = f"session_hash={session}".encode()
        return guard({"type": "http", "method": method, "path": path, "query_string": query, "headers": []}, receive, send)

    async def visit():
        for session in ("read", "unread", "unread", "None"):
            await request(session if session != "None" else None)
        reader = asyncio.create_task(request("read", read=True))
        await asyncio.sleep(0.6)
        assert sorted(forgotten) == ["None", "unread"] and not guard.unread
        await request("read")  # while it is read
        ended.set()
        await reader
        await asyncio.sleep(0.1)
        await request("read")  # and again, soon after
        await asyncio.sleep(0.1)
        assert sorted(forgotten) == ["None", "unread"]
        await asyncio.sleep(0.6)
        assert sorted(forgotten) == ["None", "read", "unread"] and not guard.unread and not guard.readers

    asyncio.run(visit())
