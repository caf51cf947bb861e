"""Default learning rates, and optimizers that Trainer does not provide."""

from dataclasses import field
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, SchedulerType, TrainingArguments

from .precision import cpu_multiplies_bf16

# Kind of trainable parameters to the factor of the learning rate relative to new weights, and its description.
SHARES = {
    "new": (1.0, "new weights"),
    "all": (1 / 10, "all weights of a trained model"),
    "some": (1 / 3, "some blocks, or LoRA, of a trained model"),
    "head": (1.0, "a new head alone"),
}
WARMUP = 0.05  # share of the steps


def optimizer_field() -> Any:
    """The flag `--optimizer` of the scripts that offer Muon."""
    return field(
        default="adamw",
        metadata={
            "help": "adamw: as set by --optim. muon: Muon for the matrices inside the blocks, AdamW for the rest.",
            "choices": ["adamw", "muon"],
        },
    )


def muon_learning_rate_field() -> Any:
    """The flag `--muon_learning_rate`."""
    return field(default=None, metadata={"help": "With --optimizer muon. Default: --learning_rate."})


def default_learning_rate(parameters: int, trained: str) -> float:
    """The peak learning rate of AdamW (and of Muon, scaled as below) for a model of this size.

    New weights: 6e-4 at 124M parameters, as in Brown et al. 2020 (table 2.1), times (124M / parameters)^0.3, which fits their larger models
    (2.8e-4 at 1.5B) and the best rates measured here at 0.2M to 12M; at most 5e-3. A trained model would forget at such rates: a tenth for
    all weights, or a third if most of them are frozen.

    >>> [float(f"{default_learning_rate(size, 'new'):.1e}") for size in (10**5, 10**6, 124 * 10**6, 15 * 10**8)]
    [0.005, 0.0025, 0.0006, 0.00028]
    >>> [float(f"{default_learning_rate(size, 'all'):.1e}") for size in (10**6, 124 * 10**6, 15 * 10**8)]
    [0.0011, 6e-05, 2.8e-05]

    Args:
        trained: "new", "all", "some" or "head".
    """
    growth = (124e6 / parameters) ** 0.3
    share = min(1.0, SHARES[trained][0] * max(1.0, growth)) if trained == "all" else SHARES[trained][0]
    return min(5e-3, 6e-4 * growth) * share


def set_default_learning_rate(args: TrainingArguments, parameters: int, trained: str) -> None:
    """Set learning rate, warm-up and schedule in `args` if the learning rate was not given, and print them.

    Args:
        args: [`ScratchTrainingArguments`], which record the flags that were not given.
        parameters, trained: as [`default_learning_rate`].
    """
    if "learning_rate" not in args.left_open:
        return
    args.learning_rate = float(f"{default_learning_rate(parameters, trained):.2g}")
    if "lr_scheduler_type" in args.left_open:
        args.lr_scheduler_type = SchedulerType.COSINE
    if "warmup_steps" in args.left_open:
        args.warmup_steps = WARMUP
    warmup = f"{args.warmup_steps:.0%} of the steps" if args.warmup_steps < 1 else f"{args.warmup_steps:,.0f} steps"
    print(
        f"learning rate: {args.learning_rate:g} after a warm-up of {warmup}, then {SchedulerType(args.lr_scheduler_type).value}: the "
        f"default for {SHARES[trained][1]} at {parameters:,} parameters; override it with --learning_rate"
    )


