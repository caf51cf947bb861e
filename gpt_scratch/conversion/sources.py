"""Checkpoints as lazy collections of named tensors: tensors are read on access, and pickles only with `weights_only`."""

import io
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from ..errors import UserError, one_line
from ..files import read_json_object
from ..pickles import refuse_deep_tuples

# safetensors' names of the dtypes of weights, and of others that occur in masks and quantized weights.
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
OTHER_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


SAFE_FILE = (
    "If you trust its origin, save the weights in the program that wrote it: torch.save(model.state_dict(), 'weights.pth')"
)
PLAIN_WEIGHTS = "Convert the weights as they were before they were quantized, in float32, bfloat16 or float16"
MAX_SHARED = 4  # how often the tensors of a file may share its bytes: tied weights are stored under two names


class Source(Protocol):
    """Named tensors of a checkpoint."""

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor, as a tensor without data on the meta device."""

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor."""


class SafetensorsSource:
    """A safetensors file, or the shards of an index.

    `safetensors.torch.save_model` stores a tensor that has several names, such as a tied head, under the first one, and lists the others in
    the file's metadata: they are tensors here, too.

    Raises:
        UserError: a file that is missing, truncated or not a safetensors file, a tensor of an unknown type or in two files.
    """

    def __init__(self, path: Path):
        files = [path]
        if path.name.endswith(".index.json"):
            files = shards_of(path)
        self.files: dict[str, Path] = {}
        self.aliases: dict[str, str] = {}
        self._described: dict[str, torch.Tensor] = {}
        for file in files:
            with self._open(file) as opened:
                for name in opened.keys():  # noqa: SIM118  not a dict, it has no iterator
                    if name in self.files:
                        raise UserError(f"{name} is in {self.files[name]} and in {file.name}: keep one of them")
                    view = opened.get_slice(name)
                    dtype = (DTYPES | OTHER_DTYPES).get(view.get_dtype())
                    if dtype is None:
                        raise UserError(f"{file}: {name} is of type {view.get_dtype()}. {PLAIN_WEIGHTS}")
                    self.files[name] = file
                    self._described[name] = torch.empty(view.get_shape(), dtype=dtype, device="meta")
                    self.aliases.pop(name, None)
                for name, stored in (opened.metadata() or {}).items():
                    if stored in self.files and name not in self.files:
                        self.aliases[name], self._described[name] = stored, self._described[stored]

    @staticmethod
    def _open(file: Path):
        if not file.is_file():
            raise UserError(f"{file} is missing")
        try:
            return safe_open(file, framework="pt")
        except SafetensorError as error:
            raise UserError(f"{file} is damaged or truncated: {error}") from error

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor."""
        return self._described

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        name = self.aliases.get(name, name)
        with self._open(self.files[name]) as opened:
            return opened.get_tensor(name)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, invalid or contains something else.
    """
    if not path.is_file():
        raise UserError(f"{path} cannot be read as JSON: No such file or directory")
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path.parent}: {one_line(error)}") from error


def shards_of(index: Path) -> list[Path]:
    """The files listed in an index (`*.index.json`), in the same directory.

    Raises:
        UserError: the index is invalid.
    """
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise UserError(f"{index} is not an index of shards: it has no weight_map of tensors to files")
    names = sorted(set(shards.values()))
    if no_text := [name for name in names if name != name.encode(errors="replace").decode()]:
        raise UserError(f"{index}: {ascii(no_text[0])[:100]} in weight_map is not a string")
    if outside := [name for name in names if Path(name).name != name or name == ".." or "\0" in name or len(name) > 250]:
        raise UserError(f"{index}: {outside[0][:100]!r} in weight_map is not a file in the same directory")
    return [index.parent / name for name in names]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory as whole numbers, in which NaN equals NaN and 0 differs from -0.

    >>> torch.equal(bits_of(torch.tensor([torch.nan])), bits_of(torch.tensor([torch.nan])))
    True
    """
    return tensor.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize])


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are equal in shape, dtype and every bit."""
    return a.dtype == b.dtype and torch.equal(bits_of(a), bits_of(b))


class StateDictSource:
    """Tensors in memory, or mapped from a file."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self.tensors = tensors

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor."""
        return {name: torch.empty_like(tensor, device="meta") for name, tensor in self.tensors.items()}

    def get(self, name: str) -> torch.Tensor:
        """One tensor."""
        return self.tensors[name]


