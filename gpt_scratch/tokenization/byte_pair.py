"""Byte-level BPE for a text of one's own, trained by the `tokenizers` library, ready for AutoTokenizer."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ..errors import UserError

END_OF_TEXT, PADDING = "<|endoftext|>", "<|pad|>"


def train_byte_level_bpe(texts: Iterable[str], vocab_size: int, model_max_length: int = 1024) -> PreTrainedTokenizerFast:
    """A tokenizer with GPT-2's byte alphabet and pre-tokenization (Radford et al. 2019, section 2.2) and merges learned from `texts`.

    Ids: `<|endoftext|>` (beginning, end and unknown) is 0, `<|pad|>` is 1, the 256 bytes follow, then the merges in the order in which they
    were learned. There are fewer than `vocab_size` tokens where the text holds no more pairs.

    Raises:
        UserError: a vocabulary too small for the bytes, or no text.
    """
    if vocab_size < 258:
        raise UserError(f"vocab_size is {vocab_size}: a byte-level BPE needs at least 258, for 256 bytes and 2 special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PADDING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        model_max_length=model_max_length,
    )
