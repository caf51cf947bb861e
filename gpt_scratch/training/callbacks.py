"""Trainer callbacks: log lines, perplexity, samples, loss on training text, live loss curves, overfitting warnings."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..analysis.overfitting import overfitting_step
from ..evaluation.perplexity import evaluate_loss, perplexity
from ..inference.generation import generate_ids, pad_left, padding_id
from ..plots import plot_losses, plot_or_warn
from ..tokenization.special_tokens import encode_text

# Display names of the values that Trainer and TRL log; others are shown by their own name.
LOG_NAMES = {
    "loss": "loss", "eval_loss": "validation loss", "learning_rate": "learning rate", "grad_norm": "gradient norm",
    "num_input_tokens_seen": "tokens seen", "train_tokens_per_second": "tokens/s", "eval_macro_f1": "macro F1", "eval_roc_auc": "ROC AUC",
}  # fmt: skip
COUNTS = ("num_input_tokens_seen", "train_tokens_per_second", "num_tokens")  # shown before their names
HIDDEN = ("epoch", "step", "total_flos")
HIDDEN_ENDS = ("_runtime", "_per_second", "_preparation_time", "_macro_precision", "_macro_recall", "_calibration_error",
                 "eval_precision", "eval_recall", "eval_f1")  # fmt: skip


def log_line(logs: Mapping[str, Any], step: int, max_steps: int) -> str:
    """Format Trainer's logs as a line; lists, such as confusion matrices, are omitted.

    >>> log_line({"loss": 2.5, "learning_rate": 1e-3, "epoch": 0.5, "num_input_tokens_seen": 5120}, 10, 20)
    'step 10 of 20 (epoch 0.50): loss 2.5, learning rate 0.001, 5,120 tokens seen'
    """
    if "train_runtime" in logs and "train_loss" in logs:
        minutes, seconds = divmod(round(logs["train_runtime"]), 60)
        took = f"{minutes} min {seconds} s" if minutes else f"{logs['train_runtime']:.1f} s"
        return f"trained {step:,} steps in {took}; mean loss {logs['train_loss']:.4g}"
    epoch = f" (epoch {logs['epoch']:.2f})" if "epoch" in logs else ""
    shown = []
    for key, value in logs.items():
        name = LOG_NAMES.get(key, key.removeprefix("eval_").replace("_", " "))
        if key in HIDDEN or (key not in LOG_NAMES and key.endswith(HIDDEN_ENDS)) or not isinstance(value, (int, float)):
            continue
        shown.append(f"{value:,.0f} {name}" if key in COUNTS else f"{name} {value:.4g}")
    kind = "validation, " if any(key.startswith("eval_") for key in logs) and "eval_loss" not in logs else ""
    return f"step {step:,} of {max_steps:,}{epoch}: {kind}{', '.join(shown)}"


class LogCallback(ProgressCallback):
    """Trainer's progress bar, with log lines instead of dicts; only the lines without a terminal."""

    def __init__(self, bar: bool):
        super().__init__()
        self.bar = bar

    def on_train_begin(self, args, state, control, **kwargs):
        if self.bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, **kwargs):
        if self.bar:
            super().on_prediction_step(args, state, control, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        line = log_line(logs, state.global_step, state.max_steps)
        if self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)


def use_log_lines(trainer: Trainer) -> None:
    """Replace Trainer's printing callback by [`LogCallback`], except in notebooks."""
    for printing in (PrinterCallback, ProgressCallback):
        if trainer.pop_callback(printing) is not None:
            trainer.add_callback(LogCallback(bar=printing is ProgressCallback and sys.stderr.isatty()))


