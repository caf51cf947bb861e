"""Small models of transformers' own classes, as they stand on the Hub."""

from pathlib import Path

from tiny_models import randomize
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(61, 64, 32, 2, 4, bos_token_id=None, eos_token_id=None))


def llama() -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": None, "eos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(61, **sizes, **ids, num_key_value_heads=2, max_position_embeddings=64))


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """With every weight drawn anew."""
    randomize(model).eval().save_pretrained(folder)
    return folder
