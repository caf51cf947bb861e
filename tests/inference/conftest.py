"""One server for the tests of serving and what they ask it; one model for the tests of generation."""

import pytest
import torch
from served import KEY, LIMITS, make_model, serving

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    make_model(path / "model")
    flags = [word for name, value in vars(LIMITS).items() for word in (f"--{name}", str(value))]
    with serving(path / "model", path / "log", *flags, key=KEY) as server:
        yield server
    log = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in log and KEY not in log, log


@pytest.fixture
def question(server):
    return {"model": server.model, "prompt": "one two", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def chat(server):
    return {"model": server.model, "messages": [{"role": "user", "content": "one"}], "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def pair():
    """A model with 48 learned positions, and its tokenizer."""
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. Tom had it. " * 20], vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.4,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return GPTScratchForCausalLM(config).eval(), tokenizer