class PerplexityCallback(TrainerCallback):
    """Adds `eval_perplexity` to every evaluation, before it is logged and saved."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if "eval_loss" in metrics:
            metrics["eval_perplexity"] = perplexity(metrics["eval_loss"])
            if state.log_history and "eval_loss" in state.log_history[-1]:
                state.log_history[-1]["eval_perplexity"] = metrics["eval_perplexity"]


class TrainingLossCallback(TrainerCallback):
    """After each evaluation, the loss on a fixed part of the training rows, without dropout: `train_eval_loss`.

    The `loss` that Trainer logs is a mean over steps with changing weights and dropout, and is not comparable with the validation
    loss. The book and nanoGPT measure the training loss in this way.
    """

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows

    def on_evaluate(self, args, state, control, model, **kwargs):
        name = None if args.disable_tqdm else "loss on training text"
        loss = evaluate_loss(model, self.rows, args.per_device_eval_batch_size, name=name)["loss"]
        if state.log_history and "eval_loss" in state.log_history[-1]:
            state.log_history[-1]["train_eval_loss"] = loss
        if state.is_world_process_zero:
            print(f"step {state.global_step}: loss on training text {loss:.3f}")


class SamplesCallback(TrainerCallback):
    """After each evaluation, prints a continuation of each prompt and appends it to `samples.jsonl`.

    Uses its own random state, so a run with samples equals one without.

    Args:
        tokenizer: encodes the prompts; an empty prompt starts with the end-of-text token.
        prompts: texts, whose special tokens are encoded as characters, or pairs of a text to print and its token ids.
        max_new_tokens: new tokens for each prompt.
        temperature: 0 is greedy; else top-k sampling (k = 50) with seed `seed`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str | tuple[str, list[int]]],
        max_new_tokens: int = 50,
        temperature: float = 0.0,
        seed: int = 123,
    ):
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        self.prompts = [
            (prompt, encode_text(tokenizer, prompt, add_special_tokens=False)["input_ids"]) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ]
        self.temperature, self.seed = temperature, seed

    def on_evaluate(self, args, state, control, model, **kwargs):
        if not state.is_world_process_zero:
            return
        devices = [model.device] if model.device.type == "cuda" else []
        was_training = model.training
        model.eval()
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            texts = [self._continue(model, ids) for _, ids in self.prompts]
        model.train(was_training)
        with open(Path(args.output_dir) / "samples.jsonl", "a", encoding="utf-8") as file:
            for (prompt, _), text in zip(self.prompts, texts):
                print(f"step {state.global_step}: {(prompt + text)!r}")
                file.write(json.dumps({"step": state.global_step, "prompt": prompt, "text": text}, ensure_ascii=False) + "\n")

    def _continue(self, model, ids: list[int]) -> str:
        ids = ids or [self.tokenizer.eos_token_id]
        # The prompt is truncated if both do not fit in max_position_embeddings.
        ids = ids[-max(1, model.config.max_position_embeddings - self.max_new_tokens) :]
        pad_id = padding_id(self.tokenizer)
        sampling: dict[str, Any] = {"top_k": 50} if self.temperature else {}
        inputs = pad_left([ids], pad_id, model.device)
        output = generate_ids(model, inputs, self.max_new_tokens, self.temperature, pad_token_id=pad_id, **sampling)
        return self.tokenizer.decode(output[0], skip_special_tokens=True)


class CurveCallback(TrainerCallback):
    """Redraws `loss.png` and `loss.pdf` after each evaluation and at the end, at most every `min_seconds`."""

    def __init__(self, title: str = "", min_seconds: float = 10.0):
        self.title, self.min_seconds, self.drawn = title, min_seconds, 0.0

    def on_evaluate(self, args, state, control, **kwargs):
        if time.monotonic() - self.drawn > self.min_seconds:
            self._draw(args, state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(args, state)

    def _draw(self, args, state) -> None:
        if not state.is_world_process_zero:
            return
        self.drawn = time.monotonic()
        plot_or_warn(
            plot_losses, state.log_history, Path(args.output_dir) / "loss", self.title, overfitting_step(state.log_history)
        )


class OverfittingCallback(TrainerCallback):
    """Warns once when validation loss has risen for 3 consecutive evaluations while training loss fell."""

    def __init__(self) -> None:
        self.warned = False

    def on_evaluate(self, args, state, control, **kwargs):
        step = overfitting_step(state.log_history)
        if step is not None and not self.warned and state.is_world_process_zero:
            self.warned = True
            print(
                f"warning: overfitting: validation loss has risen for 3 evaluations up to step {step} while training loss fell; "
                "stop here, train on more text, or raise dropout or weight decay"
            )
