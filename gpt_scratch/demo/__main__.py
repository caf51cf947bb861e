"""Serve the page.

    python -m gpt_scratch.demo --model runs/quickstart
    python -m gpt_scratch.demo --model runs/quickstart runs/spam HuggingFaceTB/SmolLM2-135M-Instruct --port 8080

`python scripts/demo.py` is the same, and refuses wrong flags at once, before torch is imported.

The page is at http://127.0.0.1:7860, reachable from this machine only, and can load other models by name. --host 0.0.0.0 opens it to the
network, restricted to the models given here. For a Space, `app.py` consists of
`from gpt_scratch.demo.__main__ import main, parse; main(parse(["--model", "you/your-model", "--host", "0.0.0.0"]))`.
"""

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

from .. import __version__  # registers the model with the Auto classes
from ..errors import UserError, one_line, run_script
from ..inference.limits import PAGE, Limits, is_loopback, refuse_others
from ..inference.serving import LOOPBACK_NAMES
from .limits import MAX_SESSIONS
from .page_guard import MAX_CONNECTIONS, SEND_SECONDS, PageGuard


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt_scratch.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=[], help="directories or Hub names of language models and classifiers")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default this machine only")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load the models and serve until interrupted.

    Raises:
        UserError: Gradio is not installed, the port is taken or invalid, or a page without models would be open to others.
    """
    if not 0 < args.port <= 65535:
        raise UserError(f"--port is {args.port}: it must be between 1 and 65535")
    refuse_others(args.host, args.model, PAGE)
    private = is_loopback(args.host)
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from .page import build_page
    except ImportError as error:
        raise UserError('the page needs Gradio: pip install "gpt_scratch[demo]"') from error
    page = build_page(args.model, may_load=private)
    hosts = LOOPBACK_NAMES | {args.host.lower()} if private else None
    functions = frozenset(number for number, function in page.fns.items() if function.fn)

    async def forget(session: str) -> None:
        await page._queue.clean_events(session_hash=session)
        page._queue.pending_messages_per_session.pop(session, None)

    bound_connections()
    try:
        page.launch(server_name=args.host, server_port=args.port, **launch_settings(hosts, functions, forget))
    except (OSError, ValueError) as error:
        raise UserError(f"--host {args.host} --port {args.port}: {one_line(error)}") from error


def bound_connections() -> None:
    """Give Gradio's server timeouts for slow senders and for clients that do not read their responses.

    This relies on Gradio's internals, since `launch` takes no uvicorn settings: `http_server.Server` is replaced here, and
    `Queue.clean_events` and `pending_messages_per_session` are used above, with the names of 6.31.
    """
    from gradio import http_server

    from ..inference.connections import MAX_HEADER_BYTES, bounded_protocol

    protocol = bounded_protocol(Limits(send_seconds=SEND_SECONDS, max_connections=MAX_CONNECTIONS), long_streams=True)

    class BoundedServer(http_server.Server):
        def __init__(self, config: Any, **settings: Any):
            config.http, config.ws, config.h11_max_incomplete_event_size = protocol, "none", MAX_HEADER_BYTES
            super().__init__(config, **settings)

    http_server.Server = BoundedServer


def launch_settings(hosts: Collection[str] | None, functions: Collection[int], forget: Callable | None = None) -> dict[str, Any]:
    """Arguments of Gradio's `launch` that keep everything closed that environment variables or its defaults would open.

    Args:
        hosts: host names that a request may use, which excludes other origins; None if the page is open to the network.
        functions: ids of the page's functions that a request may call.
        forget: see [`PageGuard`].
    """
    from starlette.middleware import Middleware

    return {
        "app_kwargs": {
            "middleware": [Middleware(PageGuard, hosts=hosts, functions=functions, forget=forget)],
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
        "show_error": False,  # errors for visitors are raised as gr.Error; all others belong in the log
        "footer_links": [],
        "share": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "run_history": False,
        "allowed_paths": [],
        "max_file_size": 0,
        "max_threads": 8,
        "state_session_capacity": MAX_SESSIONS,
    }


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
