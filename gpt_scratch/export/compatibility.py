"""Compatibility with the tools of the ecosystem: each integration runs on the same model and text, and its results are compared.

The reference is the model in float32 in this process. Perplexity is computed over all windows of the text, the largest absolute
difference in logits over the first two. An integration whose package is not installed is listed as not run.
"""

import gc
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from ..conversion.checkpoint import Options
from ..conversion.formats import recognize
from ..conversion.gguf_files import read_gguf
from ..errors import UserError, one_line
from ..evaluation.perplexity import perplexity
from ..export.gguf import export_gguf
from ..export.onnx import export_onnx, open_session, run_session
from ..inference.loading import load_model
from ..tokenization.special_tokens import encode_text

COMPARED = 2  # windows whose logits are compared
NEW_TOKENS = 20
Forward = Callable[[torch.Tensor], torch.Tensor]  # token ids (1, T) to logits (1, T, V)


@dataclass
class Setting:
    """One model, one text, and the model's logits on it."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    windows: torch.Tensor  # (N, T)
    scratch: Path
    logits: torch.Tensor  # (COMPARED, T, V)
    loss: float


@torch.inference_mode()
def score(forward: Forward, windows: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Logits of the first windows, and the mean negative log-likelihood of every token but the first of each window."""
    kept, total = [], 0.0
    for i, ids in enumerate(windows):
        logits = forward(ids[None]).float()
        total += nn.functional.cross_entropy(logits[0, :-1], ids[1:], reduction="sum").item()
        kept += [logits] if i < COMPARED else []
    return torch.cat(kept), total / (windows.shape[0] * (windows.shape[1] - 1))


def prepare(model_directory: str, text: str, windows: int, length: int, scratch: Path) -> Setting:
    """Open the model and score the text's first windows, which do not overlap.

    Raises:
        UserError: not a checkpoint of this package with a tokenizer, or the text is too short.
    """
    checkpoint = recognize(model_directory, Options())
    if checkpoint.format != "gpt_scratch" or checkpoint.head != "lm" or checkpoint.tokenizer is None:
        raise UserError(f"{model_directory} is not a language model of this package with a tokenizer")
    if not 2 <= length <= checkpoint.config.max_position_embeddings:
        raise UserError(f"--length {length}: from 2 to the model's {checkpoint.config.max_position_embeddings} positions")
    if windows < COMPARED:
        raise UserError(f"--windows {windows}: at least {COMPARED}")
    ids = encode_text(checkpoint.tokenizer, text)["input_ids"]
    if len(ids) < windows * length:
        raise UserError(f"the text has {len(ids):,} tokens: {windows} windows of {length} need {windows * length:,}")
    rows = torch.tensor(ids[: windows * length]).view(windows, length)
    model = load_model(model_directory, "lm", torch.float32)
    logits, loss = score(forward_of(model), rows)
    return Setting(Path(model_directory), model, checkpoint.tokenizer, rows, scratch, logits, loss)


def forward_of(model: nn.Module) -> Forward:
    """The forward pass of a transformers model, without a cache."""
    return lambda ids: model(ids, use_cache=False).logits


def scored(setting: Setting, forward: Forward) -> dict[str, Any]:
    """Perplexity and the largest difference in logits."""
    logits, loss = score(forward, setting.windows)
    return {"perplexity": perplexity(loss), "difference": (logits - setting.logits).abs().max().item(), "of": "logits"}


def size(folder: Path, pattern: str = "*.safetensors") -> int:
    """Size of the weights in bytes."""
    return sum(file.stat().st_size for file in folder.glob(pattern))


# ---------------------------------------------------------------------------------------------------------------------- the integrations


def original(setting: Setting) -> dict[str, Any]:
    """The model in float32, the reference for all others."""
    return {"bytes": size(setting.folder), "perplexity": perplexity(setting.loss)}


