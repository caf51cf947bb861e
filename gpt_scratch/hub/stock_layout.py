"""Checkpoints in a stock layout of transformers, for `push_to_hub.py --layout`; they need no `trust_remote_code`.

The conversion writes weights, configuration, generation settings and tokenizer, and verifies that the stock class computes the same as
this package's model. The card then says so; metrics, plots and all other files next to the weights are included.
"""

import re
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from yaml import YAMLError

from ..conversion.checkpoint import Options
from ..conversion.convert import export_weights
from ..conversion.formats import recognize
from ..conversion.stock_layouts import CLASSES
from ..conversion.verify import verify
from ..errors import UserError, one_line
from ..files import atomic_path, write_json
from .cards import NAME, write_conversion_card
from .contents import Contents, list_contents

SHARD_BYTES = 5 * 10**9  # maximum size of one safetensors file
# Files of this package's own layout or of its weights.
OWN = ("*.py", "*.safetensors", "*.safetensors.index.json", "config.json", "conversion.json", "reference_outputs.json")
REASON = "belongs to this package's own layout"
# Where the paragraph about the layout goes: in place of our template's on trust, else before the first section, else at the end.
PLACES = (r"^`trust_remote_code=True` runs .*?(?=\n\n|\Z)", r"(?=^## )", r"\Z")
# Other mentions of trust in a card of ours. An upload in our own layout has filled in that repository's name.
WITHOUT_TRUST = {
    r'"[^"\n]*", (revision="[^"\n]*"), trust_remote_code=True': rf'"{NAME}", \1',
    r'"[^"\n]*" --trust_remote_code\b': f'"{NAME}"',
    r",\s*trust_remote_code=True": "",
    r" Without `--trust_remote_code` [^.]*\.": "",
}


def write_stock_checkpoint(source: str, layout: str, folder: Path, exclude: tuple[str, ...] = ()) -> Contents:
    """Write a checkpoint directory of this package into the empty `folder` in a stock layout, verify it, and list what goes up.

    Args:
        source: a directory written by a training script or `save_pretrained`.
        layout: one of `conversion.stock_layouts.LAYOUTS`.
        exclude: patterns of relative paths to leave out.

    Raises:
        UserError: `source` is incomplete or not a model of this package, the layout cannot express its settings (names each), or the
            result does not compute the same.
    """
    ours = list_contents(source)
    if "adapter_config.json" in ours.files:
        raise UserError(f"{source} holds an adapter: merge it into its model before it is written in the layout {layout}")
    checkpoint = recognize(source, Options())
    if checkpoint.format != "gpt_scratch":
        raise UserError(f"{source} is in the layout {checkpoint.format} already, which loads without trust: leave out --layout")
    if "README.md" in ours.files:
        _read_card(ours.folder / "README.md")  # fail before computing anything
    export_weights(checkpoint, folder, layout, None, SHARD_BYTES)
    checkpoint.source = None  # type: ignore[assignment]  # verification does not need its memory-mapped files
    proof = verify(folder, checkpoint.head, checkpoint.reference)
    print(proof)
    record = {"format": "gpt_scratch", "to": layout, "head": checkpoint.head, "notes": checkpoint.notes, "proof": proof.as_dict()}
    write_json(folder / "conversion.json", record)
    stays = [name for name in ours.files if _is_own(ours.folder, name)]
    for name in set(ours.files) - set(stays):
        if not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ours.folder / name, folder / name)
    if "README.md" not in ours.files:
        write_conversion_card(str(folder), ours.folder.resolve().name, record)
    adapt_card(folder / "README.md", record)
    contents = list_contents(folder, exclude=exclude)
    return replace(contents, left_out=contents.left_out | ours.left_out | dict.fromkeys(stays, REASON))


def _is_own(folder: Path, name: str) -> bool:
    """Whether a file is useless in another layout: code, weights, and directories with an adapter or another model."""
    models = [
        parent
        for parent in Path(name).parents[:-1]
        if any((folder / parent / kind).is_file() for kind in ("config.json", "adapter_config.json"))
    ]
    return bool(models) or any(fnmatch(name, pattern) for pattern in OWN)


def adapt_card(path: Path, record: dict[str, Any]) -> None:
    """Rewrite a card for a stock checkpoint, which loads without trust.

    Args:
        path: the `README.md`; everything else in it is kept.
        record: contents of `conversion.json`.

    Raises:
        UserError: the card's metadata cannot be read.
    """
    card = _read_card(path)
    card.data.tags = [tag for tag in card.data.tags or [] if tag != "custom_code"] or None
    card.data.library_name = "transformers"
    task = "text-classification" if record["head"] == "classifier" else "text-generation"
    card.data.pipeline_tag = card.data.pipeline_tag or task
    text = card.text
    found = next(filter(None, (re.search(place, text, re.M | re.S) for place in PLACES)))
    text = f"{text[: found.start()].rstrip()}\n\n{_about(record)}\n\n{text[found.end() :].lstrip()}"
    for pattern, replacement in WITHOUT_TRUST.items():
        text = re.sub(pattern, replacement, text)
    card.text = text
    with atomic_path(path) as temporary:
        temporary.write_text(f"{str(card).rstrip()}\n", encoding="utf-8")


def _read_card(path: Path) -> ModelCard:
    try:
        return ModelCard(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:  # invalid metadata, or not UTF-8
        raise UserError(f"README.md cannot be read as a model card: {one_line(error)}") from error


def _about(record: dict[str, Any]) -> str:
    proof = record["proof"]
    difference = proof.get("max_logit_difference_float64", proof["max_logit_difference"])
    return (
        f"This is a stock `{CLASSES[record['to'], record['head']]}` checkpoint: it holds no code, and any transformers from 4.46 on loads "
        f"it without `trust_remote_code`. It was converted from a `{proof['compared_with']}` of gpt_scratch, by "
        f"`push_to_hub.py --layout {record['to']}`: on fixed prompts the logits of the two differ by at most {difference:.1e} "
        f"(the largest is {proof['max_logit']:.1f})."
    )
