"""minGPT and makemore, the GPT of Karpathy's lecture, and llama2.c in plain torch; llama2.c rotates with complex numbers, as in neither the package
nor transformers.

Written from the published descriptions, like `published_layouts.py`; nothing of the package is imported.

Shapes: B batch, T tokens, C width, H heads, K key/value heads, D head size.
"""

import math
import struct
from pathlib import Path

import torch
from plain_layers import RMS, attention
from torch import nn


class MinAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("bias", torch.tril(torch.ones(context, context)).view(1, 1, context, context))

    def forward(self, x):
        B, T, C = x.shape
        return self.c_proj(attention(*(part.reshape(B, T, self.heads, -1) for part in self.c_attn(x).split(C, dim=2))))


class NewGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class MinBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.ln_1, self.ln_2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), MinAttention(width, heads, context)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width), "act": NewGELU()})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](self.mlp["act"](self.mlp["c_fc"](self.ln_2(x))))


class MinGPT(nn.Module):
    """minGPT's GPT and makemore's Transformer: GPT-2 with an output head of its own."""

    def __init__(self, vocabulary=61, context=64, width=32, heads=4, layers=2):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocabulary, width),
                "wpe": nn.Embedding(context, width),
                "h": nn.ModuleList(MinBlock(width, heads, context) for _ in range(layers)),
                "ln_f": nn.LayerNorm(width),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


class LectureHead(nn.Module):
    def __init__(self, width: int, size: int, context: int, video: bool):
        super().__init__()
        self.factor = (size / width) ** 0.5 if video else 1.0  # the video scales scores by the width, not by the size of a head
        self.key, self.query, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(context, context)))

    def forward(self, x):
        query, key, value = (layer(x)[:, :, None] for layer in (self.query, self.key, self.value))
        return attention(query * self.factor, key, value)


class LectureAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int, video: bool):
        super().__init__()
        self.heads = nn.ModuleList(LectureHead(width, width // heads, context, video) for _ in range(heads))
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class LectureMLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width), nn.Dropout(0.2))

    def forward(self, x):
        return self.net(x)


class LectureBlock(nn.Module):
    def __init__(self, width: int, heads: int, context: int, video: bool):
        super().__init__()
        self.sa, self.ffwd = LectureAttention(width, heads, context, video), LectureMLP(width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class LectureGPT(nn.Module):
    """`GPTLanguageModel` of "Let's build GPT", as in its repository or as in the `video`."""

    def __init__(self, vocabulary=61, context=64, width=32, heads=4, layers=2, video=False):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocabulary, width)
        self.position_embedding_table = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(LectureBlock(width, heads, context, video) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.token_embedding_table(ids) + self.position_embedding_table(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))


def spun(x, theta: float):
    """Rotate (B, T, H, D) as Meta does: neighbouring pairs are complex numbers."""
    T, D = x.shape[1], x.shape[3]
    angles = torch.outer(torch.arange(T).float(), theta ** (-torch.arange(0, D, 2).float() / D))
    pairs = torch.view_as_complex(x.reshape(*x.shape[:3], D // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(3)


class LlamaCBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, inner: int, theta: float):
        super().__init__()
        self.heads, self.groups, self.theta, size = heads, groups, theta, width // heads
        shapes = {"wq": (heads * size, width), "wk": (groups * size, width), "wv": (groups * size, width), "wo": (width, width)}
        self.attention = nn.ModuleDict({name: nn.Linear(into, out, bias=False) for name, (out, into) in shapes.items()})
        shapes = {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}
        self.feed_forward = nn.ModuleDict({name: nn.Linear(into, out, bias=False) for name, (out, into) in shapes.items()})
        self.attention_norm, self.ffn_norm = RMS(width, 1e-5), RMS(width, 1e-5)

    def forward(self, x):
        B, T, _ = x.shape
        n, a, f = self.attention_norm(x), self.attention, self.feed_forward
        query, key = a["wq"](n).view(B, T, self.heads, -1), a["wk"](n).view(B, T, self.groups, -1)
        x = x + a["wo"](attention(spun(query, self.theta), spun(key, self.theta), a["wv"](n).view(B, T, self.groups, -1)))
        n = self.ffn_norm(x)
        gate = f["w1"](n)
        return x + f["w2"](gate * torch.sigmoid(gate) * f["w3"](n))


class LlamaC(nn.Module):
    """llama2.c's `Transformer`; the head is tied unless `own_head`."""

    def __init__(self, vocabulary=61, context=64, width=32, heads=4, groups=2, inner=48, layers=2, own_head=False, theta=10000.0):
        super().__init__()
        self.sizes = (width, inner, layers, heads, groups, vocabulary, context)
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaCBlock(width, heads, groups, inner, theta) for _ in range(layers))
        self.norm = RMS(width, 1e-5)
        self.output = nn.Linear(width, vocabulary, bias=False)
        if not own_head:
            self.output.weight = self.tok_embeddings.weight

    @property
    def model_args(self) -> dict:
        width, _, layers, heads, groups, vocabulary, context = self.sizes
        return {"dim": width, "n_layers": layers, "n_heads": heads, "n_kv_heads": groups, "vocab_size": vocabulary, "multiple_of": 32,
                "max_seq_len": context, "dropout": 0.1}  # fmt: skip

    def forward(self, ids):
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def write_llama_bin(model: LlamaC, path: Path, version: int) -> Path:
    """As llama2.c's `legacy_export` (0) or `version1_export` (1) writes it."""
    own = model.output.weight is not model.tok_embeddings.weight
    width, inner, layers, heads, groups, vocabulary, context = model.sizes
    numbers = struct.pack("<7i", width, inner, layers, heads, groups, -vocabulary if own and not version else vocabulary, context)
    each = {name: [dict(layer.named_parameters())[f"{name}.weight"] for layer in model.layers] for name in (
        "attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn_norm", "feed_forward.w1", "feed_forward.w2",
        "feed_forward.w3")}  # fmt: skip
    if version:
        tensors = [*each.pop("attention_norm"), *each.pop("ffn_norm"), model.norm.weight, model.tok_embeddings.weight]
        head = (struct.pack("<Ii", 0x616B3432, 1) + numbers + bytes([not own])).ljust(256, b"\0")
    else:
        tensors, head = [model.tok_embeddings.weight], numbers
    for name in list(each):
        tensors += each[name]
    if not version:
        tables = torch.zeros(context, width // heads // 2)
        tensors += [model.norm.weight, tables, tables]
    tensors += [model.output.weight] if own else []
    path.write_bytes(head + b"".join(tensor.detach().numpy().astype("<f4").tobytes() for tensor in tensors))
    return path
