"""scripts/serve.py in a process of its own with a tiny model, and plain HTTP against it: for the tests of serving."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import warm
from bounds import resident

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.inference.limits import Limits
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

ROOT = Path(__file__).resolve().parents[2]
WORDS = "one two three four five six seven eight nine ten"
KEY = "correct-horse-battery-staple"
MEBIBYTES = 900
LIMITS = Limits(max_tokens=3000, max_characters=20_000, time_limit=2, max_waiting=2, max_connections=40, send_seconds=1.5)


def make_model(path: Path, positions: int = 4096) -> GPTScratchForCausalLM:
    """A model that never ends its reply by itself, with a chat template."""
    tokenizer = train_byte_level_bpe([WORDS], vocab_size=270)
    set_prompt_style(tokenizer, "phi3")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": positions}
    model = GPTScratchForCausalLM(GPTScratchConfig(**sizes, initializer_range=0.2, drop_rate=0.0)).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(path)
    return model


@dataclass
class Server:
    """A server that answers."""

    process: warm.Process | subprocess.Popen[str]
    port: int
    model: str
    log: Path
    key: str | None

    @property
    def mebibytes(self) -> float:
        """Resident memory."""
        return resident(self.process.pid) / 2**20

    def ask(self, path: str, body=None, headers: dict[str, str] | None = None, method: str | None = None, seconds: float = 60):
        """Status, headers and text of the answer; `body` is JSON, or bytes as they are."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request(method or ("GET" if data is None else "POST"), path, data, given | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode()
        finally:
            connection.close()

    def error(self, *arguments, **settings) -> tuple[int, dict]:
        """Status and the error of the answer, which must be in OpenAI's form."""
        status, _, text = self.ask(*arguments, **settings)
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"], text
        return status, error


@contextmanager
def serving(model: Path, log: Path, *flags: str, key: str | None = None, env: dict[str, str] | None = None) -> Iterator[Server]:
    """A server on a free port; ended at exit, when its log must hold no traceback."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | (env or {})
    environment.pop("GPT_SCRATCH_API_KEY", None)
    environment |= {"GPT_SCRATCH_API_KEY": key} if key else {}
    command = [sys.executable, str(ROOT / "scripts" / "serve.py"), str(model), "--port", "0", "--device", "cpu", *flags]
    with log.open("w", encoding="utf-8") as file:
        process = warm.start(command, subprocess.DEVNULL, file, file, env=environment)
    try:
        server = Server(process, _port(process, log), str(model), log, key)
        for _ in range(600):
            try:
                assert server.ask("/health")[0] == 200
                break
            except OSError:
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)


def _port(process: warm.Process | subprocess.Popen[str], log: Path) -> int:
    for _ in range(1200):
        if found := re.search(r"at http://127\.0\.0\.1:(\d+)/v1", log.read_text(encoding="utf-8")):
            return int(found[1])
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))


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
