"""Serve the page.

    python -m gpt_scratch.demo --model runs/quickstart
    python -m gpt_scratch.demo --model runs/quickstart runs/spam HuggingFaceTB/SmolLM2-135M-Instruct --port 8080

The page is at http://127.0.0.1:7860, for this machine alone; --host 0.0.0.0 opens it to the network. As a Space: an `app.py` of
`from gpt_scratch.demo.__main__ import main, parse; main(parse(["--model", "you/your-model", "--host", "0.0.0.0"]))`.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__  # registers the model with the Auto classes
from ..errors import UserError, run_script


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags of the page."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt_scratch.demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=[], help="directories or Hub names of language models and classifiers")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="default 7860")
    parser.add_argument("--version", action="version", version=__version__)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Load the models and serve until interrupted.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        from .page import build_page
    except ImportError as error:
        raise UserError('the page needs Gradio: pip install "gpt_scratch[demo]"') from error
    page = build_page(args.model)
    try:
        page.launch(server_name=args.host, server_port=args.port, show_error=True, footer_links=[])
    except OSError as error:
        raise UserError(f"--port {args.port}: {error}") from error


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
