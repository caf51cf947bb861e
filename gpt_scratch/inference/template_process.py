"""The process that renders chat templates for `chat_template.py`: requests on standard input, responses on standard output.

A request is its length (8 bytes) and a `marshal` of function, arguments and limits; a response is its length and JSON, since the process is
untrusted after it has run a template. It is run as a file: it does not import this package, and only torch-free parts of transformers.
"""

import json
import marshal
import math
import os
import signal
import struct
import sys
from contextlib import suppress
from pathlib import Path

from transformers.utils import chat_template_utils

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def address_space() -> int:
    """Bytes of address space of this process; Linux only, a guess on other systems."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


def limit(start: int, seconds: float, mebibytes: int) -> None:
    """Limit memory and CPU time; the wall-clock limit is enforced by the parent process."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + seconds)
    for kind, value in ((resource.RLIMIT_AS, start + mebibytes * 2**20), (resource.RLIMIT_CPU, cpu)):
        with suppress(ValueError, OSError):  # a lower limit is set, or the system does not support it
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def answer(request: bytes, start: int) -> bytes:
    """The JSON response with a result or an error."""
    name, args, kwargs, seconds, mebibytes, max_characters = marshal.loads(request)
    limit(start, seconds, mebibytes)
    try:
        result = getattr(chat_template_utils, name)(*args, **kwargs)
        if isinstance(result, frozenset):
            result = sorted(result)
        if name == "render_jinja_template" and sum(map(len, result[0])) > max_characters:
            return json.dumps({"error": f"its output exceeds {max_characters:,} characters"}).encode()
        return json.dumps({"result": result}).encode()
    except MemoryError:
        return json.dumps({"error": f"it needs more than {mebibytes} MiB of memory"}).encode()
    except BaseException as error:  # a template may raise anything
        return json.dumps({"error": str(error)[:2000] or type(error).__name__}).encode()


def main() -> None:
    """Handle requests until standard input is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent, which stops this process
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # other output must not mix with the responses
    start = address_space()
    answers.write(b"\n")
    answers.flush()
    while len(header := requests.read(8)) == 8:
        data = answer(requests.read(struct.unpack("<Q", header)[0]), start)
        answers.write(struct.pack("<Q", len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    main()
