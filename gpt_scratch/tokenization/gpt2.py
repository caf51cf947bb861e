"""(placeholder being replaced)"""

from pathlib import Path

from transformers import GPT2Tokenizer


def load_gpt2_tokenizer(directory, model_max_length=1024):
    return GPT2Tokenizer(
        vocab=str(Path(directory) / "encoder.json"), merges=str(Path(directory) / "vocab.bpe"), model_max_length=model_max_length
    )
