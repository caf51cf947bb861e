"""Watching a run does not change it."""

import torch
from transformers import TrainerState

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.callbacks import SamplesCallback


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
