"""Serve a model of this package over the OpenAI API: transformers' own server, with this package registered.

    python scripts/serve.py runs/instruct --port 8000
    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \
        -d '{"model": "runs/instruct", "messages": [{"role": "user", "content": "Name a colour."}], "max_tokens": 50}'
    transformers chat runs/instruct http://127.0.0.1:8000/v1

    python scripts/serve.py runs/instruct --port 8000 --weights int8      # the step compiled, weights in fewer bytes; or bfloat16, float32

Chat (also streamed), completions, responses. Clients name the model as it was named here. All flags of `transformers serve` work; --help
lists them. It listens on this machine only, unless --host says otherwise; it asks nobody for a password.
"""

import argparse

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.errors import run_script
from gpt_scratch.inference.decoding import WEIGHTS
from gpt_scratch.serving import serve
from gpt_scratch.training.precision import use_fast_fp32_matmul

if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--weights", choices=WEIGHTS)
    own, others = parser.parse_known_args()
    use_fast_fp32_matmul()
    run_script(lambda: serve(others, own.weights))
