"""The weight maps as data: for each foreign format, which of its tensors is which of ours, and how it lies in memory.

`{}` stands for the number of a layer. A value of `None` is a tensor that is dropped knowingly (causal masks, tables of positions).
Every key of a checkpoint must match exactly one entry, and every parameter of our model must be covered exactly once: see `convert.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """How a foreign tensor holds one of our parameters, or the query, key and value parameters in a row.

    transposed: (in, out) as TensorFlow and Conv1D have it, where nn.Linear is (out, in). OpenAI's leading axis of 1 is dropped.
    parts: our parameters that are stacked along the out axis.
    """

    transposed: bool = False
    parts: int = 1

    def split(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Our parameters from the foreign tensor; views, nothing is copied."""
        if self.transposed:
            tensor = tensor.reshape(tensor.shape[-2:]).T
        return tensor.chunk(self.parts, dim=0)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The foreign tensor from our parameters."""
        tensor = tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=0)
        return tensor.T if self.transposed else tensor

    def __str__(self) -> str:
        return "(in, out)" if self.transposed else "(out, in)"


SAME = Layout()
TRANSPOSED = Layout(transposed=True)
FUSED = Layout(parts=3)
FUSED_TRANSPOSED = Layout(transposed=True, parts=3)

Rule = tuple[Layout, tuple[str, ...]] | None
WeightMap = dict[str, Rule]


def _attention(part: str) -> tuple[str, ...]:
    return tuple(f"model.layers.{{}}.self_attn.{name}_proj.{part}" for name in "qkv")


def _block(name: str) -> str:
    return "model.layers.{}." + name


# transformers' GPT2LMHeadModel and GPT2ForSequenceClassification; the Hub's originals lack the prefix, which is stripped before.
HF_GPT2: WeightMap = {
    "wte.weight": (SAME, ("model.embed_tokens.weight",)),
    "wpe.weight": (SAME, ("model.embed_positions.weight",)),
    "h.{}.ln_1.weight": (SAME, (_block("input_layernorm.weight"),)),
    "h.{}.ln_1.bias": (SAME, (_block("input_layernorm.bias"),)),
    "h.{}.attn.c_attn.weight": (FUSED_TRANSPOSED, _attention("weight")),
    "h.{}.attn.c_attn.bias": (FUSED, _attention("bias")),
    "h.{}.attn.c_proj.weight": (TRANSPOSED, (_block("self_attn.o_proj.weight"),)),
    "h.{}.attn.c_proj.bias": (SAME, (_block("self_attn.o_proj.bias"),)),
    "h.{}.ln_2.weight": (SAME, (_block("post_attention_layernorm.weight"),)),
    "h.{}.ln_2.bias": (SAME, (_block("post_attention_layernorm.bias"),)),
    "h.{}.mlp.c_fc.weight": (TRANSPOSED, (_block("mlp.up_proj.weight"),)),
    "h.{}.mlp.c_fc.bias": (SAME, (_block("mlp.up_proj.bias"),)),
    "h.{}.mlp.c_proj.weight": (TRANSPOSED, (_block("mlp.down_proj.weight"),)),
    "h.{}.mlp.c_proj.bias": (SAME, (_block("mlp.down_proj.bias"),)),
    "h.{}.attn.bias": None,  # causal mask
    "h.{}.attn.masked_bias": None,  # the number -10000
    "ln_f.weight": (SAME, ("model.norm.weight",)),
    "ln_f.bias": (SAME, ("model.norm.bias",)),
    "lm_head.weight": (SAME, ("lm_head.weight",)),
    "score.weight": (SAME, ("score.weight",)),
}

# OpenAI's variables (gpt-2/src/model.py), with a leading axis of 1 on the matrices. The head is wte itself.
OPENAI: WeightMap = {
    "model/wte": (SAME, ("model.embed_tokens.weight",)),
    "model/wpe": (SAME, ("model.embed_positions.weight",)),
    "model/h{}/ln_1/g": (SAME, (_block("input_layernorm.weight"),)),
    "model/h{}/ln_1/b": (SAME, (_block("input_layernorm.bias"),)),
    "model/h{}/attn/c_attn/w": (FUSED_TRANSPOSED, _attention("weight")),
    "model/h{}/attn/c_attn/b": (FUSED, _attention("bias")),
    "model/h{}/attn/c_proj/w": (TRANSPOSED, (_block("self_attn.o_proj.weight"),)),
    "model/h{}/attn/c_proj/b": (SAME, (_block("self_attn.o_proj.bias"),)),
    "model/h{}/ln_2/g": (SAME, (_block("post_attention_layernorm.weight"),)),
    "model/h{}/ln_2/b": (SAME, (_block("post_attention_layernorm.bias"),)),
    "model/h{}/mlp/c_fc/w": (TRANSPOSED, (_block("mlp.up_proj.weight"),)),
    "model/h{}/mlp/c_fc/b": (SAME, (_block("mlp.up_proj.bias"),)),
    "model/h{}/mlp/c_proj/w": (TRANSPOSED, (_block("mlp.down_proj.weight"),)),
    "model/h{}/mlp/c_proj/b": (SAME, (_block("mlp.down_proj.bias"),)),
    "model/ln_f/g": (SAME, ("model.norm.weight",)),
    "model/ln_f/b": (SAME, ("model.norm.bias",)),
}

# The book's GPTModel: nn.Linear throughout; and its fast variant (att.qkv, att.proj, norms with weight and bias).
BOOK: WeightMap = {
    "tok_emb.weight": (SAME, ("model.embed_tokens.weight",)),
    "pos_emb.weight": (SAME, ("model.embed_positions.weight",)),
    "trf_blocks.{}.norm1.scale": (SAME, (_block("input_layernorm.weight"),)),
    "trf_blocks.{}.norm1.shift": (SAME, (_block("input_layernorm.bias"),)),
    "trf_blocks.{}.att.W_query.weight": (SAME, (_block("self_attn.q_proj.weight"),)),
    "trf_blocks.{}.att.W_query.bias": (SAME, (_block("self_attn.q_proj.bias"),)),
    "trf_blocks.{}.att.W_key.weight": (SAME, (_block("self_attn.k_proj.weight"),)),
    "trf_blocks.{}.att.W_key.bias": (SAME, (_block("self_attn.k_proj.bias"),)),
    "trf_blocks.{}.att.W_value.weight": (SAME, (_block("self_attn.v_proj.weight"),)),
    "trf_blocks.{}.att.W_value.bias": (SAME, (_block("self_attn.v_proj.bias"),)),
    "trf_blocks.{}.att.out_proj.weight": (SAME, (_block("self_attn.o_proj.weight"),)),
    "trf_blocks.{}.att.out_proj.bias": (SAME, (_block("self_attn.o_proj.bias"),)),
    "trf_blocks.{}.att.mask": None,
    "trf_blocks.{}.norm2.scale": (SAME, (_block("post_attention_layernorm.weight"),)),
    "trf_blocks.{}.norm2.shift": (SAME, (_block("post_attention_layernorm.bias"),)),
    "trf_blocks.{}.ff.layers.0.weight": (SAME, (_block("mlp.up_proj.weight"),)),
    "trf_blocks.{}.ff.layers.0.bias": (SAME, (_block("mlp.up_proj.bias"),)),
    "trf_blocks.{}.ff.layers.2.weight": (SAME, (_block("mlp.down_proj.weight"),)),
    "trf_blocks.{}.ff.layers.2.bias": (SAME, (_block("mlp.down_proj.bias"),)),
    "final_norm.scale": (SAME, ("model.norm.weight",)),
    "final_norm.shift": (SAME, ("model.norm.bias",)),
    "out_head.weight": (SAME, ("lm_head.weight",)),
    # the fast variant
    "trf_blocks.{}.norm1.weight": (SAME, (_block("input_layernorm.weight"),)),
    "trf_blocks.{}.norm1.bias": (SAME, (_block("input_layernorm.bias"),)),
    "trf_blocks.{}.att.qkv.weight": (FUSED, _attention("weight")),
    "trf_blocks.{}.att.qkv.bias": (FUSED, _attention("bias")),
    "trf_blocks.{}.att.proj.weight": (SAME, (_block("self_attn.o_proj.weight"),)),
    "trf_blocks.{}.att.proj.bias": (SAME, (_block("self_attn.o_proj.bias"),)),
    "trf_blocks.{}.norm2.weight": (SAME, (_block("post_attention_layernorm.weight"),)),
    "trf_blocks.{}.norm2.bias": (SAME, (_block("post_attention_layernorm.bias"),)),
    "final_norm.weight": (SAME, ("model.norm.weight",)),
    "final_norm.bias": (SAME, ("model.norm.bias",)),
}

# nanoGPT's GPT: GPT-2's names, but nn.Linear, so nothing is transposed.
NANOGPT: WeightMap = {
    f"transformer.{key}": (rule and (Layout(parts=rule[0].parts), rule[1]))
    for key, rule in HF_GPT2.items()
    if key not in ("lm_head.weight", "score.weight")
} | {"lm_head.weight": (SAME, ("lm_head.weight",))}

# Llama's names are ours, and so are those of Mistral and of Qwen 2 and 3, which has the two norms of queries and keys.
LLAMA: WeightMap = {
    key: (SAME, (key,))
    for key in (
        "model.embed_tokens.weight",
        _block("input_layernorm.weight"),
        *_attention("weight"),
        *_attention("bias"),
        _block("self_attn.o_proj.weight"),
        _block("self_attn.o_proj.bias"),
        _block("self_attn.q_norm.weight"),
        _block("self_attn.k_norm.weight"),
        _block("post_attention_layernorm.weight"),
        _block("mlp.gate_proj.weight"),
        _block("mlp.gate_proj.bias"),
        _block("mlp.up_proj.weight"),
        _block("mlp.up_proj.bias"),
        _block("mlp.down_proj.weight"),
        _block("mlp.down_proj.bias"),
        "model.norm.weight",
        "lm_head.weight",
        "score.weight",
    )
} | {"model.layers.{}.self_attn.rotary_emb.inv_freq": None}
