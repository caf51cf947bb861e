"""A smaller model taught by a larger one of the same tokenizer (Hinton et al. 2015): soft targets beside the text.

    loss = hard_loss * CE(student, text) + (1 - hard_loss) * T^2 * KL(teacher_T || student_T)

where X_T are the distributions of logits / T. T^2 keeps the size of the soft gradients, whatever T is. Both terms are means over the tokens
that the text predicts. With `hard_loss` 1 the student is trained as if there were no teacher, by the same steps.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from .language_model_trainer import LanguageModelTrainer
from .made_with import tokenizer_checksum
from .pretraining import PretrainingArguments


@dataclass
class DistillationArguments(PretrainingArguments):
    """The flags of `scripts/distill.py`: those of pretraining, and the teacher's."""

    teacher: str | None = field(
        default=None, metadata={"help": "The larger model: a directory or Hub name. Its tokenizer is used."}
    )
    teacher_temperature: float = field(
        default=2.0,
        metadata={"help": "T, by which the logits of both are divided for the soft targets; above 1 they are softer."},
    )
    hard_loss: float = field(
        default=0.5,
        metadata={"help": "Share of the loss on the text itself, 0 to 1; the rest is on the teacher's. 1: no teacher."},
    )


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    hard_loss: float,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss of the file's head.

    Args:
        student, teacher: logits, (B, T, V); a teacher with more rows than the student has tokens is cut to them.
        labels: (B, T), not shifted; -100 is not predicted.
        num_items_in_batch: predicted tokens of all accumulated batches; default: those of this one.
    """
    predicted = labels[:, 1:] != -100
    student = student[:, :-1][predicted].float()  # (N, V)
    teacher = teacher[:, :-1, : student.shape[-1]][predicted].float()
    count = predicted.sum() if num_items_in_batch is None else num_items_in_batch
    hard = F.cross_entropy(student, labels[:, 1:][predicted], reduction="sum")
    soft = F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), reduction="sum", log_target=True
    )
    return (hard_loss * hard + (1 - hard_loss) * temperature**2 * soft) / count


class DistillationTrainer(LanguageModelTrainer):
    """[`LanguageModelTrainer`] with the loss of a teacher; what it evaluates is the loss on the text alone.

    Attributes:
        teacher: on the student's device, in eval mode; its parameters have no gradient.
    """

    teacher: PreTrainedModel
    teacher_temperature: float
    hard_loss: float

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs["labels"]
        given = {name: value for name, value in inputs.items() if name != "labels"}
        output = model(**given, use_cache=False)
        with torch.no_grad():
            teacher = self.teacher(**given, use_cache=False).logits
        loss = distillation_loss(
            output.logits, teacher, labels, self.teacher_temperature, self.hard_loss, num_items_in_batch
        )  # fmt: skip
        return (loss, output) if return_outputs else loss


def check_teacher(
    teacher: PreTrainedModel, teachers: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> None:
    """Check that teacher and student can be compared.

    Raises:
        UserError: the teacher reads other tokens than the student, or shorter rows.
    """
    if tokenizer_checksum(teachers) != tokenizer_checksum(tokenizer):
        raise UserError(
            f"the teacher's tokenizer ({len(teachers):,} tokens) is not the student's ({len(tokenizer):,}): the same ids must mean the "
            "same tokens; leave out --tokenizer_name, so that the teacher's is used"
        )
    positions: Any = teacher.config.max_position_embeddings
    if block_size > positions:
        raise UserError(f"--block_size {block_size} is longer than the teacher's {positions:,} positions")


def check_arguments_of_teacher(args: DistillationArguments) -> None:
    """Check that a teacher is given.

    Raises:
        UserError: no teacher.
    """
    if args.teacher is None:
        raise UserError("--teacher is missing: give the model to learn from")