def loader(setting: Setting) -> dict[str, Any]:
    """AutoModelForCausalLM with trust_remote_code=True in a process that cannot import this package."""
    script = Path(__file__).parents[1] / "hub" / "load_alone.py"
    written = setting.scratch / "alone.safetensors"
    command = [sys.executable, str(script), str(written), str(setting.folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    ids = (
        torch.arange(1, 1 + min(16, setting.model.config.max_position_embeddings))[None] * 7919 % setting.model.config.vocab_size
    )
    with torch.inference_mode():
        return {"difference": (load_file(written)["0"] - setting.model(ids).logits).abs().max().item(), "of": "logits"}


def pipeline(setting: Setting) -> dict[str, Any]:
    """pipeline("text-generation"), greedy: the text of 20 new tokens, compared with generate's."""
    from transformers import pipeline

    prompt = setting.tokenizer.decode(setting.windows[0, :16])
    made = pipeline("text-generation", model=str(setting.folder), dtype=torch.float32, device="cpu")
    theirs = made(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, return_full_text=False)[0]["generated_text"]
    inputs = setting.tokenizer(prompt, return_tensors="pt")
    grown = setting.model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)  # type: ignore[operator]
    ours = setting.tokenizer.decode(grown[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return {"difference": float(theirs != ours), "of": "text"}


def trainer(setting: Setting) -> dict[str, Any]:
    """Trainer.evaluate on the same windows."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(str(setting.scratch / "trainer"), use_cpu=True, per_device_eval_batch_size=1, disable_tqdm=True)
    rows = [{"input_ids": row, "labels": row} for row in setting.windows]
    loss = Trainer(setting.model, arguments).evaluate(rows)["eval_loss"]  # type: ignore[arg-type]
    setting.model.eval()
    return {"perplexity": perplexity(loss), "difference": abs(loss - setting.loss), "of": "loss"}


def trl(setting: Setting) -> dict[str, Any]:
    """SFTTrainer.evaluate on the same windows."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_dict({"input_ids": setting.windows.tolist()})
    arguments = SFTConfig(
        str(setting.scratch / "trl"), use_cpu=True, bf16=False, per_device_eval_batch_size=1, max_length=None, disable_tqdm=True
    )
    made = SFTTrainer(setting.model, args=arguments, train_dataset=data, eval_dataset=data, processing_class=setting.tokenizer)
    loss = made.evaluate()["eval_loss"]
    setting.model.eval()
    return {"perplexity": perplexity(loss), "difference": abs(loss - setting.loss), "of": "loss"}


def peft(setting: Setting) -> dict[str, Any]:
    """A randomly initialized LoRA adapter on all-linear: saved, loaded, merged, compared with the unmerged model."""
    from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

    base = AutoModelForCausalLM.from_pretrained(setting.folder, dtype=torch.float32)
    torch.manual_seed(0)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.01)
    expected, loss = score(forward_of(adapted.eval()), setting.windows[:COMPARED])
    folder = setting.scratch / "adapter"
    adapted.save_pretrained(folder)
    del base, adapted
    gc.collect()
    read = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    loaded, _ = score(forward_of(read), setting.windows[:COMPARED])
    merged, _ = score(forward_of(read.merge_and_unload()), setting.windows[:COMPARED])
    assert (expected - setting.logits).abs().max() > 1e-2  # the adapter has an effect
    difference = max((loaded - expected).abs().max().item(), (merged - expected).abs().max().item())
    return {"bytes": size(folder), "difference": difference, "of": "logits"}


def torchao(setting: Setting) -> dict[str, Any]:
    """int8, weight-only."""
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return _quantized(setting, TorchAoConfig(Int8WeightOnlyConfig()))


def bitsandbytes(setting: Setting) -> dict[str, Any]:
    """nf4, computing in float32 (on CPUs with bf16 instructions: in bf16)."""
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return _quantized(setting, settings)


def _quantized(setting: Setting, quantization_config: Any) -> dict[str, Any]:
    """Quantize all linear layers except the head; embeddings stay in float32."""
    folder = setting.scratch / "quantized"
    model = AutoModelForCausalLM.from_pretrained(
        setting.folder, dtype=torch.float32, quantization_config=quantization_config
    ).eval()
    model.save_pretrained(folder)  # after the first forward pass on a CPU, bitsandbytes would save rounded scales
    return {"bytes": size(folder)} | scored(setting, forward_of(model))


def onnx(setting: Setting) -> dict[str, Any]:
    """Exported by transformers, run by ONNX Runtime, in float32."""
    folder = setting.scratch / "onnx"
    bytes_written = export_onnx(str(setting.folder), str(folder)).bytes
    session = open_session(folder)
    return {"bytes": bytes_written} | scored(
        setting, lambda ids: run_session(session, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    )


def gguf(type: str) -> Callable[[Setting], dict[str, Any]]:
    """GGUF with matrices of the given type, read by transformers."""

    def run(setting: Setting) -> dict[str, Any]:
        path = setting.scratch / f"model-{type}.gguf"
        bytes_written = export_gguf(str(setting.folder), str(path), type).bytes
        return {"bytes": bytes_written} | scored(setting, forward_of(read_gguf(path)))

    run.__doc__ = f"Exported with {type} matrices, read by transformers as its own model."
    return run


def llama_cpp(setting: Setting) -> dict[str, Any]:
    """The GGUF file with f32 matrices, run by llama.cpp with keys and values in f32."""
    import numpy as np
    from llama_cpp import GGML_TYPE_F32 as F32
    from llama_cpp import Llama

    path = setting.scratch / "model-f32.gguf"
    if not path.is_file():
        export_gguf(str(setting.folder), str(path))
    length = setting.windows.shape[1]
    runtime = Llama(str(path), n_ctx=length, n_batch=length, n_threads=1, type_k=F32, type_v=F32, logits_all=True, verbose=False)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        runtime.reset()
        runtime.eval(ids[0].tolist())
        return torch.from_numpy(np.array(runtime.scores[: ids.shape[1]]))[None]

    return {"bytes": path.stat().st_size} | scored(setting, forward)


def lm_eval(setting: Setting) -> dict[str, Any]:
    """Log-likelihoods of the second half of each of eight windows, requested as a task does, compared with those computed here."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=str(setting.folder), dtype="float32", device="cpu", batch_size=2)
    half = setting.windows.shape[1] // 2
    asked: list[Any] = []
    expected: list[float] = []
    for ids in setting.windows[:8]:
        pair = setting.tokenizer.decode(ids[:half]), setting.tokenizer.decode(ids[half:])
        context, whole = (setting.tokenizer(text, verbose=False)["input_ids"] for text in (pair[0], pair[0] + pair[1]))
        whole = whole[: setting.model.config.max_position_embeddings]
        with torch.inference_mode():
            log = setting.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected.append(sum(log[i - 1, whole[i]].item() for i in range(len(context), len(whole))))
        asked.append(Instance(request_type="loglikelihood", doc={}, arguments=pair, idx=len(asked)))
    got = [value for value, _ in harness.loglikelihood(asked)]
    difference = max(abs(a - b) for a, b in zip(got, expected))
    return {"difference": difference, "of": f"log-likelihoods of down to {min(expected):.0f}"}


INTEGRATIONS: dict[str, tuple[str, Callable[[Setting], dict[str, Any]]]] = {
    "original": ("transformers", original),
    "loader": ("transformers", loader),
    "pipeline": ("transformers", pipeline),
    "Trainer": ("transformers", trainer),
    "peft": ("peft", peft),
    "trl": ("trl", trl),
    "torchao int8": ("torchao", torchao),
    "bitsandbytes nf4": ("bitsandbytes", bitsandbytes),
    "ONNX": ("onnxruntime", onnx),
    "GGUF f32": ("gguf", gguf("f32")),
    "GGUF f16": ("gguf", gguf("f16")),
    "GGUF q8_0": ("gguf", gguf("q8_0")),
    "GGUF q4_0": ("gguf", gguf("q4_0")),
    "llama.cpp": ("llama-cpp-python", llama_cpp),
    "lm-eval": ("lm-eval", lm_eval),
}


def measure_compatibility(
    model_directory: str, text: str, windows: int, length: int, integrations: list[str]
) -> list[dict[str, Any]]:
    """One row per integration: what was run, its version, size of the weights in bytes, perplexity, largest difference.

    The row of a failed integration says why; the others still run.

    Raises:
        UserError: an invalid model, text or size.
    """
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        setting = prepare(model_directory, text, windows, length, Path(scratch))
        for name in integrations:
            package, run = INTEGRATIONS[name]
            what = (run.__doc__ or "").split("\n")[0].rstrip(".")
            row: dict[str, Any] = {"model": setting.folder.name, "integration": name, "what": what}
            try:
                row["version"] = f"{package} {version(package)}"
                row |= run(setting)
            except PackageNotFoundError:
                row |= {"version": None, "failed": f"not run: {package} is not installed"}
            except Exception as error:  # the other integrations are still worth running
                row["failed"] = f"{type(error).__name__}: {one_line(error)}"
            print(row, flush=True)
            rows.append(row)
            for left in ("quantized", "onnx"):
                shutil.rmtree(setting.scratch / left, ignore_errors=True)
            gc.collect()
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    lines = ["| model | integration | what was run | version | size, MB | perplexity | largest difference |", "|" + "---|" * 7]
    for row in rows:
        size_cell = f"{row['bytes'] / 1e6:,.1f}" if "bytes" in row else ""
        perplexity_cell = f"{row['perplexity']:.3f}" if math.isfinite(row.get("perplexity", math.nan)) else ""
        difference = f"{row['difference']:.1e} in {row['of']}" if "difference" in row else row.get("failed", "")
        cells = [row["model"], row["integration"], row["what"], row["version"] or "", size_cell, perplexity_cell, difference]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
