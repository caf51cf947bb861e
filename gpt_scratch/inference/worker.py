"""Runs an ASGI app in a separate thread, one request at a time, so that the server's event loop is not blocked.

Chat templates, tokenizers and long prompts can block the loop of the stock app for seconds; `/health` and refusals still respond.
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
    """A thread with an event loop that runs the app.

    Args:
        app: an ASGI app.
    """

    def __init__(self, app: Callable):
        self.app = app
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="worker", daemon=True).start()

    def start(self, path: str, body: bytes) -> "Answer":
        """POST `body` to the app; call it in the server's event loop."""
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
            # Without the client's headers: the stock app would use x-request-id, for instance.
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
            if given:  # a disconnected client ends the generation, which ends the response: see `guard`
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
    """A queue of the app's messages for the server's event loop.

    It never waits for the client: the size of a reply is limited, and a client that does not read must not delay the next one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.done = asyncio.Event()  # set when the app has returned and nothing of this request is running

    def put(self, message: dict[str, Any]) -> None:
        """Called in the worker's thread."""
        self.loop.call_soon_threadsafe(self._put, message)

    def _put(self, message: dict[str, Any]) -> None:
        self.messages.put_nowait(message)
        if message["type"] == "end":
            self.done.set()


class Turns:
    """A queue for one request at a time, with at most `max_waiting` waiting requests."""

    def __init__(self, max_waiting: int):
        self.max_waiting = max_waiting
        self.waiting = 0
        self.lock = asyncio.Lock()
        self.seconds = 1.0  # average duration of recent generations

    def take(self) -> asyncio.Task:
        """A task that completes when it is this request's turn; cancel it to leave the queue.

        Raises:
            Refusal: the queue is full.
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
        """Status 429, with the estimated seconds in Retry-After."""
        seconds = min(60, max(1, round(self.seconds * (self.waiting + 1))))
        return Refusal(429, f"the server is busy: {why}", code="busy", headers={"Retry-After": str(seconds)})

    def finished(self, generation: Generation) -> None:
        """Release the turn."""
        self.seconds += 0.2 * (time.monotonic() - generation.started - self.seconds)
        self.lock.release()
