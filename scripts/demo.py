"""A page in the browser to try trained models: generation, next tokens, attention, tokenizers, classifier and chat.

    python scripts/demo.py --model runs/quickstart
    python scripts/demo.py --model runs/quickstart runs/spam HuggingFaceTB/SmolLM2-135M-Instruct --port 8080

The same as `python -m gpt_scratch.demo`. The page is at http://127.0.0.1:7860, for this machine alone, and loads other models by name.
--host 0.0.0.0 opens it to the network, with the models given here alone.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: it only starts more slowly
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.demo.__main__ import main, parse
from gpt_scratch.errors import run_script

if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
