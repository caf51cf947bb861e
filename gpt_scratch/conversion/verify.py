"""Verification of conversions: sizes, checksum, and the outputs of a reference model if there is one.

The reference's outputs are written beside the converted weights, and the converted checkpoint is compared with them, as anyone can do later
(`verify_checkpoint.py`): loaded again, with and without the cache, with and without padding.

The comparison uses float32. If the difference exceeds the tolerance, it is repeated in float64, which distinguishes rounding errors
(GPT-2's activations reach thousands, its logits hundreds) from different outputs.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..inference.loading import load_model, return_memory
from ..reference_outputs import reference_outputs, save_reference_outputs
from ..verify_checkpoint import verify_checkpoint
from .safetensors_writer import checksum

TOLERANCE = 1e-4  # maximum difference of logits
PROMPT_LENGTHS = (1, 7, 32)  # tokens
GREEDY_TOKENS = 20  # each is a forward pass of both models


@dataclass
class Proof:
    """The results that a conversion prints."""

    parameters: int
    dtype: str
    tied: bool
    sha256: str
    tensors_identical: int | None = None
    compared_with: str | None = None
    max_logit_difference: float | None = None
    max_logit_difference_float64: float | None = None
    max_logit: float | None = None
    greedy_tokens_equal: bool | None = None
    reference_outputs: str | None = None

    def __str__(self) -> str:
        lines = {
            "parameters": f"{self.parameters:,}",
            "dtype": self.dtype,
            "output head": "tied to the embedding" if self.tied else "not tied",
            "sha256": f"{self.sha256[:16]}... (of the safetensors files)",
        }
        if self.tensors_identical is not None:
            lines["read back"] = f"{self.tensors_identical} source tensors, all bit-identical"
        if self.compared_with is None:
            lines["compared with"] = "nothing: transformers has no class for this format"
        else:
            lines["compared with"] = self.compared_with
            lines["largest difference"] = f"{self.max_logit_difference:.1e} between logits of up to {self.max_logit:.1f}"
            if self.max_logit_difference_float64 is not None:
                lines["largest difference"] += f" in float32; {self.max_logit_difference_float64:.1e} in float64"
        if self.greedy_tokens_equal is not None:
            lines["greedy tokens"] = "equal" if self.greedy_tokens_equal else "DIFFERENT: two tokens are about equally likely"
        if self.reference_outputs is not None:
            lines["reference outputs"] = self.reference_outputs
        return "\n".join(f"{name + ':':20}{value}" for name, value in lines.items())

    def as_dict(self) -> dict[str, Any]:
        """The results for `conversion.json`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def prompts(config: PreTrainedConfig) -> list[torch.Tensor]:
    """Fixed prompts, (1, T) each, with tokens from the whole vocabulary except the padding token."""
    rows = [[i * 7919 + 104729 * length for i in range(min(length, config.max_position_embeddings))] for length in PROMPT_LENGTHS]
    rows = [[token % config.vocab_size for token in row] for row in rows]
    return [torch.tensor([[(token + (token == config.pad_token_id)) % config.vocab_size for token in row]]) for row in rows]


@torch.inference_mode()
def logits_of(model: PreTrainedModel, asked: list[torch.Tensor]) -> list[torch.Tensor]:
    """The logits of a model for each prompt: (1, T, V), or (1, L) of a classifier."""
    return [model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits for ids in asked]


@torch.inference_mode()
def greedy_of(model: PreTrainedModel, ids: torch.Tensor) -> list[int]:
    """Greedy continuation of a prompt, as long as the positions allow, without the model's own generation settings and end of text."""
    count = min(GREEDY_TOKENS, model.config.max_position_embeddings - ids.shape[1])
    if count < 1:
        return []
    model.generation_config = GenerationConfig(max_new_tokens=count, do_sample=False, pad_token_id=0)
    return model.generate(ids, attention_mask=torch.ones_like(ids))[0].tolist()


def verify(folder: Path, head: str, reference: Callable[[], PreTrainedModel] | None) -> Proof:
    """Load the converted checkpoint and compare it with the reference; only one of the two is in memory at a time.

    Args:
        folder: the converted checkpoint; `reference_outputs.json` is written into it, computed by the reference if there is one.
        head: "lm" or "classifier".
        reference: builds the original model; `None` if there is none.

    Raises:
        UserError: the directory cannot be loaded, its logits differ by more than 1e-4, or it does not reproduce the reference outputs.
    """

    try:
        model = load_model(str(folder), head)
    except UserError as error:
        raise UserError(f"verification failed: {error}") from error
    tied = head == "lm" and model.get_output_embeddings().weight is model.get_input_embeddings().weight
    dtype = model.dtype
    proof = Proof(model.num_parameters(), str(dtype).removeprefix("torch."), tied, checksum(folder))
    stock = model.config.model_type != "gpt_scratch"
    if reference is None:
        outputs = _outputs(model.float().eval(), proof, stock)
        del model
        return_memory()
        return _verify_again(folder, proof, outputs)

    def build_reference() -> PreTrainedModel:
        assert reference is not None  # checked by the caller
        model = reference().eval()
        for parameter in model.parameters():  # not the buffers: rounded rotary frequencies would change the outputs
            parameter.data = parameter.data.to(dtype).float()  # round like the written weights, if a narrower dtype was requested
        return model

    model = model.float().eval()
    asked = prompts(model.config)
    ours, our_tokens = logits_of(model, asked), greedy_of(model, asked[1]) if head == "lm" else None
    del model
    return_memory()
    model = build_reference()
    theirs, their_tokens = logits_of(model, asked), greedy_of(model, asked[1]) if head == "lm" else None
    outputs = _outputs(model, proof, stock)
    proof.compared_with = type(model).__name__
    del model
    return_memory()
    proof.max_logit = max(logits.abs().max().item() for logits in theirs)
    proof.max_logit_difference = _difference(ours, theirs)
    if head == "lm":
        proof.greedy_tokens_equal = our_tokens == their_tokens
    difference = proof.max_logit_difference
    if not difference <= TOLERANCE:
        model = load_model(str(folder), head, torch.float64)
        ours, outputs = logits_of(model, asked), _outputs(model.float(), proof, stock)  # with float32 rounding
        del model
        theirs = logits_of(build_reference().double(), asked)
        proof.max_logit_difference_float64 = difference = _difference(ours, theirs)
    if not difference <= TOLERANCE:
        raise UserError(
            f"verification failed: logits differ from those of {proof.compared_with} by up to {difference:.1e} (maximum {TOLERANCE:.0e})"
        )
    return _verify_again(folder, proof, outputs)


def _outputs(model: PreTrainedModel, proof: Proof, stock: bool) -> dict[str, Any]:
    try:
        return reference_outputs(model, proof.dtype, stock)
    except ValueError as error:
        raise UserError(f"verification failed: {error}") from error


def _verify_again(folder: Path, proof: Proof, outputs: dict[str, Any]) -> Proof:
    """Write the reference outputs, load the checkpoint again and compare it with them."""
    save_reference_outputs(folder, outputs)
    verdict = verify_checkpoint(str(folder))
    if verdict.status:
        raise UserError(f"verification failed: the converted checkpoint {verdict.line}")
    ways = [", with and without the cache"] * (outputs["head"] == "lm") + [", with and without padding"] * bool(
        outputs["batches"]
    )
    proof.reference_outputs = "equal when loaded again" + "".join(ways)
    return proof


def _difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """The largest absolute difference, or NaN if either contains NaN."""
    return torch.stack([(a - b).abs().max() for a, b in zip(ours, theirs)]).max().item()
