"""Benchmark of preparing batches from text."""

from tiny_benchmark import TINY, run

from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


def test_from_text_to_batches(script, tmp_path):
    text = "One day, Anna lost her key. She looked by the river.\n" * 400
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    train_byte_level_bpe([text], vocab_size=280).save_pretrained(tmp_path / "tokenizer")
    rows = run(script, "data", *TINY, "--text", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tokenizer"))
    assert {(row["contender"], row["part"]) for row in rows} == {
        (name, part) for name in ("run_clm.py", "gpt_scratch") for part in ("total", "prepare", "read")
    }
    counts = {row["contender"]: row["tokens"] for row in rows}
    assert 0 <= counts["gpt_scratch"] - counts["run_clm.py"] <= 8 + 1  # a remainder for each thousand lines, and an end of text
