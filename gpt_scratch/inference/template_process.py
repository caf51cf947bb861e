"""The process in which chat templates are rendered, for `chat_template.py`: requests on standard input, answers on standard output.

A request is its length (8 bytes) and a `marshal` of function, arguments and limits; an answer its length and JSON, since a process
that ran a template is not trusted. Run as a file: of this package nothing is imported, of transformers what needs no torch.
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
    """Bytes of address space that this process has; Linux only, elsewhere a guess."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 1 << 30


def limit(start: int, seconds: float, mebibytes: int) -> None:
    """Limit memory and processor time; the clock is the parent's, which counts only if this process does not run."""
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + seconds)
    for kind, value in ((resource.RLIMIT_AS, start + mebibytes * 2**20), (resource.RLIMIT_CPU, cpu)):
        with suppress(ValueError, OSError):  # a lower one is set already, or the system knows none
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def answer(request: bytes, start: int) -> bytes:
    """The JSON of a result, or of an error."""
    name, args, kwargs, seconds, mebibytes, most = marshal.loads(request)
    limit(start, seconds, mebibytes)
    try:
        result = getattr(chat_template_utils, name)(*args, **kwargs)
        if isinstance(result, frozenset):
            result = sorted(result)
        if name == "render_jinja_template" and sum(map(len, result[0])) > most:
            return json.dumps({"error": f"it writes more than {most:,} characters"}).encode()
        return json.dumps({"result": result}).encode()
    except MemoryError:
        return json.dumps({"error": f"it takes more than {mebibytes} MiB of memory"}).encode()
    except BaseException as error:  # whatever a template raises
        return json.dumps({"error": str(error)[:2000] or type(error).__name__}).encode()


def main() -> None:
    """Answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the program, which then ends this process
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing else may write between the answers
    start = address_space()
    answers.write(b"\n")
    answers.flush()
    while len(header := requests.read(8)) == 8:
        data = answer(requests.read(struct.unpack("<Q", header)[0]), start)
        answers.write(struct.pack("<Q", len(data)) + data)
        answers.flush()


if __name__ == "__main__":
    main()
