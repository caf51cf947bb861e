"""Fixtures: a tiny checkpoint with a byte-level tokenizer, as training leaves it, at both ends of the architecture."""

import pytest
from tiny_models import tiny_model
from tokenizers import AddedToken, ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
TEXT = "The cat sat on the mat. It's 12 o'clock, and the hat sat on the cat: they're 3 at that!\n"


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([TEXT] * 3, vocab_size=290, special_tokens=[END], show_progress=False)
    special = {"eos_token": END, "pad_token": END, "bos_token": END, "unk_token": END}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, model_max_length=64, **special)
    tokenizer.add_tokens([AddedToken("<|start|>", special=True), AddedToken("<mark>", special=False)])
    return tokenizer


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def style(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def checkpoint(style, tokenizer, tmp_path_factory):
    """A directory as `from_pretrained` opens it; the model has three ids more than the tokenizer."""
    folder = tmp_path_factory.mktemp(style)
    eos = tokenizer.eos_token_id
    model = tiny_model(
        style, vocab_size=len(tokenizer) + 3, max_position_embeddings=64, eos_token_id=eos, bos_token_id=eos, pad_token_id=eos
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
