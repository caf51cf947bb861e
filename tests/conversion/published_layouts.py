"""The published models whose files can be converted but for which transformers has no class, in plain torch, to compare logits with.

Written from the published descriptions: OpenAI's `gpt-2/src/model.py`, `GPTModel` of *Build a Large Language Model (From Scratch)* (chapter 4; the fast variant of
its later chapters; the LoRA layers of appendix E) and nanoGPT's `model.py`. Parameter names, shapes and arithmetic are theirs, and nothing
of this package is imported: attention, norms and activations are written out a second time.

Shapes: B batch, T tokens, C width, H heads, D = C / H.
"""

import math

import torch
from torch import nn


class BookLayerNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return self.scale * (x - mean) / torch.sqrt(variance + 1e-5) + self.shift


class BookGELU(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def causal_attention(query, key, value, heads: int):
    """(B, T, C) each -> (B, T, C)."""
    B, T, C = query.shape
    query, key, value = (x.view(B, T, heads, C // heads).transpose(1, 2) for x in (query, key, value))
    scores = query @ key.transpose(2, 3) / math.sqrt(C // heads)
    later = torch.triu(torch.ones(T, T, dtype=torch.bool), diagonal=1)
    weights = torch.softmax(scores.masked_fill(later, -torch.inf), dim=-1)
    return (weights @ value).transpose(1, 2).reshape(B, T, C)


class BookAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.W_query = nn.Linear(width, width, bias=qkv_bias)
        self.W_key = nn.Linear(width, width, bias=qkv_bias)
        self.W_value = nn.Linear(width, width, bias=qkv_bias)
        self.out_proj = nn.Linear(width, width)
        self.register_buffer("mask", torch.triu(torch.ones(context, context), diagonal=1))

    def forward(self, x):
        return self.out_proj(causal_attention(self.W_query(x), self.W_key(x), self.W_value(x), self.heads))


class FastAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, qkv_bias: bool):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        return self.proj(causal_attention(*self.qkv(x).chunk(3, dim=-1), self.heads))


class BookFeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 4 * width), BookGELU(), nn.Linear(4 * width, width))

    def forward(self, x):
        return self.layers(x)


class BookBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int, qkv_bias: bool, fast: bool):
        super().__init__()
        norm = nn.LayerNorm if fast else BookLayerNorm
        self.att = (FastAttention if fast else BookAttention)(width, context, heads, qkv_bias)
        self.ff = BookFeedForward(width)
        self.norm1, self.norm2 = norm(width), norm(width)

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff(self.norm2(x))


class BookGPT(nn.Module):
    """The book's `GPTModel`, or with `fast` its `GPTModelFast`. Dropout, which has no tensors, is left out."""

    def __init__(self, vocabulary=61, context=32, width=32, heads=4, layers=2, qkv_bias=False, fast=False):
        super().__init__()
        self.tok_emb = nn.Embedding(vocabulary, width)
        self.pos_emb = nn.Embedding(context, width)
        self.trf_blocks = nn.Sequential(*(BookBlock(width, context, heads, qkv_bias, fast) for _ in range(layers)))
        self.final_norm = (nn.LayerNorm if fast else BookLayerNorm)(width)
        self.out_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class LoRA(nn.Module):
    """Appendix E: what is added to a linear layer, scaled by alpha / rank there and by alpha in the printed book."""

    def __init__(self, into: int, out: int, rank: int, alpha: float, over_rank: bool):
        super().__init__()
        self.A = nn.Parameter(torch.zeros(into, rank))
        self.B = nn.Parameter(torch.zeros(rank, out))
        self.scaling = alpha / rank if over_rank else alpha

    def forward(self, x):
        return self.scaling * (x @ self.A @ self.B)


class LinearWithLoRA(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int, alpha: float, over_rank: bool):
        super().__init__()
        self.linear = linear
        self.lora = LoRA(linear.in_features, linear.out_features, rank, alpha, over_rank)

    def forward(self, x):
        return self.linear(x) + self.lora(x)


def add_lora(model: nn.Module, rank: int, alpha: float, over_rank: bool) -> None:
    """Wrap every linear layer of `model`, as appendix E does."""
    for name, module in model.named_children():
        if isinstance(module, nn.Linear):
            setattr(model, name, LinearWithLoRA(module, rank, alpha, over_rank))
        else:
            add_lora(module, rank, alpha, over_rank)


class NanoLayerNorm(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        x = self.weight * (x - mean) / torch.sqrt(variance + 1e-5)
        return x if self.bias is None else x + self.bias


class NanoAttention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool, context: int, mask: bool):
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        if mask:  # where torch has no fused attention
            self.register_buffer("bias", torch.tril(torch.ones(context, context)).view(1, 1, context, context))

    def forward(self, x):
        return self.c_proj(causal_attention(*self.c_attn(x).chunk(3, dim=-1), self.heads))


class NanoMLP(nn.Module):
    def __init__(self, width: int, bias: bool):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)

    def forward(self, x):
        x = self.c_fc(x)
        return self.c_proj(0.5 * x * (1 + torch.erf(x / math.sqrt(2))))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool, context: int, mask: bool):
        super().__init__()
        self.ln_1, self.ln_2 = NanoLayerNorm(width, bias), NanoLayerNorm(width, bias)
        self.attn = NanoAttention(width, heads, bias, context, mask)
        self.mlp = NanoMLP(width, bias)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGPT(nn.Module):
    """nanoGPT's `GPT` from its `model_args`; the head is the token embedding. Logits of all positions."""

    def __init__(self, n_layer, n_head, n_embd, block_size, bias, vocab_size, dropout, mask=False):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList(NanoBlock(n_embd, n_head, bias, block_size, mask) for _ in range(n_layer)),
                "ln_f": NanoLayerNorm(n_embd, bias),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids):
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def openai_gpt2(values: dict[str, torch.Tensor], hparams: dict[str, int]):
    """OpenAI's `model.model`, a function from ids (B, T) to logits (B, T, V), for variables by their TensorFlow names."""

    def norm(x, scope):
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).square().mean(-1, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + 1e-5) * values[scope + "/g"] + values[scope + "/b"]

    def conv1d(x, scope):
        return x @ values[scope + "/w"][0] + values[scope + "/b"]

    def model(ids):
        x = values["model/wte"][ids] + values["model/wpe"][: ids.shape[1]]
        for layer in range(hparams["n_layer"]):
            block = f"model/h{layer}"
            qkv = conv1d(norm(x, block + "/ln_1"), block + "/attn/c_attn").chunk(3, dim=-1)
            x = x + conv1d(causal_attention(*qkv, hparams["n_head"]), block + "/attn/c_proj")
            inner = conv1d(norm(x, block + "/ln_2"), block + "/mlp/c_fc")
            inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + conv1d(inner, block + "/mlp/c_proj")
        return norm(x, "model/ln_f") @ values["model/wte"].T

    return model


def greedy(model: nn.Module, ids: torch.Tensor, count: int) -> torch.Tensor:
    """`ids` (1, T) and `count` most likely tokens after them, (1, T + count)."""
    for _ in range(count):
        ids = torch.cat((ids, model(ids)[:, -1].argmax(-1, keepdim=True)), dim=1)
    return ids
