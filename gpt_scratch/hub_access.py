"""A quick check whether the Hub can be reached, before libraries retry for minutes."""

import os
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from .errors import UserError

SECONDS = 4.0  # timeout for name resolution and connection
YES = {"1", "ON", "YES", "TRUE"}  # true values in huggingface_hub


def refuse_unreachable(name: str) -> None:
    """Refuse a name on the Hub that is neither cached nor can be downloaded. If only the cache is available, print a note and use it.

    Raises:
        UserError: names the Hub and the reason.
    """
    cached = is_cached(name)
    if any(os.environ.get(switch, "").upper() in YES for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        reason: str | None = "HF_HUB_OFFLINE is set"
    else:
        reason = unreachable()
    if reason is None:
        return
    if not cached:
        raise UserError(f"{name}: no such directory here, and the Hub cannot be reached ({reason}): give the path of a directory")
    if "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
        print(f"note: using the cached copy of {name}, since the Hub cannot be reached ({reason})", file=sys.stderr)


def is_cached(name: str) -> bool:
    """Whether the Hub's cache contains a repository of this name."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return (Path(os.path.expandvars(os.path.expanduser(cache))) / f"models--{name.replace('/', '--')}").is_dir()


def unreachable() -> str | None:
    """Why the Hub, or the proxy in front of it, cannot be reached; `None` if it can."""
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    host = url.hostname or ""
    proxy = "" if proxy_bypass(host) else getproxies().get(url.scheme, "")
    place = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else url
    address = (place.hostname or "", place.port or (443 if place.scheme == "https" else 80))
    found: list[str | None] = [f"{address[0]} does not answer"]

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=SECONDS).close()
            found[0] = None
        except OSError as error:
            found[0] = f"{address[0]}: {error.strerror or error}"

    thread = threading.Thread(target=connect, daemon=True)  # name resolution has no timeout
    thread.start()
    thread.join(SECONDS)
    return found[0]
