"""Progress of long-running work: a bar in a terminal, a line in a log, nothing if it is quick."""

import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS = 2.0  # delay before anything is shown


def bar(items: Iterable[Item], name: str, unit: str = "it", total: int | None = None) -> Iterator[Item]:
    """Iterate over `items` with a progress bar on standard error; if that is not a terminal, print one line with the name."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=name, unit=unit, total=total, delay=SECONDS, leave=False, dynamic_ncols=True)
    else:
        with named(name):
            yield from items


@contextmanager
def named(name: str) -> Iterator[None]:
    """Context manager for work without steps: prints its name on standard error if it takes longer than `SECONDS`."""
    timer = threading.Timer(SECONDS, lambda: print(f"{name} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
