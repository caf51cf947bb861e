"""Export to ONNX with transformers' exporter; ONNX Runtime verifies the graph on shapes other than the exported one.

The graph takes `input_ids` and `attention_mask`, both (B, T), and returns logits: (B, T, V), or (B, L) for a classifier. It has no
cache, so it is meant for scoring and classification; generating with it recomputes every prefix.
"""

import gc
import importlib.util
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..conversion.checkpoint import Options
from ..conversion.formats import recognize
from ..errors import UserError
from ..files import atomic_directory
from ..inference.loading import load_model
from ..tokenization.portable import save_tokenizer
from .comparison import Comparison, compare_logits

NEEDED = ("onnx", "onnxscript", "onnxruntime")
EXPORTED_SHAPE = (2, 8)  # rows, tokens
COMPARED_SHAPES = ((1, 1), (1, 33), (3, 17))  # none is the exported one


def export_onnx(model_directory: str, output: str, overwrite: bool = False) -> Comparison:
    """Write `model.onnx`, `model.onnx.data`, configuration and tokenizer into a directory, and compare ONNX Runtime's logits.

    Args:
        model_directory: a checkpoint of this package, language model or classifier, by path or Hub name.
        output: a directory that is new or empty, or one that this package wrote if `overwrite` is given.

    Raises:
        UserError: a missing package, another format, or a graph that does not compute the same as the model.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'ONNX needs {", ".join(missing)}: pip install "gpt_scratch[export]"')
    with atomic_directory(output, overwrite, [model_directory]) as folder:
        checkpoint = recognize(model_directory, Options())
        if checkpoint.format != "gpt_scratch":
            raise UserError(
                f"{model_directory} is of format {checkpoint.format}: convert it with scripts/convert_checkpoint.py first"
            )
        model = load_model(model_directory, checkpoint.head, torch.float32)
        write_onnx(model, folder)
        if checkpoint.tokenizer is not None:
            save_tokenizer(checkpoint.tokenizer, folder)
        inputs = compared_inputs(model.config)
        with torch.inference_mode():
            ours = [model(**asked, use_cache=False).logits for asked in inputs]
        del model
        gc.collect()
        session = open_session(folder)
        theirs = [run_session(session, asked) for asked in inputs]
        if checkpoint.head == "lm":  # logits at padded positions are meaningless
            kept = [asked["attention_mask"].bool() for asked in inputs]
            ours, theirs = [a[mask] for a, mask in zip(ours, kept)], [a[mask] for a, mask in zip(theirs, kept)]
        size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
        comparison = compare_logits(ours, theirs, _runtime(), size)
        comparison.refuse_difference()
    return comparison


def write_onnx(model: PreTrainedModel, folder: Path) -> None:
    """Write the graph with dynamic batch size and length, and its weights next to it."""
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    ids = torch.ones(EXPORTED_SHAPE, dtype=torch.long)
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns that operators of vision models are not installed
    try:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        OnnxExporter().export(model, inputs, config=OnnxConfig(dynamic=True)).save_pretrained(folder)
    finally:
        logger.setLevel(level)


def compared_inputs(config: Any) -> list[dict[str, torch.Tensor]]:
    """Token ids over the whole vocabulary in shapes other than the exported one; with three rows, one is padded on each side."""
    asked = []
    for rows, length in COMPARED_SHAPES:
        length = min(length, config.max_position_embeddings)
        ids = torch.tensor([[(i * 7919 + row * 104729) % config.vocab_size for i in range(length)] for row in range(rows)])
        mask = torch.ones_like(ids)
        if rows > 1 and length > 4:
            mask[0, :3], mask[1, -2:] = 0, 0
        asked.append({"input_ids": ids, "attention_mask": mask})
    return asked


def open_session(folder: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


def run_session(session: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run the graph and return its logits."""
    return torch.from_numpy(session.run(["logits"], {name: value.numpy() for name, value in inputs.items()})[0])


def _runtime() -> str:
    import onnxruntime

    return f"ONNX Runtime {onnxruntime.__version__}"
