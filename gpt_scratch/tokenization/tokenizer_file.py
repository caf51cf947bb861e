"""An untrusted `tokenizer.json`, checked before the library opens it: its steps may lengthen a text only so far.

A pipeline is a small program: a normalizer that replaces each character by ten, four times in a row, makes 10,000 of one, and the library
runs it over the file's own added tokens as soon as it opens the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json_object

FILE_BYTES = 1 << 28  # Llama 3's has 17 MB
LONGEST_INSERTION = 1_000  # characters that one step may insert at a place
LARGEST_GROWTH = 100  # of a text, by all steps; usual steps replace a character by another
LONGEST_PADDING = 1 << 20


def check_tokenizer_file(path: Path) -> None:
    """Check an untrusted `tokenizer.json`.

    Raises:
        ValueError: no JSON object, or a step that makes a text longer than any pipeline in use; OSError: it cannot be read.
    """
    if not path.is_file():
        raise ValueError(f"{path.name} is not a regular file")
    content = read_json_object(path, FILE_BYTES)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        growth = 1.0
        for step in _steps(content.get(part)):
            inserted = _inserted(step)
            if inserted > LONGEST_INSERTION:
                raise ValueError(
                    f"{path.name}: a step {step.get('type')!r} of its {part} inserts {inserted:,} characters at a place"
                )
            growth *= _growth(step, inserted)
        if growth > LARGEST_GROWTH:
            raise ValueError(
                f"{path.name}: its {part} may make a text {growth:,.0f} times as long, more than {LARGEST_GROWTH} times"
            )
    padding = content.get("padding")
    strategy = padding.get("strategy") if isinstance(padding, dict) else None
    if isinstance(strategy, dict) and isinstance(strategy.get("Fixed"), int) and strategy["Fixed"] > LONGEST_PADDING:
        raise ValueError(f"{path.name}: it pads every text to {strategy['Fixed']:,} tokens")


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part, in order, those of sequences in sequences too; the parser has bounded how deep they are."""
    if isinstance(part, dict):
        yield part
        for name in ("normalizers", "pretokenizers", "decoders"):
            inner = part.get(name)
            for step in inner if isinstance(inner, list) else ():
                yield from _steps(step)


def _inserted(step: Mapping[str, Any]) -> int:
    return max(len(value) for name in ("content", "prepend") if isinstance(value := step.get(name, ""), str))


def _growth(step: Mapping[str, Any], inserted: int) -> float:
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern")
    literal = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(literal, str) and literal:
        return max(1.0, inserted / len(literal))
    return 1.0 + inserted  # an expression may match a single character, or the empty text before each
