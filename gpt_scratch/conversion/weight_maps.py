"""The weight maps as data: for each format, the mapping from its tensors to ours, and their memory layout.

`{}` is the number of a layer. A value of `None` is a tensor that is dropped intentionally (causal masks, rotary tables).
Every key of a checkpoint must match exactly one entry, and every parameter of our model must be set exactly once: see `convert.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Layout:
    """How a source tensor stores one of our parameters, or stacked query, key and value parameters.

    transposed: (in, out) as in TensorFlow and Conv1D; nn.Linear is (out, in). OpenAI's leading axis of size 1 is dropped.
    parts: number of our parameters that are stacked along the out axis.
    """

    transposed: bool = False
    parts: int = 1

    def split(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Our parameters from the source tensor, as views."""
        if self.transposed:
            tensor = tensor.reshape(tensor.shape[-2:]).T
        return tensor.chunk(self.parts, dim=0)

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """The source tensor from our parameters."""
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


def _same(*names: str) -> Rule:
    return SAME, names


def _block(name: str) -> str:
    return "model.layers.{}." + name


# transformers' GPT2LMHeadModel and GPT2ForSequenceClassification, without the prefix, which the original files on the Hub lack.
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

# OpenAI's variables (gpt-2/src/model.py), with a leading axis of size 1 on the matrices. The head is tied to wte.
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
    # its Llama and Qwen 3, and the variants with a gated MLP
    "trf_blocks.{}.att.q_norm.scale": (SAME, (_block("self_attn.q_norm.weight"),)),
    "trf_blocks.{}.att.k_norm.scale": (SAME, (_block("self_attn.k_norm.weight"),)),
    "trf_blocks.{}.ff.fc1.weight": (SAME, (_block("mlp.gate_proj.weight"),)),
    "trf_blocks.{}.ff.fc2.weight": (SAME, (_block("mlp.up_proj.weight"),)),
    "trf_blocks.{}.ff.fc3.weight": (SAME, (_block("mlp.down_proj.weight"),)),
    "trf_blocks.{}.att.cos": None,
    "trf_blocks.{}.att.sin": None,
    "cos": None,
    "sin": None,
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

# The GPT of Karpathy's lecture, with the matrices of its heads joined; the output head has a bias.
LECTURE: WeightMap = {
    "token_embedding_table.weight": (SAME, ("model.embed_tokens.weight",)),
    "position_embedding_table.weight": (SAME, ("model.embed_positions.weight",)),
    "blocks.{}.ln1.weight": (SAME, (_block("input_layernorm.weight"),)),
    "blocks.{}.ln1.bias": (SAME, (_block("input_layernorm.bias"),)),
    "blocks.{}.sa.query.weight": (SAME, (_block("self_attn.q_proj.weight"),)),
    "blocks.{}.sa.key.weight": (SAME, (_block("self_attn.k_proj.weight"),)),
    "blocks.{}.sa.value.weight": (SAME, (_block("self_attn.v_proj.weight"),)),
    "blocks.{}.sa.proj.weight": (SAME, (_block("self_attn.o_proj.weight"),)),
    "blocks.{}.sa.proj.bias": (SAME, (_block("self_attn.o_proj.bias"),)),
    "blocks.{}.ln2.weight": (SAME, (_block("post_attention_layernorm.weight"),)),
    "blocks.{}.ln2.bias": (SAME, (_block("post_attention_layernorm.bias"),)),
    "blocks.{}.ffwd.net.0.weight": (SAME, (_block("mlp.up_proj.weight"),)),
    "blocks.{}.ffwd.net.0.bias": (SAME, (_block("mlp.up_proj.bias"),)),
    "blocks.{}.ffwd.net.2.weight": (SAME, (_block("mlp.down_proj.weight"),)),
    "blocks.{}.ffwd.net.2.bias": (SAME, (_block("mlp.down_proj.bias"),)),
    "ln_f.weight": (SAME, ("model.norm.weight",)),
    "ln_f.bias": (SAME, ("model.norm.bias",)),
    "lm_head.weight": (SAME, ("lm_head.weight",)),
    "lm_head.bias": (SAME, ("lm_head.bias",)),
}

