"""Small models of transformers' own classes, as they stand on the Hub."""

from pathlib import Path

import torch
from tiny_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

GPT2 = {"vocab_size": 61, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": None}
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
}


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**GPT2))


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**LLAMA))


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """With every weight drawn anew."""
    randomize(model).eval().save_pretrained(folder)
    return folder


def ids(rows: int = 3, length: int = 14) -> torch.Tensor:
    return torch.randint(0, 60, (rows, length), generator=torch.Generator().manual_seed(0))
