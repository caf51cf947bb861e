"""OpenAI's TensorFlow checkpoints of GPT-2, and finetuned ones: `hparams.json`, the tensor bundle, encoder.json and vocab.bpe."""

import re
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from ..errors import UserError, one_line
from .checkpoint import PUBLISHED_HEADS, Checkpoint, Options, build_config, open_tokenizer
from .sources import read_json
from .tensorflow_bundle import TensorFlowCheckpoint
from .weight_maps import OPENAI

SIZES = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer")
# Finetuned checkpoints also contain optimizer state; the last part of the variable name identifies it.
OPTIMIZER_SLOTS = ("Adam", "Adam_1", "Adagrad", "Momentum", "RMSProp", "RMSProp_1")
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
COUNTERS = ("global_step", "beta1_power", "beta2_power")


class TensorFlowSource:
    """The model's variables of a TensorFlow checkpoint."""

    def __init__(self, checkpoint: TensorFlowCheckpoint, names: list[str]):
        self.checkpoint, self.names = checkpoint, names

    def describe(self) -> dict[str, torch.Tensor]:
        """Shape and dtype of every variable."""
        tensors = self.checkpoint.tensors
        return {name: torch.empty(tensors[name].shape, dtype=tensors[name].dtype, device="meta") for name in self.names}

    def get(self, name: str) -> torch.Tensor:
        """Read one variable and verify its checksum."""
        return self.checkpoint.read(name)


def is_model_variable(name: str) -> bool:
    """Whether a variable belongs to the model, and is not an optimizer slot or a counter, by its name.

    >>> is_model_variable("model/h0/attn/c_attn/w"), is_model_variable("model/h0/attn/c_attn/w/Adam_1"), is_model_variable("global_step")
    (True, False, False)
    """
    last = name.rsplit("/", 1)[-1]
    return last not in OPTIMIZER_SLOTS and last not in COUNTERS


def open_openai(path: Path, options: Options) -> Checkpoint:
    """Open a checkpoint by directory, prefix or `.index` path.

    Raises:
        UserError: a missing or broken file, or inconsistent sizes in `hparams.json`.
    """
    checkpoint = TensorFlowCheckpoint(path)
    if OBJECT_GRAPH in checkpoint.tensors:
        raise UserError(
            f"{checkpoint.index} is an object-based checkpoint of TensorFlow 2 (tf.train.Checkpoint, Keras), without GPT-2's variable "
            "names model/wte, model/h0/...: save it with tf.compat.v1.train.Saver"
        )
    folder = path if path.is_dir() else path.parent
    hparams_file = folder / "hparams.json"
    hparams = read_json(hparams_file)
    for name in SIZES:
        if type(hparams.get(name)) is not int:
            raise UserError(f"{hparams_file}: {name} is {hparams.get(name)!r}, expected a whole number")
    if unknown := [f"{one_line(name, 60)}={one_line(repr(value), 60)}" for name, value in hparams.items() if name not in SIZES]:
        raise UserError(
            f"{hparams_file} has settings that GPT-2 does not have: {', '.join(unknown[:10])}; remove those that do not change the outputs"
        )
    sizes = {name: hparams[name] for name in SIZES}
    # Every other size is checked against the shapes; a wrong number of heads would go unnoticed.
    heads = options.config_overrides.get("n_head", PUBLISHED_HEADS.get(sizes["n_embd"], sizes["n_head"]))
    if heads != sizes["n_head"]:
        raise UserError(
            f"{hparams_file}: n_head is {sizes['n_head']}, but GPT-2 with n_embd {sizes['n_embd']} has {heads}; "
            f"if your model was trained like this, pass --config_overrides n_head={sizes['n_head']}"
        )
    names = [name for name in checkpoint.tensors if is_model_variable(name)]
    skipped = len(checkpoint.tensors) - len(names)
    config = build_config(sizes | {"qkv_bias": True}, options.config_overrides)
    with_tokenizer = (folder / "encoder.json").is_file() and options.tokenizer is None
    return Checkpoint(
        source=TensorFlowSource(checkpoint, names),
        weight_map=OPENAI,
        config=config,
        head="lm",
        sizes_from=f"the sizes in {hparams_file}",
        tokenizer=open_tokenizer(str(folder), config) if with_tokenizer else None,
        notes=[f"{skipped} variables of the optimizer and counters were skipped"] if skipped else [],
        reference=lambda: stock_model(TensorFlowSource(TensorFlowCheckpoint(path), names), sizes),
    )


def stock_model(source: TensorFlowSource, sizes: dict[str, int]) -> GPT2LMHeadModel:
    """transformers' GPT-2 with these variables, by the rules of its former TensorFlow loader: the names are the same except for
    `h0` and `h.0`, and `g`, `w` (weight), `b` (bias); the matrices have the same layout.
    """
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    model = GPT2LMHeadModel(GPT2Config(**{names.get(name, name): size for name, size in sizes.items()}))
    parameters = dict(model.transformer.named_parameters())
    for name in source.names:
        path = re.sub(r"/h(\d+)/", r"/h/\1/", name.removeprefix("model")).strip("/").split("/")
        path[-1:] = {"g": ["weight"], "w": ["weight"], "b": ["bias"]}.get(path[-1], [path[-1], "weight"])
        parameter = parameters.pop(".".join(path))
        parameter.data.copy_(source.get(name).reshape(parameter.shape))
    assert not parameters
    return model
