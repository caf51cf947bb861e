"""Fixtures shared by all tests. Nothing here needs a network, and real data is optional."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is imported: a test that reaches out fails at once
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(os.environ.get("GPT_SCRATCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (the-verdict, SMS Spam Collection, OpenAI's GPT-2 files); skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}: set GPT_SCRATCH_SHARED to the folder that holds data/")
    return SHARED / "data"
