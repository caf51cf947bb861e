"""Memory-bound generation: matrix-vector products as compiled reductions, reduced-precision weights, a compiled decoding step.

Generating a token reads every weight once for two operations, so the minimum time is bytes / bandwidth. On a CPU, general matrix products
do not reach the bandwidth: with one row they read at a third of it (`scripts/benchmark.py ceilings`). Written as a sum of products,
torch.compile generates a plain loop that does. The loop converts bf16 and int8 weights while reading them, so fewer bytes are read and all
arithmetic is fp32.

`torch.compile` needs a C++ compiler and about twenty seconds for the first use on a machine; later starts use its cache.
"""

import torch
from torch import nn
from transformers import PreTrainedModel, StaticCache
from transformers.generation import CompileConfig

from ..errors import UserError
from ..releases_gpt_scratch import CACHE

WEIGHTS = ("float32", "bfloat16", "int8")
PIECE_BYTES = 1 << 20  # chunk size for converting a weight for a matrix product
FEW_ROWS = 4  # up to this number of rows, the order of the factors of a matrix product makes no difference
MAX_ROWS = 8  # up to this number of rows, the product with a bf16 or int8 weight is one loop; for more, the weight is converted in memory


class StreamedLinear(nn.Module):
    """`nn.Linear` for inference: (..., in) -> (..., out), with its weight (out, in) stored as `weights`.

    int8 is symmetric with one fp32 scale per output (row of the weight): weight = scale * round(weight / scale), scale = max |row| / 127.
    The order of the factors depends on the precision of fp32 products (`training.precision`) at construction.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None

    def __init__(self, linear: nn.Linear, weights: str):
        super().__init__()
        weight = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.through_onednn = torch.get_float32_matmul_precision() != "highest"  # read here, since the compiler cannot
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
            # as_strided forces the rows to be written to memory first. Otherwise the compiler fuses their producer, often a norm, into
            # the loop and recomputes it for every output, which doubles the time of an int8 model.
            rows = rows.float().as_strided(rows.shape, (self.in_features, 1))
            y = torch.stack([(self.weight.float() * row).sum(-1) for row in rows]).to(x.dtype)  # one loop over the weight
        elif compiling and self.through_onednn and rows.shape[0] > FEW_ROWS:
            # oneDNN is up to a third faster with the weight as the first factor (MKL is slower). Input and output are stored by rows,
            # since the loops around a transposed product are slow.
            rows = rows.as_strided(rows.shape, (self.in_features, 1))
            y = torch.mm(self.weight.to(x.dtype), rows.T).T.contiguous()
            y = y.as_strided(y.shape, (self.out_features, 1))
        elif compiling or not narrow:
            y = nn.functional.linear(rows, self.weight.to(x.dtype))
        else:  # convert the weight in chunks that fit in the cache
            y = x.new_empty(rows.shape[0], self.out_features)
            step = max(1, PIECE_BYTES // (self.in_features * x.itemsize))
            for start in range(0, self.out_features, step):
                torch.mm(rows, self.weight[start : start + step].to(x.dtype).T, out=y[:, start : start + step])
        if self.scale is not None:
            y = y * self.scale
        return (y if self.bias is None else y + self.bias).reshape(*x.shape[:-1], self.out_features)


def prepare_for_decoding(model: PreTrainedModel, weights: str = "float32") -> PreTrainedModel:
    """Replace every linear layer of `model` in place, and make `generate` compile the decoding step with a static cache.

    For inference only: the model cannot be trained or saved afterwards.

    Args:
        weights: "float32" (same tokens), "bfloat16" or "int8" (weights only; activations and arithmetic are fp32).

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
    """Settings for `generate` that compile the decoding step, also on a CPU.

    Args:
        model, tokens: for conversations with at most `tokens` tokens in prompt and reply. The cache size is then rounded up to a power of
            two, at least 256, since each size is compiled separately. Without them, the cache has the exact size of the call.
    """
    compile_config = CompileConfig(fullgraph=True, dynamic=False, mode="default")
    compile_config._compile_all_devices = True  # by default transformers compiles on GPUs only
    settings: dict[str, object] = {"compile_config": compile_config, "disable_compile": False}
    if model is None:
        return settings | {"cache_implementation": "static"}
    length = min(max(256, 1 << (tokens - 1).bit_length()), model.config.max_position_embeddings)
    return settings | {CACHE: StaticCache(config=model.config, max_cache_len=length)}
