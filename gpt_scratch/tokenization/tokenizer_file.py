"""Checks an untrusted `tokenizer.json` before the library opens it, and limits by how much its steps can lengthen a text.

A pipeline is a small program: four normalizers that each replace a character with ten turn one into 10,000, and the library applies them
to the file's added tokens as soon as it opens the file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..files import read_json_object

FILE_BYTES = 1 << 28  # Llama 3's has 17 MB
LONGEST_INSERTION = 1_000  # characters that one step may insert at one position
LARGEST_GROWTH = 100  # factor by which all steps together may lengthen a text; usual steps replace one character with another
LONGEST_PADDING = 1 << 20


def check_tokenizer_file(path: Path) -> None:
    """Check an untrusted `tokenizer.json`.

    Raises:
        ValueError: not a JSON object, or its steps lengthen a text more than any pipeline in use.
        OSError: it cannot be read.
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
    """The steps of a part, in order, including those of nested sequences; the parser has limited their depth."""
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
    return 1.0 + inserted  # a regular expression may match each single character, or the empty string before it
