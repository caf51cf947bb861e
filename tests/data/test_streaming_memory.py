"""Reading a text that is larger than the memory allowed."""

import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import resource, sys
from gpt_scratch.data.language_modeling import BlockSettings, Source, stream_blocks
from gpt_scratch.data.readers import read_pieces
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
tokenizer = train_byte_level_bpe(["some words here\\n" * 100], vocab_size=270)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
rows = iter(stream_blocks(Source((sys.argv[1],)), tokenizer, BlockSettings(256)))
for _ in range(2_000):
    next(rows)
before = peak()
characters = sum(len(piece.text) for piece in read_pieces([sys.argv[1]]))
count = sum(1 for _ in stream_blocks(Source((sys.argv[1],) * int(sys.argv[2])), tokenizer, BlockSettings(256)))
print(characters, count, peak() - before)
"""


@pytest.mark.slow
def test_a_large_text_is_read_and_cut_in_constant_memory(tmp_path: Path):
    path = tmp_path / "large.txt"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(16):
            file.write("some words here\n" * 65_536)  # 1 MiB
    command = [sys.executable, "-c", MEASURE, str(path), "2"]
    characters, rows, growth = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(characters) == 16 << 20
    assert int(rows) > 30_000
    assert float(growth) < 40  # MiB, while twice 16 MiB of text went through
