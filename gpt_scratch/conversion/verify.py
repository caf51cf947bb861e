"""The proof at the end of every conversion: sizes, checksum, and the same function as a reference where one can run."""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from ..errors import UserError
from .convert import checksum

TOLERANCE = 1e-4  # largest logit difference allowed in fp32
PROMPT_LENGTHS = (1, 7, 32)
GREEDY_TOKENS = 50


@dataclass
class Evidence:
    """What a model answers to the fixed prompts: logits of each, and greedy tokens (language models only)."""

    logits: list[torch.Tensor]
    greedy: list[list[int]] | None


@dataclass
class Proof:
    """The figures that a conversion prints."""

    parameters: int
    dtype: str
    tied: bool
    checksum: str
    compared_with: str | None = None
    max_logit_difference: float | None = None
    max_logit: float | None = None
    greedy_tokens_equal: bool | None = None

    def __str__(self) -> str:
        lines = [
            f"parameters          {self.parameters:,}",
            f"dtype               {self.dtype}",
            f"head                {'tied to the embedding' if self.tied else 'its own'}",
            f"sha256              {self.checksum}...",
        ]
        if self.compared_with is None:
            lines.append(
                "compared with       nothing: transformers has no class for this format; the weight map's tests stand for it"
            )
        else:
            lines += [
                f"compared with       {self.compared_with}",
                f"largest difference  {self.max_logit_difference:.2e} between logits of up to {self.max_logit:.1f}",
            ]
            if self.greedy_tokens_equal is not None:
                lines.append(
                    f"greedy tokens       {'equal' if self.greedy_tokens_equal else 'DIFFERENT'}, {GREEDY_TOKENS} for each prompt"
                )
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """For `conversion.json`."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def prompts(vocab_size: int, max_positions: int) -> list[torch.Tensor]:
    """Fixed token ids, (1, T) each: spread over the whole vocabulary by a linear congruence, the same for everybody."""
    lengths = [length for length in PROMPT_LENGTHS if length <= max_positions]
    return [torch.tensor([[(i * 7919 + 104729 * length) % vocab_size for i in range(length)]]) for length in lengths]


@torch.inference_mode()
def question(model: PreTrainedModel) -> Evidence:
    """The answers of a model to the fixed prompts, in fp32."""
    model = model.float().eval()
    limit = model.config.max_position_embeddings
    asked = prompts(model.config.vocab_size, limit)
    logits = [model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits for ids in asked]
    greedy = None
    if hasattr(model, "lm_head"):
        greedy = [
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=min(GREEDY_TOKENS, limit - ids.shape[1]),
                min_new_tokens=min(GREEDY_TOKENS, limit - ids.shape[1]), pad_token_id=0, repetition_penalty=1.0,
            )[0].tolist()
            for ids in asked
            if ids.shape[1] < limit
        ]  # fmt: skip
    return Evidence(logits, greedy)


def reference_evidence(reference: dict[str, Any] | None, head: str) -> tuple[str, Evidence] | None:
    """The answers of transformers' own class to the source checkpoint; `None` where it has none. The model is freed again."""
    if reference is None:
        return None
    if "model" in reference:
        return type(reference["model"]).__name__, question(reference["model"])
    auto = AutoModelForSequenceClassification if head == "classifier" else AutoModelForCausalLM
    model = auto.from_pretrained(reference["path"], dtype=torch.float32)
    name = type(model).__name__
    evidence = question(model)
    del model
    gc.collect()
    return name, evidence


def verify(folder: Path, head: str, reference: tuple[str, Evidence] | None) -> Proof:
    """Load what was written and compare it.

    Raises:
        UserError: the directory cannot be loaded, or its logits are more than 1e-4 from the reference's.
    """
    auto = AutoModelForSequenceClassification if head == "classifier" else AutoModelForCausalLM
    model, report = auto.from_pretrained(folder, dtype="auto", output_loading_info=True)
    if report["missing_keys"] or report["unexpected_keys"]:
        raise UserError(
            f"what was written does not load: {sorted(report['missing_keys'])[:3]} {sorted(report['unexpected_keys'])[:3]}"
        )
    tied = head == "lm" and model.lm_head.weight is model.get_input_embeddings().weight
    proof = Proof(model.num_parameters(), str(model.dtype).removeprefix("torch."), tied, checksum(folder))
    if reference is None:
        return proof
    ours = question(model)
    proof.compared_with = reference[0]
    proof.max_logit_difference = max(float((a - b).abs().max()) for a, b in zip(ours.logits, reference[1].logits))
    proof.max_logit = max(float(logits.abs().max()) for logits in ours.logits)
    if ours.greedy is not None:
        proof.greedy_tokens_equal = ours.greedy == reference[1].greedy
    if not proof.max_logit_difference <= TOLERANCE:
        raise UserError(
            f"verification failed: logits are up to {proof.max_logit_difference:.2e} from {reference[0]}'s, {TOLERANCE:.0e} is allowed"
        )
    return proof


def parse_size(text: str) -> int:
    """Bytes from `500MB`, `5GB` (powers of 1000) or a plain number.

    Raises:
        UserError: neither.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    upper = text.strip().upper()
    number, factor = (upper[:-2], units[upper[-2:]]) if upper[-2:] in units else (upper, 1)
    if not number.strip().isdigit() or int(number) < 1:
        raise UserError(f"size {text!r}: write 500MB, 5GB or a number of bytes")
    return int(number) * factor
