"""The benchmark at a size at which it says nothing about speed, but everything else can be checked."""

import json

import pytest
import torch
from rivals import RIVAL

from gpt_scratch.benchmarking.generation import perplexity_of_weights, same_weights
from gpt_scratch.benchmarking.harness import Sizes
from gpt_scratch.errors import UserError
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--vocab_size", "97", "--repetitions", "2", "--shape", "2x8"]


def run(script, *argv: str) -> list[dict]:
    benchmark = script("benchmark")
    return benchmark.main(benchmark.parse(argv))


@pytest.mark.slow
def test_a_step_with_a_rival(script, tmp_path):
    (tmp_path / "rival.py").write_text(RIVAL, encoding="utf-8")
    output = tmp_path / "results" / "step.json"
    rows = run(script, "step", *TINY, "--rival", f"mine={tmp_path / 'rival.py'}:build", "--output", str(output))
    assert {row["contender"] for row in rows} == {
        "transformers", "transformers, fast fp32", "gpt_scratch", "gpt_scratch, full loss", "mine",
    }  # fmt: skip
    assert {row["part"] for row in rows} == {"total", "forward", "backward", "optimizer"}
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written["rows"] == rows and written["machine"]["threads"] and written["environment"]["versions"]["torch"]


@pytest.mark.slow
def test_memory_of_each_in_a_process_of_its_own(script):
    larger_than_any = torch.ones(2**29)  # 2 GiB in this process, which are nobody's peak
    rows = run(script, "memory", *TINY, "--vocab_size", "20000", "--shape", "8x64")
    assert [row["contender"] for row in rows] == ["transformers", "gpt_scratch", "gpt_scratch, full loss"]
    assert rows[0]["share_of_transformers"] == 1 and rows[1]["above_mib"] < rows[0]["above_mib"]  # 41 MB of logits, several times
    assert rows[0]["above_mib"] < larger_than_any.nbytes / 2**21


@pytest.mark.slow
@pytest.mark.parametrize(("subject", "steps", "shapes"), [
    ("length", "LENGTHS", [("1x8", 97), ("1x64", 97)]), ("vocabulary", "VOCABULARIES", [("2x8", 8), ("2x8", 64)]),
])  # fmt: skip
def test_growth(script, monkeypatch, subject, steps, shapes):
    benchmark = script("benchmark")
    monkeypatch.setattr(benchmark, steps, (8, 64))
    rows = benchmark.main(benchmark.parse([subject, *TINY]))
    assert [(row["shape"], row["vocab_size"]) for row in rows[::2]] == shapes
    assert [row["contender"] for row in rows] == ["transformers", "gpt_scratch"] * 2 and all(row["above_mib"] > 0 for row in rows)


@pytest.mark.slow
def test_generation(script):
    rows = run(script, "generation", *TINY, "--batch", "1", "2", "--prompt", "4", "--new_tokens", "6")
    assert len(rows) == 6 and all(row["same_tokens"] and row["ms_per_token"] > 0 for row in rows)


@pytest.mark.thorough
def test_short_texts_of_unlike_lengths(script):
    rows = run(script, "padding", *TINY)
    assert [(row["task"], row["contender"].split(", ")[1]) for row in rows] == [
        ("classification", "padded to the longest"),
        ("classification", "padded to the longest"),
        ("classification", "grouped by length"),
        ("instruction", "padded to the longest"),
        ("instruction", "padded to the longest"),
        ("instruction", "grouped by length"),
        ("instruction", "packed"),
    ]
    padding = {(row["task"], row["contender"]): row["padding"] for row in rows}
    assert padding["classification", "gpt_scratch, padded to the longest"] > 0.3
    assert max(value for (_, name), value in padding.items() if "grouped" in name or "packed" in name) < 0.1


def test_from_text_to_batches(script, tmp_path):
    text = "One day, Anna lost her key. She looked by the river.\n" * 400
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    train_byte_level_bpe([text], vocab_size=280).save_pretrained(tmp_path / "tokenizer")
    rows = run(script, "data", *TINY, "--text", str(tmp_path / "text.txt"), "--tokenizer", str(tmp_path / "tokenizer"))
    assert {(row["contender"], row["part"]) for row in rows} == {
        (name, part) for name in ("run_clm.py", "gpt_scratch") for part in ("total", "prepare", "read")
    }
    counts = {row["contender"]: row["tokens"] for row in rows}
    assert 0 <= counts["gpt_scratch"] - counts["run_clm.py"] <= 8 + 1  # one rest for each thousand lines, and an end of text


def test_both_models_compute_the_same():
    theirs, ours = same_weights(Sizes(n_layer=2, n_head=2, n_embd=16, vocab_size=97, n_positions=32))
    ids = torch.randint(97, (2, 20))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, atol=1e-5, rtol=0)


def test_perplexity_of_fewer_bytes():
    _, ours = same_weights(Sizes(n_layer=1, n_head=2, n_embd=16, vocab_size=97, n_positions=32))
    perplexity = perplexity_of_weights(ours, [torch.randint(97, (1, 20))])
    assert (
        perplexity["bfloat16"] == pytest.approx(perplexity["float32"], rel=0.01) and perplexity["int8"] != perplexity["float32"]
    )


@pytest.mark.slow
def test_trainer_and_import(script):
    assert [row["contender"] for row in run(script, "trainer", *TINY, "--steps", "2")] == ["bare loop", "Trainer"]
    assert {row["contender"] for row in run(script, "import", "--repetitions", "1")} >= {"import gpt_scratch"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--rival", "mine"], "expected NAME=path/to/file.py:factory"),
        (["--repetitions", "0"], "--repetitions is 0: it must be between 1"),
    ],
)
def test_bad_input(script, flags, message):
    with pytest.raises(UserError, match=message):
        run(script, "step", *TINY, *flags)
