"""Trainer callbacks: perplexity, samples, the loss on training text, the curve redrawn live, a warning when a run overfits."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback

from ..evaluation.perplexity import evaluate_loss, perplexity
from ..plots import overfitting_step, plot_losses
from ..tokenization.special_tokens import encode_text


class PerplexityCallback(TrainerCallback):
    """Adds `eval_perplexity` to every evaluation, before it is logged and saved."""

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if "eval_loss" in metrics:
            metrics["eval_perplexity"] = perplexity(metrics["eval_loss"])
            if state.log_history and "eval_loss" in state.log_history[-1]:
                state.log_history[-1]["eval_perplexity"] = metrics["eval_perplexity"]


class TrainingLossCallback(TrainerCallback):
    """After each evaluation, the loss on a fixed part of the training rows, without dropout: `train_eval_loss`.

    The `loss` that Trainer logs is a mean over steps while the weights change, with dropout; it cannot be laid beside
    the validation loss. The book and nanoGPT measure training loss this way.
    """

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows

    def on_evaluate(self, args, state, control, model, **kwargs):
        loss = evaluate_loss(model, self.rows, args.per_device_eval_batch_size)["loss"]
        if state.log_history and "eval_loss" in state.log_history[-1]:
            state.log_history[-1]["train_eval_loss"] = loss
        if state.is_world_process_zero:
            print(f"step {state.global_step}: loss on training text {loss:.3f}")


class SamplesCallback(TrainerCallback):
    """After each evaluation, a continuation of each prompt: printed, and appended to `samples.jsonl`.

    Draws from its own random numbers, so a run with samples equals one without.

    Args:
        tokenizer: encodes the prompts; an empty prompt starts from its end-of-text token.
        prompts: texts, whose special tokens are characters, or pairs of a text to show and its token ids.
        max_new_tokens: tokens to add to each.
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
        # The prompt gives way where both do not fit: absolute positions end at max_position_embeddings.
        ids = ids[-max(1, model.config.max_position_embeddings - self.max_new_tokens) :]
        new_tokens = min(self.max_new_tokens, model.config.max_position_embeddings - len(ids))
        sampling = {"do_sample": True, "temperature": self.temperature, "top_k": 50} if self.temperature else {"do_sample": False}
        inputs = torch.tensor([ids], device=model.device)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            pad_token_id=self.tokenizer.pad_token_id,
            **sampling,
        )
        return self.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


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
        plot_losses(state.log_history, Path(args.output_dir) / "loss", self.title, overfitting_step(state.log_history))


class OverfittingCallback(TrainerCallback):
    """Warns once, naming the step, when validation loss has risen for 3 evaluations in a row while training loss fell."""

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
