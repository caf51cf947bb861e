"""Checkpoints as lazy collections of named tensors: nothing is read before it is asked for, and no pickle beyond `weights_only`."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError


class Source(Protocol):
    """Named tensors of a checkpoint."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""

    def get(self, name: str) -> torch.Tensor:
        """One tensor, read now."""


class SafetensorsSource:
    """A safetensors file, or the shards that an index names.

    Raises:
        UserError: a file that is missing, truncated or no safetensors.
    """

    def __init__(self, path: Path):
        self.files: dict[str, Path] = {}
        if path.name.endswith(".index.json"):
            try:
                shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError) as error:
                raise UserError(f"{path} is not an index of safetensors shards: {error}") from error
            files = [path.parent / Path(name).name for name in shards]
        else:
            files = [path]
        self._shapes: dict[str, tuple[int, ...]] = {}
        for file in files:
            with self._open(file) as opened:
                for name in opened.keys():
                    self.files[name] = file
                    self._shapes[name] = tuple(opened.get_slice(name).get_shape())

    @staticmethod
    def _open(file: Path):
        if not file.is_file():
            raise UserError(f"{file}: the shard is missing")
        try:
            return safe_open(file, framework="pt")
        except SafetensorError as error:
            raise UserError(f"{file} is broken: {error}") from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return self._shapes

    def get(self, name: str) -> torch.Tensor:
        """One tensor, read now."""
        with self._open(self.files[name]) as opened:
            return opened.get_tensor(name)


class StateDictSource:
    """Tensors that are in memory, or mapped from a file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.tensors = tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def get(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.tensors[name]


def load_pickle_safely(path: Path) -> Any:
    """A `torch.save` file, memory-mapped where its format allows; plain tensors, numbers, strings and containers only.

    Raises:
        UserError: a file that would need code to load, or is broken.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise UserError(f"{path} is broken or cut short: {' '.join(str(error).split())[:200]}") from error
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is broken or cut short: {' '.join(str(error).split())[:200]}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # the format before torch 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, error)) from error
    except (RuntimeError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is broken or cut short: {' '.join(str(error).split())[:200]}") from error


def _refusal(path: Path, error: Exception) -> str:
    found = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in str(error) else "something else than tensors"
    return (
        f"{path} holds {found}, which only running its pickle could load; it was not run. Where you trust its origin, make a safe file: "
        "torch.save(model.state_dict(), 'weights.pth') in the program that wrote it"
    )


class LoraSource:
    """The book's LoRA-wrapped layers (appendix E), merged as they are read: X.linear.weight + scaling * (X.lora.A @ X.lora.B).T.

    Args:
        source: holds keys `X.linear.weight`, `X.lora.A` (in, r), `X.lora.B` (r, out).
        alpha: the factor that is not in the file.
        over_rank: scaling is alpha / r (appendix E); else alpha alone (chapter 6's script and the printed book).
    """

    def __init__(self, source: Source, alpha: float, over_rank: bool):
        self.source, self.alpha, self.over_rank = source, alpha, over_rank

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The merged layers' names and shapes."""
        return {name.replace(".linear.", "."): shape for name, shape in self.source.shapes().items() if ".lora." not in name}

    def get(self, name: str) -> torch.Tensor:
        """One tensor, merged now in fp32."""
        layer, _, part = name.rpartition(".")
        found = self.source.shapes()
        if f"{layer}.linear.{part}" not in found:
            return self.source.get(name)
        tensor = self.source.get(f"{layer}.linear.{part}")
        if part != "weight":
            return tensor
        a, b = self.source.get(f"{layer}.lora.A").float(), self.source.get(f"{layer}.lora.B").float()
        scaling = self.alpha / a.shape[1] if self.over_rank else self.alpha
        return (tensor.float() + scaling * (a @ b).T).to(tensor.dtype)


class RenamedSource:
    """A source with prefixes taken off its names, and tensors that are replaced or cut.

    Args:
        source: the tensors.
        names: our name for each of the source's.
        rows: name to number of first rows to keep (a padded vocabulary).
        replaced: tensors that stand in for the source's own.
    """

    def __init__(
        self,
        source: Source,
        names: Mapping[str, str],
        rows: Mapping[str, int] | None = None,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ):
        self.source, self.rows, self.replaced = source, rows or {}, replaced or {}
        self.originals = {new: old for old, new in names.items()}
        if len(self.originals) != len(names):
            twice = sorted(new for new in self.originals if list(names.values()).count(new) > 1)
            raise UserError(f"two tensors would both be {twice[0]} once prefixes are taken off")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Our names and the shapes."""
        shapes = self.source.shapes()
        found = {new: shapes[old] for new, old in self.originals.items()}
        cut = {
            name: (min(self.rows.get(name, shape[0]), shape[0]), *shape[1:]) if shape else shape for name, shape in found.items()
        }
        return cut | {name: tuple(tensor.shape) for name, tensor in self.replaced.items()}

    def get(self, name: str) -> torch.Tensor:
        """One tensor, read now."""
        if name in self.replaced:
            return self.replaced[name]
        tensor = self.source.get(self.originals[name])
        return tensor[: self.rows[name]] if name in self.rows else tensor
