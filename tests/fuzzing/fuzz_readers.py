"""Coverage-guided fuzzing of the readers of foreign files, with atheris (libFuzzer for Python).

    pip install atheris==3.0.0                                     # a wheel for Python 3.11 to 3.13 on Linux; no extra of the package has it
    python tests/fuzzing/fuzz_readers.py gguf /tmp/corpus/gguf -max_total_time=300
    python tests/fuzzing/fuzz_readers.py rows crash-0123abcd       # one input again

The first argument is one of the names in `targets.py`; what follows is libFuzzer's: folders of inputs (the first one also takes new ones),
files to be run once, flags. Beside its own the inputs of `corpus/TARGET` are read. What a target raises that is no refusal goes on standard
error and, once for each place, into a file `crash-TARGET-*` of $FUZZ_CRASHES (default: the current folder), and the fuzzer goes on; an input
that takes more than 10 s or 2 GB ends it.
"""

import hashlib
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

import atheris
from torch._weights_only_unpickler import Unpickler

# Their code guides the search, beside that of this package; what is compiled (json, csv, safetensors, tokenizers) cannot.
INSTRUMENTED = ["gpt_scratch", "gguf", "yaml"]
LIMITS = ["-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]

sys.path.append(str(Path(__file__).resolve().parents[1] / "conversion"))  # tensorflow_bytes.py
with atheris.instrument_imports(include=INSTRUMENTED):
    import targets
Unpickler.load = atheris.instrument_func(Unpickler.load)  # of all of torch this alone


def place_of(error: BaseException) -> str:
    """Where an error was raised, so that each is kept once: its type and the last lines of this package on the way to it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "gpt_scratch" in frame.filename or "fuzzing" in frame.filename]
    return " ".join(
        [type(error).__name__, *(f"{Path(frame.filename).name}:{frame.lineno}" for frame in [*ours[-2:], frames[-1]])]
    )


def main() -> None:
    """Fuzz one target until libFuzzer's limits end it."""
    if len(sys.argv) < 2 or sys.argv[1] not in targets.TARGETS:
        sys.exit(f"usage: fuzz_readers.py TARGET [libFuzzer's arguments]; targets: {', '.join(targets.TARGETS)}")
    name = sys.argv.pop(1)
    target, crashes, seen = targets.TARGETS[name], Path(os.environ.get("FUZZ_CRASHES", ".")), set[str]()
    targets.quiet()

    def once(data: bytes) -> None:
        try:
            targets.run(target, data)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            place = place_of(error)
            if place not in seen:
                seen.add(place)
                file = crashes / f"crash-{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"
                file.write_bytes(data)
                print(f"CRASH {file} {place}\n{''.join(traceback.format_exception(error)[-4:])}", file=sys.stderr, flush=True)

    given = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    kept = Path(__file__).parent / "corpus" / name
    with tempfile.NamedTemporaryFile("w", suffix=".dict") as dictionary:
        for word in target.words:
            word = word if "\\x" in word else word.replace("\\", "\\\\")
            dictionary.write('"' + word.replace('"', '\\"') + '"\n')
        dictionary.flush()
        arguments = [sys.argv[0], *LIMITS, f"-artifact_prefix={crashes}/{name}-", *sys.argv[1:]]
        if target.words:
            arguments.insert(1, f"-dict={dictionary.name}")
        if kept.is_dir() and not any(Path(argument).is_file() for argument in given):
            arguments += ([] if given else [tempfile.mkdtemp()]) + [str(kept)]
        atheris.Setup(arguments, once)
        print(f"fuzzing {name} since {int(time.time())}", file=sys.stderr, flush=True)  # what comes before may take minutes
        atheris.Fuzz()


if __name__ == "__main__":
    main()
