"""The stand-in Hub, hostile: it answers wrongly, and redirects to another host that collects tokens."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from stand_in_hub import StandInHub, _Handler
from tiny_models import tiny_model

from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

HTML = b"<html><body>Log in to the network of this hotel</body></html>"
BOUNDS = {"seconds": 20, "mebibytes": 500}


def save_model(folder: Path) -> None:
    """What stands on the Hub: a tiny model and its tokenizer."""
    tiny_model("gpt2", vocab_size=300).save_pretrained(folder)
    train_byte_level_bpe(["One day, Anna lost her key."] * 9, vocab_size=300).save_pretrained(folder)


@dataclass
class Answer:
    """The answer that the Hub is about to send; an attack changes it."""

    status: int
    headers: dict[str, str]
    body: bytes
    endless: bool = False  # in chunks, without a size, until the client closes the connection

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def say(self, value: Any) -> None:
        """Another value of JSON."""
        self.body = json.dumps(value).encode()


@dataclass
class Stranger:
    """A host that is not the Hub: takes whatever is sent, and keeps the headers of each request."""

    requests: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: Any) -> None:
                pass

            def handle_request(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stranger.requests.append({name.lower(): value for name, value in self.headers.items()})
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "2")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(b"{}")

            do_GET = do_HEAD = do_POST = do_PUT = handle_request

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://localhost:{self.server.server_address[1]}"  # the Hub is 127.0.0.1


class HostileHub(StandInHub):
    """`attack(method, path, answer)` may change each answer. `reached` holds the paths it was called for and changed."""

    def __init__(self) -> None:
        super().__init__()
        self.server.RequestHandlerClass = type("Handler", (_HostileHandler,), {"hub": self})
        self.server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]  # a client that had enough
        self.attack: Callable[[str, str, Answer], None] = lambda method, path, answer: None
        self.reached: list[str] = []
        self.sent = 0  # bytes of answers without end
        self.stranger = Stranger()

    def __enter__(self) -> "HostileHub":
        super().__enter__()
        threading.Thread(target=self.stranger.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self.stranger.server.shutdown()
        self.stranger.server.server_close()


class _HostileHandler(_Handler):
    hub: HostileHub

    def answer(
        self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> None:
        given = dict(headers or {})
        given.pop("Content-Length", None)
        if body is None:
            body, given = json.dumps(value).encode(), {"Content-Type": "application/json"} | given
        answer = Answer(status, dict(given), body)
        path = unquote(urlsplit(self.path).path)
        self.hub.attack(self.command, path, answer)
        if (answer.status, answer.headers, answer.body) != (status, given, body):
            self.hub.reached.append(path)
        if answer.endless:
            self.hub.reached.append(path)
            return self.answer_without_end(answer)
        super().answer(None, answer.status, answer.headers, answer.body)

    def answer_without_end(self, answer: Answer) -> None:
        self.close_connection = True
        self.send_response(answer.status)
        # Said, or the client sends its next request through a connection that is being closed.
        for name, text in (answer.headers | {"Transfer-Encoding": "chunked", "Connection": "close"}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            for _ in range(1 << 15):  # 32 GiB
                self.wfile.write(b"100000\r\n" + b"x" * (1 << 20) + b"\r\n")
                self.hub.sent += 1 << 20
