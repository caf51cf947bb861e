"""A web page to try trained models: generation, next-token probabilities, attention, tokenizers, classifier and chat.

    python scripts/demo.py --model runs/quickstart
    python scripts/demo.py --model runs/quickstart runs/spam HuggingFaceTB/SmolLM2-135M-Instruct --port 8080

The same as `python -m gpt_scratch.demo`. The page is at http://127.0.0.1:7860, only on this machine, and can load other models by name.
--host 0.0.0.0 makes it available on the network, only with the models given here.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.demo.__main__ import main, parse
from gpt_scratch.errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
