"""Start Python in a fork of a process that has imported torch and transformers already: a script then starts in a fraction of a second, not in ten.

A process that only imports waits for requests; each is answered by a fork, which becomes the process that was asked for: its own session,
folder, environment, standard streams, arguments, and exit status. What a test proves about a script holds as before, except what it imports
itself and when; tests of that start Python.

    process = warm.start([sys.executable, "script.py", "--flag"], stdin, stdout, stderr, cwd=folder, env=os.environ | {"NAME": "value"})
    done = warm.run([sys.executable, "-c", "print('on')"])     # as subprocess.run, with what it wrote as text
"""

import atexit
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

# Read while a library is imported: a process with another value than this one's starts Python.
READ_AT_IMPORT = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "OMP_", "MKL_", "TORCH", "PYTHON", "LD_", "KMP_", "XDG_", "HOME", "MPL")
IMPORTS = "torch, transformers, transformers.trainer, datasets, tokenizers, accelerate, safetensors.torch, matplotlib.figure, gpt_scratch"
ROOT = Path(__file__).resolve().parents[1]


class Process:
    """A fork, with what `subprocess.Popen` has of it: `pid`, `returncode`, `poll`, `wait`, `send_signal`, `kill`."""

    def __init__(self, server: "_Server", pid: int):
        self._server, self.pid, self.returncode = server, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """
        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        start, pause = time.monotonic(), 0.002
        while (status := self.poll()) is None:
            if timeout is not None and time.monotonic() - start > timeout:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], start_new_session=True, cwd=ROOT
        )
        theirs.close()
        self.socket = ours
        self.answers = ours.makefile("r", encoding="utf-8")
        atexit.register(self.process.kill)

    def ask(self, request: dict[str, Any], streams: Sequence[int] = ()) -> Any:
        data = json.dumps(request).encode() + b"\n"
        if streams:
            socket.send_fds(self.socket, [data[:1]], streams)
            data = data[1:]
        self.socket.sendall(data)
        return json.loads(self.answers.readline())


@cache
def _server() -> _Server:
    return _Server()


def can_start(command: Sequence[str | Path], env: dict[str, str] | None) -> bool:
    """Whether a fork does what Python would: its environment has nothing that an import would have read."""
    if (
        str(command[0]) != sys.executable
        or not hasattr(os, "fork")
        or (str(command[1]).startswith("-") and command[1] not in ("-c", "-m"))
    ):
        return False
    env = dict(os.environ) if env is None else env
    changed = {name for name in env.keys() | os.environ.keys() if env.get(name) != os.environ.get(name)}
    if env.get("PYTHONPATH") == str(ROOT):  # where it has imported the package from
        changed.discard("PYTHONPATH")
    return not any(name.startswith(READ_AT_IMPORT) for name in changed)


def start(
    command: Sequence[str | Path],
    stdin: IO[Any] | int,
    stdout: IO[Any] | int,
    stderr: IO[Any] | int,
    cwd: str | Path | None = None,
    env: dict[str, str] | None = None,
) -> Process | subprocess.Popen[str]:
    """`[sys.executable, ...]` as a fork in a session of its own where [`can_start`], else by `subprocess`; the streams are open files or `DEVNULL`."""
    words = [str(word) for word in command]
    if not can_start(command, env):
        return subprocess.Popen(words, stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, env=env, start_new_session=True)
    request = {"command": words[1:], "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
    with open(os.devnull, "r+") as nothing:
        streams = [
            nothing.fileno() if stream is subprocess.DEVNULL else stream.fileno()  # type: ignore[union-attr]
            for stream in (stdin, stdout, stderr)
        ]
        return Process(_server(), _server().ask(request, streams))


def run(
    command: Sequence[str | Path],
    cwd: str | Path | None = None,
    env: dict[str, str] | None = None,
    input: str = "",
    timeout: float = 600,
    check: bool = False,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(..., capture_output=True, text=True)`."""
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        stdin.write(input.encode("utf-8", "surrogateescape"))
        stdin.seek(0)
        process = start(command, stdin, stdout, stderr, cwd, env)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        texts = [written(stream) for stream in (stdout, stderr)]
    done = subprocess.CompletedProcess([str(word) for word in command], status, *texts)
    if check:
        assert status == 0, texts[1][-3000:]
    return done


def written(stream: IO[bytes]) -> str:
    """All of a file that a process has written to."""
    stream.seek(0)
    return stream.read().decode("utf-8", "replace")


def _serve(connection: socket.socket) -> None:
    """Answer requests until the other end is closed. In a fork it returns, and the interpreter becomes what was asked for."""
    for name in IMPORTS.split(", "):
        __import__(name)
    gc.freeze()  # else the first collection of each fork copies what was imported
    while True:
        data, streams, _, _ = socket.recv_fds(connection, 1, 3)
        if not data:
            os._exit(0)
        while not data.endswith(b"\n"):
            data += connection.recv(1 << 20)
        request = json.loads(data)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif answer := os.fork():
            for stream in streams:
                os.close(stream)
        else:
            connection.close()
            _become(request, streams)
            return
        connection.sendall(json.dumps(answer).encode() + b"\n")


def _become(request: dict[str, Any], streams: list[int]) -> None:
    os.setsid()
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
        os.close(stream)
    os.chdir(request["cwd"])
    for name in os.environ.keys() - request["env"].keys():
        del os.environ[name]
    os.environ.update(request["env"])
    sys.argv = request["command"]


def _run() -> None:
    """`python FILE ...`, `python -c CODE ...` or `python -m MODULE ...` of `sys.argv`, as the interpreter does it."""
    sys.modules["__main__"] = types.ModuleType("__main__")
    if sys.argv[0] == "-c":
        code = sys.argv.pop(1)
        sys.path[0] = ""
        exec(compile(code, "<string>", "exec"), sys.modules["__main__"].__dict__)
    elif sys.argv[0] == "-m":
        sys.path[0] = os.getcwd()
        del sys.argv[0]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    _run()
