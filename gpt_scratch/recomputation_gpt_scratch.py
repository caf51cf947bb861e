"""Activation recomputation: the backward computes cheap activations again, so that the forward need not keep them.

Autograd keeps what a product needs for its gradients. An activation function between two products makes that large, and costs next
to nothing to repeat; `recomputed` keeps only its arguments.

This file is copied into every saved checkpoint: it imports torch only.
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
    """Within it, autograd keeps `arguments` in place of `result`, and calls `function` on them again in the backward.

    For a result that is large and cheap: the activations of the MLPs are a quarter of what a layer keeps, and a hundredth of its time.
    (`torch.utils.checkpoint` would fetch the weights anew in the backward, which may be others by then.) `arguments` and `others`,
    the other activations that are used within, are kept as autograd keeps any tensor, through the hooks of gradient checkpointing or
    offloading where these are set. The compiler makes this choice for itself.
    """
    trained = all(x.requires_grad for x in arguments)
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or not trained:
        return nullcontext()
    return Recomputed(result, function, arguments, others)


class Keep(torch.autograd.Function):
    """A node that holds tensors for the backward; its `saved_tensors` gives them back, and refuses those changed in place.

    What it returns has to be kept: before torch 2.13 the node alone does not hold them.
    """

    @staticmethod
    def forward(ctx, *tensors: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*tensors)
        return tensors[0].new_empty(0)

    @staticmethod
    def backward(ctx, *gradients: Any) -> None:
        raise RuntimeError("nothing is computed from what Keep returns")


class Recomputed(torch.autograd.graph.saved_tensors_hooks):
    """See `recomputed`. Tensors that it was not given, the weights of a product, stay as they are."""

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
        # a node for each, since gradient checkpointing lets a kept tensor be fetched only once
        self.others = {memory(tensor): Keep.apply(tensor) for tensor in others if tensor.requires_grad}

    def pack(self, tensor: torch.Tensor) -> tuple[Any, Any]:
        if memory(tensor) == self.result:  # itself or a view of it
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
        if kept._version != what:  # autograd's own check, which hooks switch off
            raise RuntimeError("a weight was changed in place between the forward and the backward that needs it")
        return kept

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        del (
            self.pack_hook,
            self.unpack_hook,
            self.arguments,
            self.others,
        )  # the graph holds what was packed: no cycle must keep it longer


def memory(tensor: torch.Tensor) -> int:
    """Equal for views of the same memory while that is held, also of tensors without any (meta, fake), whose addresses are all 0."""
    return id(tensor.untyped_storage())