# Meta's names of Llama, which llama2.c keeps.
LLAMA2C: WeightMap = {
    "tok_embeddings.weight": (SAME, ("model.embed_tokens.weight",)),
    "layers.{}.attention_norm.weight": (SAME, (_block("input_layernorm.weight"),)),
    "layers.{}.attention.wq.weight": (SAME, (_block("self_attn.q_proj.weight"),)),
    "layers.{}.attention.wk.weight": (SAME, (_block("self_attn.k_proj.weight"),)),
    "layers.{}.attention.wv.weight": (SAME, (_block("self_attn.v_proj.weight"),)),
    "layers.{}.attention.wo.weight": (SAME, (_block("self_attn.o_proj.weight"),)),
    "layers.{}.ffn_norm.weight": (SAME, (_block("post_attention_layernorm.weight"),)),
    "layers.{}.feed_forward.w1.weight": (SAME, (_block("mlp.gate_proj.weight"),)),
    "layers.{}.feed_forward.w2.weight": (SAME, (_block("mlp.down_proj.weight"),)),
    "layers.{}.feed_forward.w3.weight": (SAME, (_block("mlp.up_proj.weight"),)),
    "norm.weight": (SAME, ("model.norm.weight",)),
    "output.weight": (SAME, ("lm_head.weight",)),
    "layers.{}.attention.mask": None,
    "freqs_cos": None,
    "freqs_sin": None,
    "rope.freqs": None,
}

# litgpt, with query, key and value split.
LITGPT: WeightMap = {
    f"{theirs}.{part}": _same(f"{ours}.{part}")
    for part in ("weight", "bias")
    for theirs, ours in {
        "transformer.wte": "model.embed_tokens",
        "transformer.h.{}.norm_1": _block("input_layernorm"),
        "transformer.h.{}.attn.q": _block("self_attn.q_proj"),
        "transformer.h.{}.attn.k": _block("self_attn.k_proj"),
        "transformer.h.{}.attn.v": _block("self_attn.v_proj"),
        "transformer.h.{}.attn.norm_q": _block("self_attn.q_norm"),
        "transformer.h.{}.attn.norm_k": _block("self_attn.k_norm"),
        "transformer.h.{}.attn.proj": _block("self_attn.o_proj"),
        "transformer.h.{}.norm_2": _block("post_attention_layernorm"),
        "transformer.h.{}.mlp.fc": _block("mlp.up_proj"),
        "transformer.h.{}.mlp.fc_1": _block("mlp.gate_proj"),
        "transformer.h.{}.mlp.fc_2": _block("mlp.up_proj"),
        "transformer.h.{}.mlp.proj": _block("mlp.down_proj"),
        "transformer.ln_f": "model.norm",
        "lm_head": "lm_head",
    }.items()
}

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

# GGUF names (ggml docs/gguf.md) of the Llama family and Qwen; rope_freqs is represented in the configuration.
GGUF_LLAMA: WeightMap = {
    "token_embd.weight": (SAME, ("model.embed_tokens.weight",)),
    "output_norm.weight": (SAME, ("model.norm.weight",)),
    "output.weight": (SAME, ("lm_head.weight",)),
    "rope_freqs.weight": None,
    "blk.{}.attn_norm.weight": (SAME, (_block("input_layernorm.weight"),)),
    "blk.{}.attn_q_norm.weight": (SAME, (_block("self_attn.q_norm.weight"),)),
    "blk.{}.attn_k_norm.weight": (SAME, (_block("self_attn.k_norm.weight"),)),
    "blk.{}.attn_output.weight": (SAME, (_block("self_attn.o_proj.weight"),)),
    "blk.{}.ffn_norm.weight": (SAME, (_block("post_attention_layernorm.weight"),)),
    "blk.{}.ffn_gate.weight": (SAME, (_block("mlp.gate_proj.weight"),)),
    "blk.{}.ffn_up.weight": (SAME, (_block("mlp.up_proj.weight"),)),
    "blk.{}.ffn_down.weight": (SAME, (_block("mlp.down_proj.weight"),)),
    **{f"blk.{{}}.attn_{x}.{part}": _same(_block(f"self_attn.{x}_proj.{part}")) for x in "qkv" for part in ("weight", "bias")},
}
GGUF_GPT2: WeightMap = {
    "token_embd.weight": (SAME, ("model.embed_tokens.weight",)),
    "position_embd.weight": (SAME, ("model.embed_positions.weight",)),
    "output.weight": (SAME, ("lm_head.weight",)),
} | {
    f"{theirs}.{part}": (layout, tuple(f"{name}.{part}" for name in ours))
    for part in ("weight", "bias")
    for theirs, layout, ours in (
        ("output_norm", SAME, ("model.norm",)),
        ("blk.{}.attn_norm", SAME, (_block("input_layernorm"),)),
        ("blk.{}.attn_qkv", FUSED, tuple(_block(f"self_attn.{name}_proj") for name in "qkv")),
        ("blk.{}.attn_output", SAME, (_block("self_attn.o_proj"),)),
        ("blk.{}.ffn_norm", SAME, (_block("post_attention_layernorm"),)),
        ("blk.{}.ffn_up", SAME, (_block("mlp.up_proj"),)),
        ("blk.{}.ffn_down", SAME, (_block("mlp.down_proj"),)),
    )
}
