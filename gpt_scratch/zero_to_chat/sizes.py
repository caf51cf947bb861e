"""Model sizes: the depth determines width, heads, vocabulary, batch, tokens and learning rates; with an estimate of the cost of a run.

The rule, for depth L (12 is GPT-2's smallest):

    width               32 L below depth 8, 64 L from there on
    heads               of size 32 below depth 8, 64 from there on
    MLP                 gated, 8/3 of the width (as Llama's), a multiple of 32
    vocabulary          width^2 / 16, at least 1,024 and at most 32,768
    positions           128 below depth 8, 1,024 from there on
    tokens per step     2,048 sqrt(parameters / 1M), the nearest power of two
    exercises           2,000 L^2 texts to look facts up in, mixed with the bundled stories
    pretraining tokens  20 per parameter (Hoffmann et al. 2022), at most 4 epochs (Muennighoff et al. 2023: more teach little)
    initial weights     normal with a standard deviation of sqrt(2 / (5 width)) (Nguyen & Salazar 2019): 0.056 at width 128, 0.023 at 768,
                        where GPT-2 has 0.02
    learning rates      the package's default for new weights, by the number of parameters, for instruction tuning, which has as many
                        tokens as the text; twice that for pretraining, which learns to look up facts in fewer steps; a thirteenth of it
                        for reinforcement; for Muon's matrices, twice that of the stage

Instruction tuning takes `EPOCHS` epochs of the dialogues; reinforcement asks each question once.
"""

import math
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from ..analysis.summary import activation_bytes, flops_per_token
from ..configuration_gpt_scratch import GPTScratchConfig
from ..conflicts import DEPTHS
from ..loss_gpt_scratch import CHUNK_BYTES_PER_ENTRY
from ..modeling_gpt_scratch import GPTScratchForCausalLM
from ..training.optimizers import default_learning_rate
from ..training.precision import bf16_is_faster

TOKENS_PER_PARAMETER = 20
MAX_EPOCHS = 4
EPOCHS = 2  # of the dialogues
QUESTIONS_A_STEP, REPLIES = 32, 8  # of reinforcement
REPLY_TOKENS = 24
DIALOGUE_TOKENS = 36  # of a bundled dialogue with its template, about
EXERCISE_TOKENS = 31  # of an exercise, about
# Cost of a token of reinforcement, relative to training: sampling, forward passes of the model and its reference, backward pass.
PASSES = 3.5
STARTING = 20.0  # seconds before a stage trains: imports, data, first evaluation


