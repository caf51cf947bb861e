"""Generation at the speed of memory: products of one row as compiled reductions, weights in fewer bytes, the whole step compiled.

Generating one token reads every weight once and does two operations with it, so its time is bytes / bandwidth, if the kernels reach the
bandwidth. General matrix products do not on a CPU: for one row they read at a third of it (`scripts/benchmark.py ceilings`). Written as
a sum of products, torch.compile makes a plain loop of it, which does. The same loop widens bf16 and int8 weights on the way from memory, so
that fewer bytes are read and all arithmetic stays fp32.

`torch.compile` needs a C++ compiler, and some twenty seconds at the first use on a machine; later starts find its results on disk.
"""

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache
from transformers.generation import CompileConfig

from ..errors import UserError
from ..releases_gpt_scratch import CACHE

WEIGHTS = ("float32", "bfloat16", "int8")
PIECE_BYTES = 1 << 20  # of a weight that is widened for a matrix product
FEW_ROWS = 4  # rows up to which the order of the factors of a matrix product makes no difference
MAX_ROWS = 8  # up to which the product with a bf16 or int8 weight is one loop; for more rows the weight is widened in memory


class StreamedLinear(nn.Module):
    """`nn.Linear` for inference: (..., in) -> (..., out), its weight (out, in) kept in `weights`.

    int8 is symmetric, one fp32 scale per output (row of the weight): weight = scale * round(weight / scale), scale = max |row| / 127.
    The order of the factors depends on the precision of fp32 products (`training.precision`) that is set when this is made.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None

    def __init__(self, linear: nn.Linear, weights: str):
        super().__init__()
        weight = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.through_onednn = torch.get_float32_matmul_precision() != "highest"  # asked here: the compiler cannot see it
        scale: torch.Tensor | None = None
        if weights == "int8":
            scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
            weight = (weight.float() / scale[:, None]).round().to(torch.int8)
        elif weights == "bfloat16":
            weight = weight.bfloat16()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).contiguous()
        compiling = torch.compiler.is_compiling()
        narrow = self.weight.dtype != x.dtype
        if compiling and rows.shape[0] <= (MAX_ROWS if narrow else 1):
            # as_strided has the rows written to memory first. Without it the compiler moves their producer, often a norm, into the
            # loop, and computes it again for every output: twice the time of a model in int8.
            rows = rows.float().as_strided(rows.shape, (self.in_features, 1))
            y = torch.stack([(self.weight.float() * row).sum(-1) for row in rows]).to(x.dtype)  # one loop over the weight
        elif compiling and self.through_onednn and rows.shape[0] > FEW_ROWS:
            # oneDNN reads a weight up to a third faster as the first factor (MKL slower). Input and output are written to memory
            # by rows, since the loops around a transposed product are slow.
            rows = rows.as_strided(rows.shape, (self.in_features, 1))
            y = torch.mm(self.weight.to(x.dtype), rows.T).T.contiguous()
            y = y.as_strided(y.shape, (self.out_features, 1))
        elif compiling or not narrow:
            y = nn.functional.linear(rows, self.weight.to(x.dtype))
        else:  # the weight is widened piece by piece, in the cache
            y = x.new_empty(rows.shape[0], self.out_features)
            step = max(1, PIECE_BYTES // (self.in_features * x.itemsize))
            for start in range(0, self.out_features, step):
                torch.mm(rows, self.weight[start : start + step].to(x.dtype).T, out=y[:, start : start + step])
        if self.scale is not None:
            y = y * self.scale
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], self.out_features)


def prepare_for_decoding(model: PreTrainedModel, weights: str = "float32") -> PreTrainedModel:
    """Replace every linear layer of `model`, in place, and have its `generate` compile the step over a static cache.

    For inference only: what was there cannot be trained or saved any more.

    Args:
        weights: "float32" (the same tokens), "bfloat16" or "int8" (weights only; activations and arithmetic are fp32).

    Raises:
        UserError: an unknown name.
    """
    if weights not in WEIGHTS:
        raise UserError(f"weights is {weights!r}: choose one of {', '.join(WEIGHTS)}")
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, StreamedLinear(child, weights))
    return model


def compiled_generation(model: PreTrainedModel | None = None, tokens: int = 0) -> dict[str, object]:
    """Settings for `generate` that make it compile the decoding step, on a CPU too.

    Args:
        model, tokens: for conversations: prompt and reply have at most `tokens` tokens. The cache then has one of a few sizes (powers
            of two from 256 on), since every size is compiled for itself. Without them it has exactly the size of one call.
    """
    compile_config = CompileConfig(fullgraph=True, dynamic=False, mode="default")
    compile_config._compile_all_devices = True  # otherwise transformers compiles on GPUs only
    settings: dict[str, object] = {"compile_config": compile_config, "disable_compile": False}
    if model is None:
        return settings | {"cache_implementation": "static"}
    length = min(max(256, 1 << (tokens - 1).bit_length()), model.config.max_position_embeddings)
    return settings | {CACHE: StaticCache(config=model.config, max_cache_len=length)}
