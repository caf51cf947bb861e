"""A load test of scripts/serve.py: many clients at once, half of their requests valid and half hostile, against a real server of a tiny model.

    python tests/inference/load_server.py --clients 200 --seconds 60

Prints a Markdown table. The exit status is 1 if the server ended or did not end on SIGTERM, needed more memory than its bound, logged a traceback, left a
valid request without a whole answer (429 with Retry-After is one, but some must get 200), let `/health` wait, or answered a hostile request with anything but
its refusal. Linux only, since memory is read from /proc.
"""

# ruff: noqa: E402

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]  # bounds.py, and the package

from served import Server, make_model, serving

NO_ANSWER = "no answer"  # the connection ended before one came
BROKEN = "broken"  # a reply that is not whole, 429 without Retry-After, or an answer that did not come in time
PATIENCE = 90.0  # seconds: 60 for the turn, and then some
HEALTH_SECONDS = 5.0  # on a busy machine; nothing that the server does may hold /health up longer
BIG = b" " * 10_000_000


@dataclass(frozen=True)
class Kind:
    """Requests of one kind: what is sent, with which share of all requests, and which answers are right."""

    name: str
    share: float
    right: tuple[int | str, ...]
    request: Callable[[str], tuple[bytes, bytes]]  # of the model's name: head and body
    manner: str = "whole"  # "drip": the head never ends; "leave": the client goes away while it is answered


@dataclass
class Findings:
    """What happened: answers by kind and status, latencies in seconds, memory in MiB."""

    answers: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    mebibytes: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    ended: str = ""


