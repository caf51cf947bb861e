"""Answers one request after the other with an ASGI app in a thread of its own, so that the server's event loop stays free.

A chat template, a tokenizer or a long prompt can hold the stock app's loop for seconds; `/health` and refusals are answered meanwhile.
"""

import asyncio
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from .refusal import Refusal
from .served_model import Generation


class Worker:
    """A thread with an event loop; the app runs there.

    Args:
        app: an ASGI app.
    """

    def __init__(self, app: Callable):
        self.app = app
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="worker", daemon=True).start()

    def start(self, path: str, body: bytes) -> "Answer":
        """POST `body` to the app; to be called in the server's event loop."""
        answer = Answer(asyncio.get_running_loop())
        asyncio.run_coroutine_threadsafe(self._run(path, body, answer), self.loop)
        return answer

    async def _run(self, path: str, body: bytes, answer: "Answer") -> None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            # Nothing of the client's own headers: the stock app takes over x-request-id, for instance.
            "headers": [
                (b"host", b"localhost"),
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", uuid.uuid4().hex.encode()),
            ],
            "client": None,
            "server": None,
            "state": {},
        }
        given = False

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:  # a client that went away ends the generation, and the generation the answer: see `guard`
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answer.put(message)

        error: Exception | None = None
        try:
            await self.app(scope, receive, send)
        except Exception as raised:
            error = raised
        answer.put({"type": "end", "error": error})


class Answer:
    """The app's messages on their way to the server's event loop.

    It never waits for the client: a reply is bounded by its tokens, and a client that does not read must not hold up the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.done = asyncio.Event()  # the app has returned, so nothing of this request runs any more

    def put(self, message: dict[str, Any]) -> None:
        """Called in the worker's thread."""
        self.loop.call_soon_threadsafe(self._put, message)

    def _put(self, message: dict[str, Any]) -> None:
        self.messages.put_nowait(message)
        if message["type"] == "end":
            self.done.set()


class Turns:
    """One request at a time; the others wait in order, as many as `max_waiting`."""

    def __init__(self, max_waiting: int):
        self.max_waiting = max_waiting
        self.waiting = 0
        self.lock = asyncio.Lock()
        self.seconds = 1.0  # of the last generations, roughly

    def take(self) -> asyncio.Task:
        """A task that is done when the turn has come; a caller that gives up before cancels it.

        Raises:
            Refusal: too many wait already.
        """
        if self.waiting >= self.max_waiting + (not self.lock.locked()):
            raise self.busy(f"{self.waiting} requests are waiting already")
        self.waiting += 1
        task = asyncio.ensure_future(self.lock.acquire())
        task.add_done_callback(self._no_longer_waiting)
        return task

    def _no_longer_waiting(self, task: asyncio.Task) -> None:
        self.waiting -= 1

    def busy(self, why: str) -> Refusal:
        """Status 429, with the whole seconds after which it is worth trying again."""
        seconds = min(60, max(1, round(self.seconds * (self.waiting + 1))))
        return Refusal(429, f"the server is busy: {why}", code="busy", headers={"Retry-After": str(seconds)})

    def finished(self, generation: Generation) -> None:
        """The turn is over."""
        self.seconds += 0.2 * (time.monotonic() - generation.started - self.seconds)
        self.lock.release()
