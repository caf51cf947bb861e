"""Optimizers that Trainer does not build by itself."""

from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments


def adamw_on_all(model: torch.nn.Module, args: TrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with weight decay on every parameter, as the book and nanoGPT's early versions have it.

    Trainer itself leaves biases and norms without decay.
    """
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        weight_decay=args.weight_decay,
        fused=True,
    )


class MuonAndAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings, head, norms and biases; one state dict.

    Muon's update is scaled as Liu et al. 2025 (arXiv:2502.16982, equation 4) have it, to the size of AdamW's, so that a learning rate
    that suits AdamW suits both; `muon_lr` sets another one.

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
        self.muon = torch.optim.Muon(
            [trained[name] for name in matrices],
            lr=lr if muon_lr is None else muon_lr,
            weight_decay=weight_decay,
            momentum=momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        rest = [parameter for name, parameter in trained.items() if name not in matrices]
        groups = [
            {"params": [parameter for parameter in rest if parameter.ndim > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in rest if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        self.adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*self.muon.param_groups, *self.adamw.param_groups], defaults={})
        self._share()

    def _share(self) -> None:
        """Both parts work on this optimizer's groups and state, which schedulers, `state_dict` and `load_state_dict` see as one."""
        self.muon.param_groups, self.adamw.param_groups = self.param_groups[:1], self.param_groups[1:]
        self.muon.state = self.adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.muon.step()
        self.adamw.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As every optimizer's."""
        super().load_state_dict(state_dict)
        self._share()


class _Factory:
    """What Trainer takes in place of an optimizer class that needs the model."""

    def __call__(self, model: nn.Module, **kwargs: Any) -> MuonAndAdamW:
        return MuonAndAdamW(model, **kwargs)


def muon_and_adamw(args: TrainingArguments, muon_lr: float | None) -> dict[str, Any]:
    """Keyword arguments for Trainer that have it build [`MuonAndAdamW`] from its own arguments."""
    settings = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    return {"optimizer_cls_and_kwargs": (_Factory, settings | {"weight_decay": args.weight_decay, "muon_lr": muon_lr})}
