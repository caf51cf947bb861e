"""Small models of transformers' own classes, as they stand on the Hub."""

from pathlib import Path

from tiny_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

IDS = {"vocab_size": 61, "bos_token_id": None, "eos_token_id": None}


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(**IDS, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**IDS, **sizes, num_key_value_heads=2, max_position_embeddings=64))


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """With every weight drawn anew."""
    randomize(model).eval().save_pretrained(folder)
    return folder
