"""The trainer of language models: token-weighted evaluation, and the checkpoints of [`ResumableTrainer`]."""

from transformers.trainer_utils import EvalLoopOutput

from ..evaluation.perplexity import evaluate_loss
from .checkpoints import ResumableTrainer


class LanguageModelTrainer(ResumableTrainer):
    """Trainer whose `eval_loss` is a mean over tokens, independent of the number of processes.

    Trainer's own is a mean over batches, in which short rows have more weight, and several processes count some rows twice.
    """

    def evaluation_loop(self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"):
        name = None if self.args.disable_tqdm else f"evaluation at step {self.state.global_step}"
        batch_size = self.args.per_device_eval_batch_size
        loss = evaluate_loss(self.model, dataloader.dataset, batch_size, self.data_collator, name)["loss"]
        return EvalLoopOutput(None, None, {f"{metric_key_prefix}_loss": loss}, len(dataloader.dataset))  # type: ignore[arg-type]