class RenamedSource:
    """A source with renamed tensors, some of them omitted, truncated or replaced.

    Args:
        source: the tensors.
        names: the source's names to ours; other tensors are omitted.
        rows: our name to the number of first rows to keep (a padded vocabulary).
        replaced: our name to a tensor that replaces that of the source.

    Raises:
        UserError: two tensors with the same name.
    """

    def __init__(
        self,
        source: Source,
        names: Mapping[str, str],
        rows: Mapping[str, int] | None = None,
        replaced: Mapping[str, torch.Tensor] | None = None,
    ):
        self.source, self.rows, self.replaced = source, rows or {}, replaced or {}
        self.originals: dict[str, str] = {}
        for old, new in names.items():
            if new in self.originals:
                raise UserError(f"{self.originals[new]} and {old} are both the tensor {new}")
            self.originals[new] = old

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor, under our names."""
        theirs = self.source.describe()
        ours = {new: theirs[old] for new, old in self.originals.items()}
        return {name: self._changed(name, tensor) for name, tensor in ours.items()}

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        return self.replaced[name] if name in self.replaced else self._changed(name, self.source.get(self.originals[name]))

    def _changed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor[: self.rows[name]] if name in self.rows else tensor


class PairedSource:
    """Llama weights of llama.cpp and Meta, which rotate adjacent pairs; Llama on the Hub rotates pairs that are half a head apart.

    Args:
        source: the tensors.
        heads: suffix of a name to the number of heads whose rows are ordered by adjacent pairs.
    """

    def __init__(self, source: Source, heads: Mapping[str, int]):
        self.source, self.heads = source, heads

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor."""
        return self.source.describe()

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor, with its rows in the order of the Hub."""
        tensor = self.source.get(name)
        heads = next((count for ending, count in self.heads.items() if name.endswith(ending)), None)
        return tensor if heads is None else in_halves(tensor, heads)


def in_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows (D of each head) from adjacent pairs to the layout in which row i is rotated with row i + D/2.

    >>> in_halves(torch.tensor([[0], [2], [1], [3], [4], [6], [5], [7]]), heads=2).ravel().tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    return weight.reshape(heads, -1, 2, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


class CutSource:
    """A source in which some tensors are computed from others: joined heads, or split query, key and value.

    Args:
        source: the tensors.
        made: new name to the names of its inputs, which are removed.
        make: computes a tensor from its new name and its inputs; also called with tensors on the meta device for the shape.
    """

    def __init__(
        self, source: Source, made: Mapping[str, Sequence[str]], make: Callable[[str, list[torch.Tensor]], torch.Tensor]
    ):
        self.source, self.made, self.make = source, made, make
        self.used = {name for names in made.values() for name in names}

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor."""
        theirs = self.source.describe()
        whole = {name: tensor for name, tensor in theirs.items() if name not in self.used}
        return whole | {new: self._make(new, [theirs[name] for name in names]) for new, names in self.made.items()}

    def get(self, name: str) -> torch.Tensor:
        """Read or compute one tensor."""
        if name not in self.made:
            return self.source.get(name)
        return self._make(name, [self.source.get(part) for part in self.made[name]])

    def _make(self, name: str, parts: list[torch.Tensor]) -> torch.Tensor:
        try:
            return self.make(name, parts)
        except (RuntimeError, ValueError, IndexError) as error:  # raised by torch for incompatible shapes
            shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in zip(self.made[name], parts))
            raise UserError(f"{name} cannot be computed from {shapes[:300]}") from error


class LoraSource:
    """The book's LoRA layers (appendix E), merged when they are read: X.linear.weight + scaling * (X.lora.A @ X.lora.B).T.

    Args:
        source: has keys `X.linear.weight`, `X.lora.A` (in, r), `X.lora.B` (r, out).
        alpha: LoRA's alpha, which is not in the file.
        over_rank: scaling is alpha / r (appendix E); otherwise alpha (chapter 6's script and the printed book).

    Raises:
        UserError: a layer with only some of these keys.
    """

    def __init__(self, source: Source, alpha: float, over_rank: bool):
        self.source, self.alpha, self.over_rank = source, alpha, over_rank
        self.described = source.describe()
        self.layers = {name.partition(".lora.")[0] for name in self.described if ".lora." in name}
        for layer in sorted(self.layers):
            needed = [f"{layer}.linear.weight", f"{layer}.lora.A", f"{layer}.lora.B"]
            missing = [name for name in needed if name not in self.described]
            if missing:
                raise UserError(f"the LoRA layer {layer} has no {missing[0]}")
            weight, a, b = (tuple(self.described[name].shape) for name in needed)
            if not len(weight) == len(a) == len(b) == 2 or (a[0], b[-1]) != (weight[1], weight[0]) or a[-1] != b[0]:
                raise UserError(f"{layer}: lora.A {list(a)} times lora.B {list(b)} does not fit linear.weight {list(weight)}")

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every tensor, with the merged layers under their original names."""
        used = {f"{layer}.lora.{part}" for layer in self.layers for part in "AB"}
        return {self._plain(name): tensor for name, tensor in self.described.items() if name not in used}

    def _plain(self, name: str) -> str:
        layer, found, part = name.rpartition(".linear.")
        return f"{layer}.{part}" if found and layer in self.layers else name

    def get(self, name: str) -> torch.Tensor:
        """Read one tensor, merged in float64 and rounded once."""
        layer, _, part = name.rpartition(".")
        if layer not in self.layers:
            return self.source.get(name)
        tensor = self.source.get(f"{layer}.linear.{part}")
        if part != "weight":
            return tensor
        a, b = self.source.get(f"{layer}.lora.A").double(), self.source.get(f"{layer}.lora.B").double()
        scaling = self.alpha / a.shape[1] if self.over_rank else self.alpha
        return (tensor.double() + scaling * (a @ b).T).to(tensor.dtype)


def _plain_pickle(path: Path) -> str | None:
    """What to say of a file that begins as `pickle.dump` writes it, and not with torch's magic number of before 1.6."""
    with path.open("rb") as file:
        start = file.read(3)
    if len(start) < 3 or start[0] != 0x80 or not 2 <= start[1] <= 5 or start[2] == 0x8A:
        return None
    return f"{path} was written by pickle, not by torch.save; reading it could run code, and it was not read. {SAFE_FILE}"


