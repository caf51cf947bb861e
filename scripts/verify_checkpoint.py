"""Verify that a checkpoint reproduces the outputs stored when it was written, on this machine and with these versions.

    python scripts/verify_checkpoint.py runs/quickstart
    python scripts/verify_checkpoint.py user/name --revision v1
    python scripts/verify_checkpoint.py user/name --trust_remote_code     # with the code in the checkpoint

The same as `python -m gpt_scratch.verify_checkpoint`; see there for what is compared. Every script of this package that writes a model also
writes the reference outputs. The exit status is 0 for equal, 1 for different, 2 if that cannot be determined.
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import sys

from gpt_scratch.errors import run_script
from gpt_scratch.verify_checkpoint import main, parse

if __name__ == "__main__":
    sys.exit(run_script(lambda: main(parse(sys.argv[1:]))))
