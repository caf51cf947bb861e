"""Knowledge distillation (Hinton et al. 2015): a smaller model is trained on the soft targets of a larger one with the same tokenizer.

    loss = hard_loss * CE(student, text) + (1 - hard_loss) * T^2 * KL(teacher_T || student_T)

where X_T are the distributions of logits / T. The factor T^2 makes the scale of the soft gradients independent of T. Both terms are means
over the predicted tokens. With `hard_loss` 1, training is the same as without a teacher.
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
        metadata={"help": "Temperature T of the soft targets; above 1 they are softer."},
    )
    hard_loss: float = field(
        default=0.5,
        metadata={"help": "Weight of the loss on the text, 0 to 1; the rest is for the soft targets. 1: no teacher."},
    )


def distillation_loss(
    student: torch.Tensor,
    teacher: torch.Tensor,
    labels: torch.Tensor,
    temperature: float,
    hard_loss: float,
    num_items_in_batch: int | torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss in the module docstring.

    Args:
        student, teacher: logits, (B, T, V); a larger vocabulary of the teacher is truncated.
        labels: (B, T), not shifted; -100 is ignored.
        num_items_in_batch: number of predicted tokens over all accumulated batches; default: of this batch.
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
    """[`LanguageModelTrainer`] with the distillation loss; evaluation uses only the loss on the text.

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
        UserError: the tokenizers differ, or the teacher has too few positions.
    """
    if tokenizer_checksum(teachers) != tokenizer_checksum(tokenizer):
        raise UserError(
            f"the teacher's tokenizer ({len(teachers):,} tokens) differs from the student's ({len(tokenizer):,}): leave out "
            "--tokenizer_name to use the teacher's"
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
        raise UserError("--teacher is missing: give the teacher model")
