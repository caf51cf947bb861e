"""Say in one line whether a checkpoint still computes what it computed when it was written, here and with these versions.

    python scripts/verify_checkpoint.py runs/quickstart
    python scripts/verify_checkpoint.py user/name --revision v1
    python scripts/verify_checkpoint.py user/name --trust_remote_code     # by the code in the checkpoint, as anybody else loads it

The same as `python -m gpt_scratch.verify_checkpoint`, which says what is compared, and how. Every script of this package that writes a
model writes the file that it is compared with. The exit status is 0 for equal, 1 for different, 2 where that cannot be determined.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: it only starts more slowly
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.errors import run_script
from gpt_scratch.verify_checkpoint import main, parse

if __name__ == "__main__":
    sys.exit(run_script(lambda: main(parse(sys.argv[1:]))))