def adamw_on_all(model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on every parameter, as in the book and nanoGPT's early versions.

    Trainer applies no decay to biases and norms.
    """
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )


def orthogonalized(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """U V^T of the singular value decomposition U S V^T, about: singular values end between 0.7 and 1.2.

    The quintic Newton-Schulz iteration of Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), whose coefficients give small
    singular values the steepest slope. In fp32, the iterations of matrices with at least twice as many columns as rows are computed on
    x x^T, which is smaller: each multiplies x by a polynomial of x x^T, and these commute.

    Args:
        matrices: `(..., rows, columns)`; computed in bf16 where the hardware multiplies it, else in fp32: other CPUs are many times
            slower in bf16. The result has the dtype of `matrices`.
    """
    x = matrices.bfloat16() if matrices.device.type != "cpu" or cpu_multiplies_bf16() else matrices
    wide = x.size(-2) <= x.size(-1)
    x = x if wide else x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    # In bf16, x x^T would lose the small singular values, which it squares.
    if x.dtype == torch.float32 and x.size(-1) >= 2 * x.size(-2):
        x = _product_of_polynomials(x @ x.mT, steps) @ x
    else:
        for _ in range(steps):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def _product_of_polynomials(gram: torch.Tensor, steps: int) -> torch.Tensor:
    """The factor of x in `steps` iterations, given x x^T."""
    product = gram  # replaced in the first iteration
    for step in range(steps):
        factor = 2.0315 * gram @ gram - 4.7750 * gram
        factor.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        product = factor @ product if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    return product


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024): Nesterov momentum, orthogonalized.

    `torch.optim.Muon` computes the same, but always in bf16, one matrix at a time; here matrices of one shape are one batch. The state
    keeps torch's names.

    Args:
        params: matrices.
        lr: of AdamW: the update is scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv:2502.16982, equation 4).
    """

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.1, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Run one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            shapes: dict[tuple[torch.Size, torch.device], list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault((parameter.shape, parameter.device), []).append(parameter)
            for (shape, _), parameters in shapes.items():
                updates = orthogonalized(torch.stack([self._momentum(one, group["momentum"]) for one in parameters]))
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"] * 0.2 * max(shape) ** 0.5)
        return loss

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> torch.Tensor:
        """Nesterov's: the gradient, moved toward its running mean."""
        assert parameter.grad is not None  # step
        buffer: torch.Tensor = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(buffer, momentum)


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings, head, norms and biases; one state dict.

    Both can use the same learning rate, since Muon's update is scaled to match AdamW's; `muon_lr` overrides it.

    Args:
        model: parameters under `layers.` that are matrices go to Muon; no `nn.Embedding` is there.
        lr, betas, eps, weight_decay: AdamW's; no decay on norms and biases.
        muon_lr: `lr` by default.
        momentum: Muon's.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        muon_lr: float | None = None,
        momentum: float = 0.95,
    ):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [name for name, parameter in trained.items() if "layers." in name and parameter.ndim == 2]
        self.muon = Muon([trained[name] for name in matrices], lr if muon_lr is None else muon_lr, weight_decay, momentum)
        rest = [parameter for name, parameter in trained.items() if name not in matrices]
        groups = [
            {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Let both optimizers share this optimizer's groups and state, for schedulers, `state_dict` and `load_state_dict`."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Run one step of both optimizers."""
        loss = self.muon.step(closure)
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state and share it with both optimizers."""
        super().load_state_dict(state_dict)
        self._share()


class _Factory:
    """An optimizer factory for Trainer that receives the model."""

    def __call__(self, model: nn.Module, **kwargs: Any) -> MuonAndAdamW:
        return MuonAndAdamW(model, **kwargs)


def muon_and_adamw(args: TrainingArguments, muon_lr: float | None) -> dict[str, Any]:
    """Keyword arguments for Trainer to build [`MuonAndAdamW`] from its own arguments."""
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return {"optimizer_cls_and_kwargs": (_Factory, settings | {"weight_decay": args.weight_decay, "muon_lr": muon_lr})}


def make_optimizers(args: Any, training_args: TrainingArguments, model: PreTrainedModel) -> dict[str, Any]:
    """Keyword arguments for Trainer: its own AdamW, AdamW with decay on all parameters, or Muon and AdamW.

    Args:
        args: with `optimizer` and `muon_learning_rate`, and `weight_decay_on` where the script has it.
    """
    if args.optimizer == "muon":
        return muon_and_adamw(training_args, args.muon_learning_rate)
    decay_on_all = getattr(args, "weight_decay_on", "matrices") == "all"
    return {"optimizers": (adamw_on_all(model, training_args), None)} if decay_on_all else {}
