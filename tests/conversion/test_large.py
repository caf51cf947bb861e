"""Conversion at the size of GPT-2 small, and its memory at that of GPT-2 medium; random weights."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from published_layouts import BookGPT, NanoGPT, greedy
from safetensors.torch import load_file
from tiny_models import assert_equal
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
    "max_position_embeddings": 2048,
}


@torch.no_grad()
def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of a size that shows errors: each layer's output is about as large as its input, no bias is zero."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "emb" not in name and "wte" not in name and "wpe" not in name:
            parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)
        else:
            norm = parameter.ndim == 1 and not name.endswith(("bias", "shift"))
            parameter.normal_(float(norm), 0.2, generator=generator)
    return model.eval()


@torch.no_grad()
def check(folder: Path, logits_of, reference_greedy, vocabulary: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.randint(0, vocabulary, (1, 64), generator=torch.Generator().manual_seed(0))
    expected = logits_of(ids)
    assert expected.abs().max() > 2
    assert_equal(model(ids).logits, expected)
    start = ids[:, :8]
    ours = model.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=50, do_sample=False, eos_token_id=None)
    assert torch.equal(ours, reference_greedy(start))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_124m_round_trip(convert, tmp_path, family):
    reference = spread(GPT2LMHeadModel(GPT2Config()) if family == "gpt2" else LlamaForCausalLM(LlamaConfig(**SMOLLM2)))
    reference.save_pretrained(tmp_path / "original")
    ours = convert(tmp_path / "original")

    def reference_greedy(start):
        mask = torch.ones_like(start)
        return reference.generate(start, attention_mask=mask, max_new_tokens=50, do_sample=False, eos_token_id=None)

    check(ours, lambda ids: reference(ids).logits, reference_greedy, reference.config.vocab_size)
    back = convert(ours, "--to", family)
    before, after = load_file(tmp_path / "original" / "model.safetensors"), load_file(back / "model.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["book", "nanogpt"])
def test_124m_of_single_files(convert, tmp_path, family):
    if family == "book":
        reference = spread(BookGPT(50257, 1024, 768, 12, 12, qkv_bias=True))
        torch.save(reference.state_dict(), tmp_path / "weights.pth")
    else:
        args = {
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "block_size": 1024,
            "bias": False,
            "vocab_size": 50257,
            "dropout": 0.0,
        }
        reference = spread(NanoGPT(**args))
        torch.save({"model": reference.state_dict(), "model_args": args}, tmp_path / "weights.pth")
    check(convert(tmp_path / "weights.pth"), reference, lambda start: greedy(reference, start, 50), 50257)


MEASURE = """
import importlib.util, sys
def peak():
    status = open("/proc/self/status", encoding="utf-8").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
spec = importlib.util.spec_from_file_location("convert_checkpoint", sys.argv[1])
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
before = peak()
script.main(script.parse(sys.argv[2:]))
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="peak memory is read from /proc")
def test_peak_memory_at_355m(tmp_path):
    """At most 1.3 times the weights, beside what Python, torch and transformers take before anything is read."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=1024, n_layer=24, n_head=16))
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    assert weights == 4 * 354_823_168
    model.save_pretrained(tmp_path / "original")
    del model
    script = Path(__file__).resolve().parents[2] / "scripts" / "convert_checkpoint.py"
    command = [
        sys.executable,
        "-c",
        MEASURE,
        str(script),
        str(tmp_path / "original"),
        str(tmp_path / "ours"),
        "--max_shard_size",
        "500MB",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    before, peak = map(int, done.stdout.splitlines()[-1].split())
    print(f"libraries {before / 2**20:,.0f} MiB, peak {peak / 2**20:,.0f} MiB, weights {weights / 2**20:,.0f} MiB")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) == 3
    assert peak - before <= 1.3 * weights
