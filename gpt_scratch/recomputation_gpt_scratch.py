"""What the backward computes again, in place of the forward keeping it.

Autograd keeps what a product needs for its gradients. An activation function between two products makes that large, and costs next
to nothing to repeat; `recomputed` has its argument kept alone.

This file is copied into every saved checkpoint: it imports torch only.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def recomputed(result: torch.Tensor, function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> AbstractContextManager:
    """Within it, autograd keeps `arguments` in place of `result`, and calls `function` on them again in the backward.

    For a result that is large and cheap: the activations of the MLPs are a quarter of what a layer keeps, and a hundredth of its time.
    (`torch.utils.checkpoint` would fetch the weights anew in the backward, which may be others by then.) What else keeps tensors in
    its own way, gradient checkpointing or offloading, gets them from here. The compiler makes this choice for itself.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nullcontext()
    return Recomputed(result, function, arguments)


class Recomputed(torch.autograd.graph.saved_tensors_hooks):
    """See `recomputed`."""

    def __init__(self, result: torch.Tensor, function: Callable[..., torch.Tensor], arguments: tuple[torch.Tensor, ...]):
        super().__init__(self.pack, self.unpack)
        self.function, self.arguments = function, arguments
        self.storage, self.dtype = result.untyped_storage()._cdata, result.dtype
        around = torch._C._autograd._top_saved_tensors_default_hooks(False)
        self.keep, self.fetch = around or (lambda tensor: tensor, lambda kept: kept)

    def pack(self, tensor: torch.Tensor) -> tuple[Any, torch.Size | int]:
        if tensor.untyped_storage()._cdata == self.storage:  # the result or a view of it
            return [self.keep(argument) for argument in self.arguments], tensor.shape
        return self.keep(tensor), tensor._version

    def unpack(self, packed: tuple[Any, torch.Size | int]) -> torch.Tensor:
        kept, stamp = packed
        if isinstance(stamp, torch.Size):
            return self.function(*map(self.fetch, kept)).to(self.dtype).view(stamp)
        tensor = self.fetch(kept)
        if tensor is kept and tensor._version != stamp:  # autograd's own check, which hooks switch off
            raise RuntimeError("a weight was changed in place between the forward and the backward that needs it")
        return tensor

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        # The graph holds these hooks: only what was packed shall live as long as it, and no cycle longer.
        self.arguments = ()
        del self.pack_hook, self.unpack_hook
