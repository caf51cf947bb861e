"""Activation recomputation: cheap activations are computed again in the backward pass instead of being saved in the forward pass.

Autograd saves the inputs of every matrix product. The output of an activation function between two products is large and cheap to
recompute; `recomputed` saves only the inputs of the function.

This file is copied into every saved checkpoint, so it imports only torch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def recomputed(
    result: torch.Tensor,
    function: Callable[..., torch.Tensor],
    *arguments: torch.Tensor,
    others: tuple[torch.Tensor, ...] = (),
) -> AbstractContextManager:
    """A context manager in which autograd saves `arguments` instead of `result`, and calls `function` on them again in the backward pass.

    For results that are large and cheap to compute: the activations of the MLPs take a quarter of the saved memory of a layer, and a
    hundredth of its time. (`torch.utils.checkpoint` would read the weights again in the backward pass, and they may have changed.)
    `arguments` and `others`, the other activations used inside, are saved like any tensor, through the saved-tensor hooks of gradient
    checkpointing or offloading. Under `torch.compile` the compiler decides what to recompute.
    """
    trained = all(x.requires_grad for x in arguments)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not trained:
        return nullcontext()
    return Recomputed(result, function, arguments, others)


class Keep(torch.autograd.Function):
    """A node that saves tensors for the backward pass; its `saved_tensors` returns them, and raises if one was changed in place.

    Keep a reference to its output: before torch 2.13 the node alone does not keep the tensors alive.
    """

    @staticmethod
    def forward(ctx, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_empty(0)

    @staticmethod
    def backward(ctx, *gradients: Any) -> None:
        raise RuntimeError("nothing is computed from what Keep returns")


class Recomputed(torch.autograd.graph.saved_tensors_hooks):
    """See `recomputed`. Other tensors, the weights of a product, are saved unchanged."""

    def __init__(
        self,
        result: torch.Tensor,
        function: Callable[..., torch.Tensor],
        arguments: tuple[torch.Tensor, ...],
        others: tuple[torch.Tensor, ...],
    ):
        super().__init__(self.pack, self.unpack)
        self.function, self.dtype, self.result = function, result.dtype, memory(result)
        self.arguments = Keep.apply(*arguments)
        # a node for each, because gradient checkpointing allows a saved tensor to be unpacked only once
        self.others = {memory(tensor): Keep.apply(tensor) for tensor in others if tensor.requires_grad}

    def pack(self, tensor: torch.Tensor) -> tuple[Any, Any]:
        if memory(tensor) == self.result:  # the result or a view of it
            return self.arguments, tensor.shape
        if memory(tensor) in self.others:
            return self.others[memory(tensor)], (tensor.shape, tensor.stride(), tensor.storage_offset())
        return tensor, tensor._version

    def unpack(self, packed: tuple[Any, Any]) -> torch.Tensor:
        kept, what = packed
        if isinstance(what, torch.Size):
            return self.function(*kept.grad_fn.saved_tensors).to(self.dtype).view(what)
        if isinstance(what, tuple):
            (tensor,) = kept.grad_fn.saved_tensors
            same = (tensor.shape, tensor.stride(), tensor.storage_offset()) == what
            return tensor if same else tensor.as_strided(*what)
        if kept._version != what:  # autograd's own check, which saved-tensor hooks disable
            raise RuntimeError("a weight was changed in place between the forward and the backward that needs it")
        return kept

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        del (
            self.pack_hook,
            self.unpack_hook,
            self.arguments,
            self.others,
        )  # the graph owns the packed tensors: a reference cycle would keep them alive longer


def memory(tensor: torch.Tensor) -> int:
    """Equal for views of the same storage while it is alive; also for tensors without memory (meta, fake), whose addresses are all 0."""
    return id(tensor.untyped_storage())
