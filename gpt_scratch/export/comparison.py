"""Verification of exports: the largest difference of logits from the original model."""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..errors import UserError

TOLERANCE = 1e-4  # largest difference allowed without rounded weights, for logits of up to one; scales with larger logits


@dataclass
class Comparison:
    """Figures that an export prints. `compared_with` names the reader of the exported file."""

    compared_with: str
    bytes: int
    max_logit: float
    max_logit_difference: float
    tokenizer: str | None = None

    def __str__(self) -> str:
        lines = {
            "read back by": self.compared_with,
            "size": f"{self.bytes:,} bytes",
            "largest difference": f"{self.max_logit_difference:.1e} between logits of up to {self.max_logit:.1f}",
        }
        if self.tokenizer is not None:
            lines["tokenizer"] = self.tokenizer
        return "\n".join(f"{name + ':':20}{value}" for name, value in lines.items())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def refuse_difference(self) -> None:
        """Refuse a difference beyond `TOLERANCE`, for files without rounded weights.

        Raises:
            UserError: the file's logits differ from the model's.
        """
        if not self.max_logit_difference <= TOLERANCE * max(1.0, self.max_logit):
            raise UserError(
                f"verification failed: {self.compared_with} computes logits that are up to {self.max_logit_difference:.1e} "
                f"away, between logits of up to {self.max_logit:.1f}; nothing was written"
            )


def compare_logits(ours: list[torch.Tensor], theirs: list[torch.Tensor], compared_with: str, size: int) -> Comparison:
    """Compare the logits of the same prompts, (1, T, V) each; NaN on either side makes the difference NaN."""
    difference = torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs)]).max().item()
    return Comparison(compared_with, size, max(logits.abs().max().item() for logits in ours), difference)
