"""When a run is said to overfit, and that watching it does not change it."""

import torch
from transformers import TrainerState

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.plots import overfitting_step, plot_losses, series
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.callbacks import SamplesCallback, log_line


def history(validation: list[float], training: list[float]) -> list[dict]:
    rows: list[dict] = []
    for step, (v, t) in enumerate(zip(validation, training), start=1):
        rows += [{"step": step, "loss": t}, {"step": step, "eval_loss": v, "num_input_tokens_seen": 100 * step}]
    return rows


def test_overfitting_is_three_rises_in_a_row_while_training_loss_falls():
    falling = [5.0, 4.0, 3.0, 2.0, 1.0, 0.5]
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.3, 3.4], falling)) == 5
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.15, 3.3], falling)) is None  # two rises, a fall
    assert overfitting_step(history([4, 3, 3.1, 3.2, 3.3, 3.4], [5, 5, 6, 6, 6, 6])) is None  # diverging, not overfitting
    assert overfitting_step([]) is None


def test_evaluated_training_loss_is_preferred_to_the_running_mean():
    rows = history([4, 3, 3.1, 3.2, 3.3], [1, 1, 1, 1, 1])
    for row, value in zip([row for row in rows if "eval_loss" in row], [5, 4, 3, 2, 1]):
        row["train_eval_loss"] = value
    assert overfitting_step(rows) == 5


def test_series_and_plot_files(tmp_path):
    rows = history([4, 3], [5, 4])
    assert series(rows, "eval_loss") == ([1, 2], [4, 3])
    assert series(rows, "eval_loss", x="num_input_tokens_seen") == ([100, 200], [4, 3])
    png, pdf = plot_losses(rows, tmp_path / "loss", "title", warning_step=2)
    assert png.read_bytes().startswith(b"\x89PNG") and pdf.read_bytes().startswith(b"%PDF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["loss.pdf", "loss.png"]  # no temporary file is left


def test_samples_are_kept_and_do_not_touch_the_random_numbers(tmp_path):
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    config = GPTScratchConfig(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=24)
    model = GPTScratchForCausalLM(config).train()
    callback = SamplesCallback(tokenizer, ["One day", "", "a long prompt " * 20], max_new_tokens=8, temperature=0.8)
    args, state = ScratchTrainingArguments(output_dir=str(tmp_path)), TrainerState(global_step=7)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    callback.on_evaluate(args, state, None, model=model)
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    callback.on_evaluate(args, state, None, model=model)
    lines = (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6 and lines[:3] == lines[3:]  # the same seed, the same samples


def test_each_log_is_a_line_to_read():
    evaluated = {"eval_loss": 0.25, "eval_accuracy": 0.9, "eval_macro_f1": 0.875, "eval_macro_recall": 0.8, "eval_confusion_matrix": [[1]],
                 "eval_runtime": 2.0, "eval_samples_per_second": 9.0, "epoch": 1.0}  # fmt: skip
    assert log_line(evaluated, 5, 10) == "step 5 of 10 (epoch 1.00): validation loss 0.25, accuracy 0.9, macro F1 0.875"
    assert (
        log_line({"train_runtime": 61.6, "train_loss": 2.0, "epoch": 1.0}, 1200, 1200)
        == "trained 1,200 steps in 1 min 2 s; mean loss 2"
    )
    rewards = {"loss": 0.69, "rewards/margins": 0.0123, "epoch": 0.1}
    assert log_line(rewards, 1, 2) == "step 1 of 2 (epoch 0.10): loss 0.69, rewards/margins 0.0123"
    assert log_line({"eval_reward": 1.5}, 1, 2) == "step 1 of 2: validation, reward 1.5"
