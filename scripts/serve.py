r"""Serve a model with the OpenAI API: transformers' server with request limits.

    python scripts/serve.py runs/instruct --port 8000
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \
        -d '{"model": "runs/instruct", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 50}'
    transformers chat runs/instruct http://127.0.0.1:8000/v1

    python scripts/serve.py runs/instruct --weights int8     # faster generation with int8 weights; or float32, bfloat16, int4
    GPT_SCRATCH_API_KEY=... python scripts/serve.py runs/instruct --host 0.0.0.0

Chat, completions and responses, optionally streamed; clients use the model name given here. By default it listens only on this machine;
with another --host, every request needs the API key. For the supported request fields see gpt_scratch/inference/README.md.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.errors import run_script
from gpt_scratch.inference.limits import Limits
from gpt_scratch.inference.serving import KEY_VARIABLE, serve
from gpt_scratch.inference.streamed_linear import WEIGHTS
from gpt_scratch.training.precision import use_fast_fp32_matmul


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("model", help="directory or Hub name of a causal language model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default this machine only")
    parser.add_argument("--port", type=int, default=8000, help="port; default 8000; 0 for any free one")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; default the best available")
    parser.add_argument("--dtype", default="auto", help="bfloat16, float32, ...; default as saved")
    parser.add_argument(
        "--weights", default="auto", choices=("auto", *WEIGHTS, "none"), help="format of the weights; see generate.py --help"
    )
    parser.add_argument("--allowed_hosts", nargs="+", default=[], help="further host names of this machine that requests may use")
    parser.add_argument(
        "--allowed_origins",
        nargs="+",
        default=[],
        help="other origins whose pages may call the server, such as https://example.org",
    )
    for field in fields(Limits):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default,
                            help=f"{field.metadata['help']}; default {field.default:,g}")  # fmt: skip
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    """Serve until interrupted."""
    if args.weights in WEIGHTS:
        # Without compiled steps, each cache length is a matrix product of a new shape, and oneDNN would cache its kernels: a gigabyte.
        use_fast_fp32_matmul()
    limits = Limits(**{field.name: getattr(args, field.name) for field in fields(Limits)})
    key = os.environ.pop(KEY_VARIABLE, None)  # so that child processes do not inherit it
    serve(
        args.model,
        args.host,
        args.port,
        limits,
        key,
        args.allowed_hosts,
        args.allowed_origins,
        args.weights,
        args.device,
        args.dtype,
    )


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