@dataclass(frozen=True)
class Size:
    """Everything that follows from the depth and the amount of data. A batch has `rows` rows of `positions` tokens."""

    name: str
    depth: int
    width: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    parameters: int
    rows: int  # per step of pretraining
    exercises: int
    pretraining_steps: int
    dialogues: int
    dialogue_rows: int  # per step of instruction tuning
    instruction_steps: int
    questions: int
    reinforcement_steps: int
    rates: dict[str, float]

    @property
    def pretraining_tokens(self) -> int:
        return self.pretraining_steps * self.rows * self.positions

    @property
    def instruction_tokens(self) -> int:
        return self.instruction_steps * self.dialogue_rows * DIALOGUE_TOKENS

    @property
    def reinforcement_tokens(self) -> int:
        """Tokens of questions and replies; each costs as much as `PASSES` tokens of training."""
        return self.reinforcement_steps * QUESTIONS_A_STEP * REPLIES * (DIALOGUE_TOKENS - 8 + REPLY_TOKENS // 2)

    def config_overrides(self) -> dict[str, Any]:
        """Of `scripts/pretrain.py`: rotary positions, RMSNorm, QK norm and a gated MLP, which is Qwen 3's layout."""
        return {
            "n_embd": self.width,
            "n_layer": self.depth,
            "n_head": self.heads,
            "n_positions": self.positions,
            "intermediate_size": self.intermediate,
            "drop_rate": 0.0,
            "qkv_bias": False,
            "o_bias": False,
            "mlp_bias": False,
            "position_embedding_type": "rope",
            "norm_type": "rmsnorm",
            "qk_norm": True,
            "mlp_type": "gated",
            "hidden_act": "silu",
            "initialization": "gpt2_zero",
            "initializer_range": float(f"{math.sqrt(2 / (5 * self.width)):.2g}"),
        }

    def describe(self) -> str:
        """The sizes as lines of text."""
        rates = ", ".join(f"{name} {rate:.2g}" for name, rate in self.rates.items())
        return (
            f"{self.name}: depth {self.depth}, width {self.width}, {self.heads} heads, MLP {self.intermediate}, vocabulary "
            f"{self.vocabulary:,}, {self.positions:,} positions: {self.parameters / 1e6:,.2f}M parameters\n"
            f"  pretraining     {self.pretraining_tokens:,} tokens, {self.pretraining_steps:,} steps of {self.rows} rows, "
            f"{self.exercises:,} exercises\n"
            f"  instructions    {self.dialogues:,} dialogues {EPOCHS} times, {self.instruction_steps:,} steps of {self.dialogue_rows}\n"
            f"  reinforcement   {self.questions:,} questions, {REPLIES} replies each, {self.reinforcement_steps:,} steps\n"
            f"  learning rates  {rates}"
        )


def architecture(depth: int) -> dict[str, int]:
    """Width, heads, MLP, vocabulary and positions of a depth."""
    large = depth >= 8
    width = (64 if large else 32) * depth
    return {
        "width": width,
        "heads": width // (64 if large else 32),
        "intermediate": round(8 * width / 3 / 32) * 32,
        "vocabulary": min(32_768, max(1024, width * width // 16)),
        "positions": 1024 if large else 128,
    }


def make_size(
    name: str, text_tokens: float, dialogues: int | None = None, questions: int | None = None, exercises: bool = False
) -> Size:
    """Apply the rule at the top of this file.

    Args:
        name: of [`DEPTHS`], or a number of layers.
        text_tokens: approximate number of tokens of the text to pretrain on; may be infinite.
        dialogues, questions: numbers in the user's own data; default: as many as are generated for this size.
        exercises: whether they are mixed with the text.
    """
    depth = DEPTHS[name] if name in DEPTHS else int(name)
    shape = architecture(depth)
    parameters = _parameters(depth, shape)
    step = 2 ** round(math.log2(2048 * math.sqrt(parameters / 1e6)))
    rows = max(8, step // shape["positions"])
    count = 2000 * depth * depth if exercises else 0  # 32,000 at depth 4
    tokens = min(TOKENS_PER_PARAMETER * parameters, MAX_EPOCHS * (text_tokens + count * EXERCISE_TOKENS))
    dialogues = dialogues or 1600 * depth * depth  # 25,600 at depth 4
    questions = questions or 200 * depth * depth  # 3,200 at depth 4
    dialogue_rows = max(16, step // 64)
    rate = default_learning_rate(parameters, "new")
    return Size(
        name=name,
        depth=depth,
        parameters=parameters,
        rows=rows,
        exercises=count,
        pretraining_steps=max(1, round(tokens / (rows * shape["positions"]))),
        dialogues=dialogues,
        dialogue_rows=dialogue_rows,
        instruction_steps=max(1, round(EPOCHS * dialogues / dialogue_rows)),
        questions=questions,
        reinforcement_steps=max(1, questions // QUESTIONS_A_STEP),
        rates={"pretraining": _round(2 * rate), "instructions": _round(rate), "reinforcement": _round(rate / 13)},
        **shape,
    )


def _round(rate: float) -> float:
    return float(f"{rate:.2g}")


def _parameters(depth: int, shape: dict[str, int]) -> int:
    """Number of parameters, norms included, with a tied head."""
    width, heads = shape["width"], shape["heads"]
    block = 4 * width * width + 3 * width * shape["intermediate"] + 2 * width + 2 * (width // heads)
    return shape["vocabulary"] * width + depth * block + width


def make_model(size: Size) -> GPTScratchForCausalLM:
    """A new model of this size."""
    return GPTScratchForCausalLM(GPTScratchConfig(**size.config_overrides(), vocab_size=size.vocabulary))


def measured_speed(size: Size, steps: int = 3) -> float:
    """Tokens per second of a training step of this model on this machine, the median of `steps` steps after a warm-up."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make_model(size).to(device).train()
    rows = min(size.rows, max(1, 4096 // size.positions))
    ids = torch.randint(0, size.vocabulary, (rows, size.positions), device=device)
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=bf16_is_faster(use_cpu=False)):  # as the stages train
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        model.zero_grad()
        seconds.append(time.perf_counter() - start)
    return ids.numel() / median(seconds[1:])


def training_flops(size: Size) -> int:
    """Floating-point operations of training per token."""
    with torch.device("meta"):
        return flops_per_token(make_model(size), size.positions)[1]


def training_bytes(size: Size) -> int:
    """Weights, gradients, AdamW's two moments, activations saved for the backward pass, and the logits of the chunked loss."""
    config = make_model_config(size)
    activations = activation_bytes(config, GPTScratchForCausalLM, min(size.rows, 32), size.positions)
    logits = min(size.rows, 32) * size.positions * size.vocabulary * 4
    return 16 * size.parameters + activations + min(logits, CHUNK_BYTES_PER_ENTRY * size.vocabulary)


def make_model_config(size: Size) -> GPTScratchConfig:
    return GPTScratchConfig(**size.config_overrides(), vocab_size=size.vocabulary)


def seconds_of_stages(
    size: Size, tokens_per_second: float, least_step: float = 0.0, least_token: float = 0.0
) -> dict[str, float]:
    """Estimated seconds of the stages that train, each with `STARTING` seconds. The factors for optimizer, short rows and sampling, which
    `measured_speed` does not include, are those of a run of `tiny` on two cores.

    Args:
        least_step: lower bound of the seconds of a training step: the time in which a GPU's kernels are launched.
        least_token: the same for generating one token of a batch of replies.
    """
    reinforcement = PASSES * size.reinforcement_tokens / size.reinforcement_steps / tokens_per_second
    steps = {
        "pretraining": (
            size.pretraining_steps,
            1.4 * size.pretraining_tokens / size.pretraining_steps / tokens_per_second,
            least_step,
        ),
        "instructions": (
            size.instruction_steps,
            1.9 * size.instruction_tokens / size.instruction_steps / tokens_per_second,
            least_step,
        ),
        "reinforcement": (size.reinforcement_steps, reinforcement, 2 * least_step + REPLY_TOKENS * least_token),
    }
    return {name: STARTING + number * max(seconds, least) for name, (number, seconds, least) in steps.items()}


def as_record(size: Size) -> dict[str, Any]:
    """For JSON."""
    return asdict(size) | {"pretraining_tokens": size.pretraining_tokens}