def post(path: str, body: bytes, host: str = "127.0.0.1") -> tuple[bytes, bytes]:
    """Head and body of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return (head + "Connection: close\r\n\r\n").encode(), body


def completion(model: str, host: str = "127.0.0.1", **settings: object) -> tuple[bytes, bytes]:
    """A short completion."""
    question = {"model": model, "prompt": "one two", "max_tokens": 8, "temperature": 0} | settings
    return post("/v1/completions", json.dumps(question).encode(), host)


def chat(model: str) -> tuple[bytes, bytes]:
    """A short conversation."""
    question = {"model": model, "messages": [{"role": "user", "content": "one two"}], "max_tokens": 8}
    return post("/v1/chat/completions", json.dumps(question).encode())


KINDS = [
    Kind("valid: completion", 3, (200, 429), completion),
    Kind("valid: chat", 2, (200, 429), chat),
    Kind("valid: streamed completion", 2, (200, 429), lambda model: completion(model, stream=True)),
    Kind("JSON that breaks off", 1, (400,), lambda model: post("/v1/completions", b'{"model": ')),
    # Their answer is lost where the kernel resets the connection under a client that still sends.
    Kind("body of 10 MB", 1, (413, NO_ANSWER), lambda model: post("/v1/completions", BIG)),
    Kind("stop string of 10^6 characters", 1, (413, NO_ANSWER), lambda model: completion(model, stop="a" * 10**6)),
    Kind("stop string of 10^4 characters", 1, (400,), lambda model: completion(model, stop="a" * 10**4)),
    Kind("forbidden field", 1, (400,), lambda model: completion(model, num_beams=10**6)),
    Kind("wrong Host", 1, (403,), lambda model: completion(model, host="evil.example")),
    Kind("headers that drip", 1, (NO_ANSWER,), completion, "drip"),
    Kind("client that goes away", 1, (NO_ANSWER, 429), lambda model: completion(model, max_tokens=1000), "leave"),
]  # fmt: skip


async def exchange(port: int, kind: Kind, model: str) -> tuple[int | str, float]:
    """One request on a connection of its own: its status, or what came instead, and for how many seconds to wait before the next."""
    answer = b""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return NO_ANSWER, 0.1
    try:
        head, body = kind.request(model)
        if kind.manner == "drip":
            writer.write(head[:-2])
            while not reader.at_eof() and not writer.is_closing():
                writer.write(b"X-A: b\r\n")
                await asyncio.sleep(0.5)
            return NO_ANSWER, 0
        writer.write(head + body)
        await writer.drain()
        if kind.manner == "leave":
            answer = await asyncio.wait_for(reader.read(4096), 0.2)
        else:
            answer = await reader.read()
    except TimeoutError:  # this client leaves
        pass
    except OSError:
        return NO_ANSWER, 0
    finally:
        writer.transport.abort()
    return judge(kind, answer)


def judge(kind: Kind, answer: bytes) -> tuple[int | str, float]:
    """Status of an answer and its Retry-After."""
    if not answer:
        return NO_ANSWER, 0
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    if status == 429:
        return (429, float(lines[b"retry-after"])) if b"retry-after" in lines else (BROKEN, 0)
    if status == 200 and b'"length"' not in body:  # the reason why each of these replies ends
        return BROKEN, 0
    return status, 0


async def client(server: Server, until: float, draw: random.Random, findings: Findings) -> None:
    """One request after the other; after a 429 it waits as long as the answer says."""
    while time.monotonic() < until:
        kind = draw.choices(KINDS, [kind.share for kind in KINDS])[0]
        start = time.monotonic()
        try:
            status, wait = await asyncio.wait_for(exchange(server.port, kind, server.model), PATIENCE)
        except TimeoutError:
            status, wait = BROKEN, 0
        findings.answers[kind.name][status] += 1
        if status == 200 or not kind.name.startswith("valid"):
            findings.seconds[kind.name].append(time.monotonic() - start)
        await asyncio.sleep(max(0, min(wait, until - time.monotonic())))


async def watch(server: Server, findings: Findings) -> None:
    """Memory, and how soon /health is answered, four times a second."""
    health = Kind("/health", 0, (200,), lambda model: (b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b""))
    while True:
        findings.mebibytes.append(server.mebibytes)
        start = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(health.request("")[0])
        answer = await reader.read()
        writer.close()
        findings.answers[health.name][int(answer.split(b" ", 2)[1])] += 1
        findings.seconds[health.name].append(time.monotonic() - start)
        await asyncio.sleep(0.25)


async def load(server: Server, clients: int, seconds: float, seed: int, findings: Findings) -> None:
    """All clients at once, until the last has its answer."""
    watcher = asyncio.ensure_future(watch(server, findings))
    until = time.monotonic() + seconds
    await asyncio.gather(*(client(server, until, random.Random(f"{seed} {i}"), findings) for i in range(clients)))
    if watcher.done():
        findings.problems.append(f"/health was not answered: {watcher.exception()!r}")
    watcher.cancel()


def find_problems(findings: Findings, most: float) -> None:
    """Compare what happened with what should have."""
    for kind in KINDS:
        for status, count in findings.answers[kind.name].items():
            if status not in kind.right:
                findings.problems.append(f"{kind.name}: {status} {count} times")
    valid = sum((findings.answers[kind.name] for kind in KINDS if kind.name.startswith("valid")), Counter())
    if not valid[200]:
        findings.problems.append("no valid request got status 200")
    if max(findings.mebibytes) > most:
        findings.problems.append(f"needed {max(findings.mebibytes):.0f} MiB, more than {most:g}")
    if set(findings.answers["/health"]) != {200} or max(findings.seconds["/health"]) > HEALTH_SECONDS:
        findings.problems.append(f"/health was not answered within {HEALTH_SECONDS:g} s")


def table_of(findings: Findings) -> str:
    """The Markdown table, and a line on memory and the end."""
    lines = [
        "| requests | number | 200 | refused | no answer | broken | p50, ms | p95, ms | max, ms |",
        "|---|---" + "|---:" * 7 + "|",
    ]
    for name in [kind.name for kind in KINDS] + ["/health"]:
        answers, seconds = findings.answers[name], findings.seconds[name]
        refused = ", ".join(
            f"{count:,} x {status}" for status, count in answers.items() if status not in (200, NO_ANSWER, BROKEN)
        )
        cuts = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else (seconds or [0.0]) * 19
        latency = " | ".join(f"{1000 * value:,.0f}" for value in (cuts[9], cuts[18], max(seconds, default=0.0)))
        counts = f"{answers.total():,} | {answers[200]:,} | {refused or 0} | {answers[NO_ANSWER]:,} | {answers[BROKEN]:,}"
        lines.append(f"| {name} | {counts} | {latency} |")
    start, peak, end = findings.mebibytes[0], max(findings.mebibytes), findings.mebibytes[-1]
    lines += ["", f"Resident memory: {start:.0f} MiB at the start, {peak:.0f} at most, {end:.0f} at the end. {findings.ended}"]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the load test; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="after which no client asks again")
    parser.add_argument("--mebibytes", type=float, default=900.0, help="most memory of the server and its children")
    parser.add_argument("--seed", type=int, default=0, help="of the order of requests")
    args = parser.parse_args(argv)
    findings = Findings()
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name) / "model")
        with serving(Path(name) / "model", Path(name) / "log") as server:
            asyncio.run(load(server, args.clients, args.seconds, args.seed, findings))
            ended = server.process.poll()
            if ended is None and server.ask("/v1/models")[0] != 200:
                findings.problems.append("nothing is answered after the load")
        findings.ended = (
            f"The server ended by itself, status {ended}." if ended is not None else "The server ran until SIGTERM ended it."
        )
        if ended is not None or server.process.returncode not in (0, -15):
            findings.problems.append(f"the server ended with status {server.process.returncode}")
        if "Traceback" in (log := server.log.read_text(encoding="utf-8")):
            findings.problems.append("the server's log holds a traceback: " + log[log.index("Traceback") :][:3000])
    find_problems(findings, args.mebibytes)
    print(table_of(findings))
    for problem in findings.problems:
        print(f"failed: {problem}", file=sys.stderr)
    return 1 if findings.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
