"""Work that may take long, with a name: a bar in a terminal, a line in a log; neither where it takes no time."""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS = 2.0  # work that is done earlier is not shown


def bar(items: Iterable[Item], name: str, unit: str = "it", total: int | None = None) -> Iterator[Item]:
    """`items`, with a bar on standard error while they are worked on; where that is no terminal, one line with the name."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, unit=unit, total=total, delay=SECONDS, leave=False, dynamic_ncols=True)
    else:
        with named(name):
            yield from items


@contextmanager
def named(name: str) -> Iterator[None]:
    """Work without steps: its name on standard error when it takes longer than `SECONDS`."""
    timer = threading.Timer(SECONDS, lambda: print(f"{name} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
