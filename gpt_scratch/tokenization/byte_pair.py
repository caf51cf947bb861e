"""(placeholder being replaced)"""

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast


def train_byte_level_bpe(texts, vocab_size, model_max_length=1024):
    t = ByteLevelBPETokenizer()
    t.train_from_iterator(texts, vocab_size=vocab_size, special_tokens=["<|endoftext|>", "<|pad|>"], show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=t._tokenizer,
        eos_token="<|endoftext|>",
        bos_token="<|endoftext|>",
        pad_token="<|pad|>",
        model_max_length=model_max_length,
    )
