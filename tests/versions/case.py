"""What every check has at hand: one style's checkpoints, what they should compute, and how to load and compare on any release.

Imports torch, transformers and safetensors only, and of these only what transformers 4.46 has.
"""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file

RELEASE = tuple(int(part) for part in transformers.__version__.split(".")[:2])
DTYPE = "dtype" if RELEASE >= (4, 56) else "torch_dtype"  # the name of from_pretrained's argument
TRUST = {"trust_remote_code": True}


class Absent(Exception):
    """What a check is about does not exist in this release; the message says since when it does."""


def near(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 1e-5) -> None:
    """Equal to `tolerance` of the largest expected value, or of one where all are smaller."""
    assert actual.shape == expected.shape, f"{what}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    off = (actual.float() - expected.float()).abs().max().item() / max(1.0, expected.abs().max().item())
    assert off <= tolerance, f"{what}: off by {off:.1e} of the largest value, {tolerance:.0e} is allowed"


def same(actual, expected, what: str) -> None:
    assert actual == expected, f"{what}: {str(actual)[:150]}, expected {str(expected)[:150]}"


def load(auto, folder: Path, dtype: torch.dtype = torch.float32, new: set = frozenset(), unused: set = frozenset(), **settings):
    """A model of `folder` in evaluation mode, from the folder's own code; every tensor accounted for.

    new, unused: parameters that the checkpoint does not have, tensors of it that this class has no use for.
    """
    model, info = auto.from_pretrained(folder, output_loading_info=True, **{DTYPE: dtype}, **TRUST, **settings)
    assert type(model).__module__.startswith("transformers_modules."), f"{type(model)} is not the checkpoint's code"
    same(set(info["missing_keys"]), set(new), "parameters not in the checkpoint")
    same(set(info["unexpected_keys"]), set(unused), "tensors not used")
    same(list(info["mismatched_keys"]), [], "tensors of another shape")
    same({parameter.dtype for parameter in model.parameters()}, {dtype}, "dtype")
    return model.eval()


class Case:
    """One style.

    rows: token ids of each prompt, without padding. ids, mask: the same as a batch, (B, T), padded on the left.
    """

    def __init__(self, root: Path, style: str):
        self.root, self.style = root, style
        self.folder = root / style
        self.texts = json.loads((root / "expected.json").read_text(encoding="utf-8"))
        numbers = load_file(root / "expected.safetensors")
        self.expected = {name.removeprefix(f"{style}."): value for name, value in numbers.items() if name.startswith(f"{style}.")}
        self.rows = [numbers[f"row.{i}"] for i in range(len(self.texts["prompts"]))]
        self.config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.layers, self.pad, self.eos = (self.config[name] for name in ("num_hidden_layers", "pad_token_id", "eos_token_id"))
        self.ids, self.mask = self.padded("left")

    def other(self, kind: str) -> Path:
        """The checkpoint of this style that is "sharded", "bf16" or a "classifier"."""
        return self.root / f"{self.style}-{kind}"

    def lm(self, folder: Path | None = None, **settings):
        return load(transformers.AutoModelForCausalLM, folder or self.folder, **settings)

    def padded(self, side: str) -> tuple[torch.Tensor, torch.Tensor]:
        """All rows as one batch: ids and mask, each (B, T)."""
        length = max(len(row) for row in self.rows)
        ids, mask = torch.full((len(self.rows), length), self.pad), torch.zeros(len(self.rows), length, dtype=torch.long)
        for i, row in enumerate(self.rows):
            place = slice(length - len(row), None) if side == "left" else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        return ids, mask

    @torch.no_grad()
    def compare_logits(self, model, name: str = "logits") -> None:
        """Each row by itself, without padding and without a cache."""
        for i, row in enumerate(self.rows):
            near(model(row[None], use_cache=False).logits[0], self.expected[f"{name}.{i}"], f"{name} of row {i}")
