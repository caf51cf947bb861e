"""What reaches the page's server: its own addresses, from its own origin, within bounds."""

import asyncio
import json

import pytest

from gpt_scratch.demo.page_guard import MAX_BODY_BYTES, MAX_REQUESTS, PageGuard

BOUNDS = {"seconds": 20, "mebibytes": 300}


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


def test_requests_of_the_page_pass():
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


@pytest.mark.fault("a page of another origin, or under another name for this machine, that calls the page", **BOUNDS)
def test_pages_of_other_origins():
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
def test_unread_events_are_discarded(monkeypatch):
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
