"""Attention row by row, RMSNorm and rotary positions in plain torch, for the models that conversions are compared with.

Shapes: B batch, T tokens, C width, H heads, K key/value heads, D head size.
"""

import math

import torch
from torch import nn


def attention(query, key, value, window: int | None = None):
    """(B, T, H, D) and (B, T, K, D) twice -> (B, T, H * D); each token sees the last `window`, one row after the other."""
    B, T, H, D = query.shape
    group, rows = H // key.shape[2], []
    for t in range(T):
        first = 0 if window is None else max(0, t - window + 1)
        heads = []
        for h in range(H):
            scores = torch.einsum("bd,bsd->bs", query[:, t, h], key[:, first : t + 1, h // group]) / math.sqrt(D)
            heads.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), value[:, first : t + 1, h // group]))
        rows.append(torch.cat(heads, dim=-1))
    return torch.stack(rows, dim=1)


def rms(x, weight, eps: float):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


class RMS(nn.Module):
    """`name`: of its weight; the book's Qwen 3 calls it scale."""

    def __init__(self, width: int, eps: float, name: str = "weight"):
        super().__init__()
        self.eps, self.name = eps, name
        setattr(self, name, nn.Parameter(torch.ones(width)))

    def forward(self, x):
        return rms(x, getattr(self, self.name), self.eps)


def turned(x, base: float):
    """Rotate (B, T, H, D): dimension i with i + D/2."""
    T, D = x.shape[1], x.shape[3]
    angles = torch.arange(T).float()[:, None] * base ** (-torch.arange(0, D, 2).float() / D)
    cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
    left, right = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)
