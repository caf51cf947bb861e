"""Samples and logs do not change a run."""

import torch
from transformers import TrainerState

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.callbacks import SamplesCallback, log_line


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
