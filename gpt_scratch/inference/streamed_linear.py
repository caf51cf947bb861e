"""Linear layers whose weights are read from memory as fast as it allows: narrow formats, products in C, memory in huge pages.

With one row, a product does two operations per weight, so the minimum time is bytes / bandwidth; general matrix products read at a third
of it (`scripts/benchmark.py ceilings`). On a CPU, [`StreamedLinear`] calls `decoding.c`, in any model. bf16 and int8 weights are converted
to fp32 while they are read. Products of a few rows with int4 weights are of integers: their inputs are rounded to 8 bits, with a scale per
`GROUP` columns.
"""

import contextlib
import mmap
import threading
from collections.abc import Iterator
from ctypes import byref
from typing import Any

import torch
from torch import nn

from . import decoding_library as c
from .decoding_library import GROUP, address, library

WEIGHTS = ("float32", "bfloat16", "int8", "int4")
CHUNK = 1 << 24  # number of weights that are quantized at once, which limits the memory for fp32 copies
MAX_ROWS = 8  # up to this number of rows, torch.compile generates one loop for a product with a quantized weight


# ------------------------------------------------------------------------------------------------------------------- quantization


def quantize(weight: torch.Tensor, weights: str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convert a weight (out, in) to one of the formats `WEIGHTS`.

    int8 is symmetric with one fp32 scale per output: weight = scale * q, scale = max |row| / 127. int4 has a bf16 scale and minimum per
    `GROUP` columns: weight = scale * q + minimum, scale = (max - min) / 15; a byte holds two columns of a group, 16 apart.

    Args:
        weight: its number of columns is a multiple of `GROUP`.

    Returns:
        The weight and its scales: float32, bfloat16: (out, in) and `None`; int8: (out, in) and (out,); int4: uint8 (out, in / 2) and
        (out, in / GROUP, 2).
    """
    if weights == "float32":
        return weight.float().contiguous(), None
    if weights == "bfloat16":
        return weight.bfloat16().contiguous(), None
    rounded = _round_to_int8 if weights == "int8" else _round_to_int4
    quantized, scales = zip(*(rounded(rows.float()) for rows in weight.split(max(1, CHUNK // weight.shape[1]))))
    return torch.cat(quantized), torch.cat(scales)


def _round_to_int8(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = rows.abs().amax(1).clamp(min=1e-12) / 127
    return (rows / scale[:, None]).round().to(torch.int8), scale


def _round_to_int4(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = rows.reshape(len(rows), -1, GROUP)
    low, high = groups.aminmax(dim=-1)
    low = low.bfloat16()  # before the columns are rounded, which compensates for its error
    scale = ((high - low.float()) / 15).clamp(min=1e-12).bfloat16()
    q = ((groups - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 15).to(torch.uint8)
    return (q[..., : GROUP // 2] | q[..., GROUP // 2 :] << 4).view(len(rows), -1), torch.stack((scale, low), dim=-1)


def dequantize(weight: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The fp32 weight, (out, in), from the results of [`quantize`]."""
    if scale is None:
        return weight.float()
    if weight.dtype == torch.int8:
        return weight.float() * scale[:, None]
    pairs = weight.view(*scale.shape[:2], GROUP // 2)
    q = torch.cat((pairs & 15, pairs >> 4), dim=-1)  # (out, in / GROUP, GROUP)
    return (q.float() * scale[..., :1].float() + scale[..., 1:].float()).flatten(1)


class StreamedLinear(nn.Module):
    """`nn.Linear` for inference: (..., in) -> (..., out), with its weight in one of the formats `WEIGHTS`, see [`quantize`].

    Columns of zeros make the input size a multiple of `GROUP`.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, weights: str):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.padding = -linear.in_features % GROUP
        weight = linear.weight.detach()
        weight, scale = quantize(nn.functional.pad(weight, (0, self.padding)) if self.padding else weight, weights)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float().contiguous())

    def structure(self) -> c.Linear:
        """The argument of decoding.c; valid as long as the buffers are not replaced."""
        size, kind = self.in_features + self.padding, c.FORMATS[self.weight.dtype]
        return c.Linear(address(self.weight), address(self.scale), address(self.bias), size, self.out_features, kind)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        if self.padding:
            rows = nn.functional.pad(rows, (0, self.padding))
        in_c = x.device.type == "cpu" and not torch.compiler.is_compiling()
        y = self._in_c(rows) if in_c else self._in_torch(rows)
        return y.view(*x.shape[:-1], self.out_features)

    def _in_c(self, rows: torch.Tensor) -> torch.Tensor:
        x = rows.float().contiguous()
        y = x.new_empty(len(x), self.out_features)
        if loaded_library().gpt_scratch_linear(byref(self.structure()), address(x), address(y), len(x), threads_of_c()):
            raise MemoryError("not enough memory for a matrix product")
        return y.to(rows.dtype)

    def _in_torch(self, rows: torch.Tensor) -> torch.Tensor:
        weight, scale = self.weight, self.scale
        if weight.dtype == torch.uint8:
            weight, scale = dequantize(weight, scale), None
        if torch.compiler.is_compiling() and len(rows) <= MAX_ROWS and weight.dtype != rows.dtype:
            # as_strided forces the rows to be written to memory first. Otherwise the compiler fuses their producer, often a norm, into
            # the loop and recomputes it for every output.
            rows32 = rows.float().as_strided(rows.shape, (rows.shape[1], 1))
            y = torch.stack([(weight.float() * row).sum(-1) for row in rows32]).to(rows.dtype)  # one loop over the weight
        else:
            y = nn.functional.linear(rows, weight.to(rows.dtype))
        y = y if scale is None else y * scale
        return (y if self.bias is None else y + self.bias).to(rows.dtype)


def loaded_library() -> Any:
    loaded = library()
    assert loaded is not None, "prepare_for_decoding replaces no layer without the library"
    return loaded


# -------------------------------------------------------------------------------------------------------------- memory and threads


def _whole_lines(size: int) -> int:
    """`size` bytes, rounded up to a cache line."""
    return -(-size // 64) * 64


class WeightMemory:
    """Memory for weights in huge pages, of 2 MiB instead of 4 KiB, if Linux has them: it is read up to a quarter faster.

    Args:
        size: bytes.
    """

    def __init__(self, size: int):
        self.bytes, self.used = torch.empty(0, dtype=torch.uint8), 0
        if size and hasattr(mmap, "MADV_HUGEPAGE"):
            with contextlib.suppress(OSError):  # a kernel without huge pages, or a limit of the process
                memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                memory.madvise(mmap.MADV_HUGEPAGE)
                self.bytes = torch.frombuffer(memory, dtype=torch.uint8)

    @staticmethod
    def of(linears: list[StreamedLinear]) -> "WeightMemory":
        """Memory for the weights, scales and biases of these layers."""
        return WeightMemory(sum(_whole_lines(tensor.nbytes) for linear in linears for tensor in linear.buffers()))

    def concatenate(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """`torch.cat(tensors)`, in this memory if there is space."""
        size = sum(tensor.nbytes for tensor in tensors)
        if self.used + size > len(self.bytes):
            return torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        free = self.bytes[self.used : self.used + size].view(tensors[0].dtype)
        self.used += _whole_lines(size)
        return torch.cat(tensors, out=free.view(-1, *tensors[0].shape[1:]))

    def stack(self, linears: list[StreamedLinear]) -> c.Linear:
        """Linear layers of one input as a single one with all their outputs; their buffers become views of this memory."""
        for name in ("weight", "scale", "bias"):
            parts = [getattr(linear, name) for linear in linears]
            if parts[0] is not None:
                for linear, part in zip(linears, self.concatenate(parts).split([len(part) for part in parts])):
                    setattr(linear, name, part)
        structure = linears[0].structure()
        structure.out = sum(linear.out_features for linear in linears)
        return structure


_lock, _calls, _threads = threading.Lock(), 0, 1


def threads_of_c() -> int:
    """The number of threads of decoding.c."""
    return _threads if _calls else torch.get_num_threads()


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Operations of PyTorch run on one thread; decoding.c keeps its number of threads.

    After an operation, such as the choice of a token among 50,000 logits, the other threads of PyTorch wait for the next one for some
    milliseconds without giving up their cores, which decoding.c needs.
    """
    global _calls, _threads
    with _lock:
        if not _calls:
            _threads = torch.get_num_threads()
        _calls += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            _calls -= 1
            torch.set_num_threads(_threads)  # of the calling thread; the others keep theirs
