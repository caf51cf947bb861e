"""Load checkpoint directories with transformers and their own code, without this package, and write their logits.

    python gpt_scratch/hub/load_alone.py LOGITS.safetensors DIR [DIR ...]

The tensors are named 0, 1, ... in the order of the directories.

It runs as a file in its own process, since this package must not be importable, and so imports nothing from it.
"""

# ruff: noqa: E402

import sys

sys.modules["gpt_scratch"] = None  # type: ignore[assignment]  # as if it were not installed

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

TOKENS = 16


@torch.inference_mode()
def logits_of(folder: str | Path) -> torch.Tensor:
    """fp32 logits for fixed token ids: (1, T, V) for a language model, (1, L) for a classifier. A stock layout loads without trust."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    classifier = config["architectures"][0].endswith("ForSequenceClassification")
    auto = transformers.AutoModelForSequenceClassification if classifier else transformers.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, trust_remote_code="auto_map" in config).eval()
    ids = torch.arange(1, 1 + min(TOKENS, model.config.max_position_embeddings))[None] * 7919 % model.config.vocab_size
    return model(ids, attention_mask=torch.ones_like(ids)).logits.contiguous()


if __name__ == "__main__":
    output, *folders = sys.argv[1:]
    save_file({str(i): logits_of(folder) for i, folder in enumerate(folders)}, output)
