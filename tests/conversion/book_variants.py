"""The book's later variants in plain torch: grouped heads, sliding window, gated MLP, its Llama and Qwen 3.

Written from the published descriptions, like `published_layouts.py`; nothing of the package is imported.

Shapes: B batch, T tokens, C width, H heads, K key/value heads, D head size.
"""

import torch
from plain_layers import RMS, attention, turned
from published_layouts import BookFeedForward, BookLayerNorm
from torch import nn


class BookGrouped(nn.Module):
    """Attention of ch04/04_gqa, ch04/06_swa, and of the book's Llama 3 and Qwen 3."""

    def __init__(self, width, heads, groups, size, out_bias, window=None, base=None, normed=False):
        super().__init__()
        self.heads, self.groups, self.window, self.base = heads, groups, window, base
        self.W_query = nn.Linear(width, heads * size, bias=False)
        self.W_key = nn.Linear(width, groups * size, bias=False)
        self.W_value = nn.Linear(width, groups * size, bias=False)
        self.out_proj = nn.Linear(heads * size, width, bias=out_bias)
        if normed:
            self.q_norm, self.k_norm = RMS(size, 1e-6, "scale"), RMS(size, 1e-6, "scale")

    def forward(self, x):
        B, T, _ = x.shape
        query, key = self.W_query(x).view(B, T, self.heads, -1), self.W_key(x).view(B, T, self.groups, -1)
        if hasattr(self, "q_norm"):
            query, key = self.q_norm(query), self.k_norm(key)
        if self.base:
            query, key = turned(query, self.base), turned(key, self.base)
        return self.out_proj(attention(query, key, self.W_value(x).view(B, T, self.groups, -1), self.window))


class BookGated(nn.Module):
    """The book's SiLU feed-forward: fc3(silu(fc1(x)) * fc2(x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.fc3 = nn.Linear(inner, width, bias=False)

    def forward(self, x):
        gate = self.fc1(x)
        return self.fc3(gate * torch.sigmoid(gate) * self.fc2(x))


class BookVariantBlock(nn.Module):
    def __init__(self, att, ff, norm):
        super().__init__()
        self.att, self.ff, self.norm1, self.norm2 = att, ff, norm(), norm()

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class BookVariant(nn.Module):
    """`kind`: "gqa", "swa" (window 5 in every layer), "ffn" (gated MLP), "llama3" or "qwen3"."""

    def __init__(self, kind: str, vocabulary=61, context=64, width=32, heads=4, layers=2):
        super().__init__()
        groups, size = (heads if kind in ("swa", "ffn") else 2), (10 if kind == "qwen3" else width // heads)
        rotary = kind in ("llama3", "qwen3")
        settings = {"window": 5 if kind == "swa" else None, "base": 5000.0 if rotary else None, "normed": kind == "qwen3"}

        def norm():
            if kind == "qwen3":
                return RMS(width, 1e-6, "scale")
            return RMS(width, 1e-5) if kind == "llama3" else BookLayerNorm(width)

        self.tok_emb = nn.Embedding(vocabulary, width)
        if not rotary:
            self.pos_emb = nn.Embedding(context, width)
        self.trf_blocks = nn.ModuleList(
            BookVariantBlock(
                BookGrouped(width, heads, groups, size, kind in ("swa", "ffn"), **settings),
                BookGated(width, 40) if rotary or kind == "ffn" else BookFeedForward(width),
                norm,
            )
            for _ in range(layers)
        )
        self.final_norm = norm()
        self.out_head = nn.Linear(width, vocabulary, bias=False)
        if kind == "qwen3":
            self.register_buffer("cos", torch.zeros(context, size))
            self.register_buffer("sin", torch.zeros(context, size))

    def forward(self, ids):
        x = self.tok_emb(ids)
        if hasattr(self, "pos_emb"):
            x = x + self.pos_emb(torch.arange(ids.shape[1]))
        for block in self.trf_blocks:
            x = block(x)
        return self.out_head(self.final_norm(x))