def load_pickle_safely(path: Path) -> Any:
    """Load a `torch.save` file, memory-mapped if possible; only tensors, numbers, strings and containers.

    Raises:
        UserError: the file is missing, damaged (checksums are verified), or would have to run code.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing")
    try:
        mapped = zipfile.is_zipfile(path)  # files from before torch 1.6 are not zip archives
        if mapped:
            state = path.stat()
            _verify_archive(path, state.st_size, state.st_mtime_ns)
        _refuse_endless(path, mapped)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed is None:
            raise UserError(_plain_pickle(path) or f"{path} is damaged or was not written by torch.save") from error
        raise UserError(
            f"{path} contains {needed[1]}, which can only be loaded by running code from the file; it was not run. {SAFE_FILE}"
        ) from error
    except Exception as error:  # torch and zipfile raise many exception types
        damaged = f"{path} is damaged, truncated, or was not written by torch.save ({one_line(error, 160)})"
        raise UserError(_plain_pickle(path) or damaged) from error
    _refuse_tensors_beyond_the_file(content, path)
    return content


def _refuse_endless(path: Path, archive: bool) -> None:
    """Refuse a pickle that torch would read for hours. Before torch 1.6, a file was a sequence of pickles, the fourth with the contents.

    Raises:
        UserError: tuples nested too deeply.
    """
    try:
        if archive:
            with zipfile.ZipFile(path) as opened:
                for name in [name for name in opened.namelist() if name.endswith("data.pkl")]:
                    refuse_deep_tuples(io.BytesIO(opened.read(name)))
        else:
            with path.open("rb") as file:
                for _ in range(5):
                    refuse_deep_tuples(file)
    except ValueError as error:
        raise UserError(f"{path} was not written by torch.save: {one_line(error)}") from error


@lru_cache(maxsize=16)  # a file is opened once to recognize its format and once to convert it
def _verify_archive(path: Path, size: int, modified: int) -> None:
    """Verify the checksums, which memory mapping would skip, and that nothing is compressed, since torch.save never compresses.

    Args:
        size, modified: of the file, in bytes and nanoseconds; another file at this path is verified again.

    Raises:
        UserError: names the invalid member.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any("/code/" in part.filename for part in parts):
            raise UserError(
                f"{path} is a TorchScript program: save its tensors, torch.save(torch.jit.load(PATH).state_dict(), 'weights.pth')"
            )
        for part in parts:
            if part.compress_type != zipfile.ZIP_STORED or part.flag_bits & 1 or part.file_size != part.compress_size:
                raise UserError(
                    f"{path}: its member {one_line(part.filename, 100)} is compressed or encrypted, which torch.save never does"
                )
        held = sum(part.file_size for part in parts)
        if held > size:
            raise UserError(f"{path} has {size:,} bytes, but its members declare {held:,}")
        if broken := archive.testzip():
            raise UserError(f"{path} is damaged: the checksum of its member {one_line(broken, 100)} is wrong")


def _refuse_tensors_beyond_the_file(content: Any, path: Path) -> None:
    """Refuse tensors far larger than the file: zero strides and shared storages could expand a small file to terabytes."""
    total, size, todo, seen = 0, path.stat().st_size, [content], set[int]()
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            total += value.numel() * value.itemsize
        elif isinstance(value, Mapping) and id(value) not in seen:  # it may contain itself
            seen.add(id(value))
            todo += value.values()
        if total > MAX_SHARED * size:
            raise UserError(f"{path} has {size:,} bytes, but its tensors have more than {MAX_SHARED} times as many")
