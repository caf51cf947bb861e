"""More of the published models that transformers has no class for, in plain torch: minGPT and makemore, the GPT of Karpathy's lecture, llama2.c,
litgpt, and the book's later variants (grouped heads, sliding window, gated MLP, its Llama and Qwen 3).

Written from the published descriptions, like `published_layouts.py`; nothing of the package is imported. llama2.c rotates with complex
numbers here, and litgpt's windows are filled row by row, as in neither the package nor transformers.

Shapes: B batch, T tokens, C width, H heads, K key/value heads, D head size.
"""

import math
import struct
from pathlib import Path

import torch
from published_layouts import BookFeedForward, BookLayerNorm
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


# ------------------------------------------------------------------------------------------------------------------ minGPT, makemore


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


# ------------------------------------------------------------------------------------------------------------------------ the lecture


class LectureHead(nn.Module):
    def __init__(self, width: int, size: int, context: int):
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(width, size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(context, context)))

    def forward(self, x):
        query, key, value = (layer(x)[:, :, None] for layer in (self.query, self.key, self.value))
        return attention(query, key, value)


class LectureAttention(nn.Module):
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.heads = nn.ModuleList(LectureHead(width, width // heads, context) for _ in range(heads))
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
    def __init__(self, width: int, heads: int, context: int):
        super().__init__()
        self.sa, self.ffwd = LectureAttention(width, heads, context), LectureMLP(width)
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class LectureGPT(nn.Module):
    """`GPTLanguageModel` of "Let's build GPT"."""

    def __init__(self, vocabulary=61, context=64, width=32, heads=4, layers=2):
        super().__init__()
        self.token_embedding_table = nn.Embedding(vocabulary, width)
        self.position_embedding_table = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(LectureBlock(width, heads, context) for _ in range(layers)))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary)

    def forward(self, ids):
        x = self.token_embedding_table(ids) + self.position_embedding_table(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.blocks(x)))


# --------------------------------------------------------------------------------------------------------------------------- llama2.c


def spun(x):
    """Rotate (B, T, H, D) as Meta does: neighbouring pairs are complex numbers."""
    T, D = x.shape[1], x.shape[3]
    angles = torch.outer(torch.arange(T).float(), 10000.0 ** (-torch.arange(0, D, 2).float() / D))
    pairs = torch.view_as_complex(x.reshape(*x.shape[:3], D // 2, 2).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[None, :, None]).flatten(3)


class LlamaCBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, inner: int):
        super().__init__()
        self.heads, self.groups, size = heads, groups, width // heads
        shapes = {"wq": (heads * size, width), "wk": (groups * size, width), "wv": (groups * size, width), "wo": (width, width)}
        self.attention = nn.ModuleDict({name: nn.Linear(into, out, bias=False) for name, (out, into) in shapes.items()})
        shapes = {"w1": (inner, width), "w2": (width, inner), "w3": (inner, width)}
        self.feed_forward = nn.ModuleDict({name: nn.Linear(into, out, bias=False) for name, (out, into) in shapes.items()})
        self.attention_norm, self.ffn_norm = RMS(width, 1e-5), RMS(width, 1e-5)

    def forward(self, x):
        B, T, _ = x.shape
        n, a, f = self.attention_norm(x), self.attention, self.feed_forward
        query, key = a["wq"](n).view(B, T, self.heads, -1), a["wk"](n).view(B, T, self.groups, -1)
        x = x + a["wo"](attention(spun(query), spun(key), a["wv"](n).view(B, T, self.groups, -1)))
        n = self.ffn_norm(x)
        gate = f["w1"](n)
        return x + f["w2"](gate * torch.sigmoid(gate) * f["w3"](n))


class LlamaC(nn.Module):
    """llama2.c's `Transformer`; the head is tied unless `own_head`."""

    def __init__(self, vocabulary=61, context=64, width=32, heads=4, groups=2, inner=48, layers=2, own_head=False):
        super().__init__()
        self.sizes = (width, inner, layers, heads, groups, vocabulary, context)
        self.tok_embeddings = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(LlamaCBlock(width, heads, groups, inner) for _ in range(layers))
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


# ----------------------------------------------------------------------------------------------------------------------------- litgpt

LITGPT = {
    "name": "tiny", "hf_config": {}, "block_size": 64, "n_layer": 2, "n_embd": 32, "vocab_size": 61, "padding_multiple": 64,
    "padded_vocab_size": 64, "norm_class_name": "RMSNorm", "norm_eps": 1e-5, "norm_qk": False, "norm_qk_type": "default",
    "post_attention_norm": False, "post_mlp_norm": False, "parallel_residual": False, "shared_attention_norm": False, "n_head": 4,
    "head_size": 8, "n_query_groups": 2, "attn_bias": False, "attention_scores_scalar": None, "sliding_window_size": None,
    "sliding_window_indices": None, "attention_logit_softcapping": None, "rope_base": 5000, "rotary_percentage": 1.0,
    "rope_condense_ratio": 1, "rope_adjustments": None, "rope_interleave": False, "intermediate_size": 48, "bias": False,
    "mlp_class_name": "LLaMAMLP", "gelu_approximate": "none", "n_expert": 0, "n_expert_per_token": 0, "scale_embeddings": False,
    "lm_head_bias": False, "final_logit_softcapping": None, "norm_1": True, "norm_2": True, "latent_attention": None,
    "rope_local_base_freq": None, "rope_indices": None,
}  # fmt: skip


class LitBlock(nn.Module):
    def __init__(self, s: dict):
        super().__init__()
        self.s, size, width = s, s["head_size"], s["n_embd"]
        self.norm_1, self.norm_2 = self.norm(width), self.norm(width)
        rows = (s["n_head"] + 2 * s["n_query_groups"]) * size
        self.attn = nn.ModuleDict({
            "qkv": nn.Linear(width, rows, bias=s["bias"] or s["attn_bias"]), "proj": nn.Linear(s["n_head"] * size, width, bias=s["bias"]),
        })  # fmt: skip
        if s["norm_qk"]:
            self.attn["norm_q"], self.attn["norm_k"] = self.norm(size), self.norm(size)
        gated = s["mlp_class_name"] == "LLaMAMLP"
        into = {
            name: nn.Linear(width, s["intermediate_size"], bias=s["bias"]) for name in (("fc_1", "fc_2") if gated else ("fc",))
        }
        self.mlp = nn.ModuleDict(into | {"proj": nn.Linear(s["intermediate_size"], width, bias=s["bias"])})

    def norm(self, width: int):
        return (
            RMS(width, self.s["norm_eps"])
            if self.s["norm_class_name"] == "RMSNorm"
            else nn.LayerNorm(width, eps=self.s["norm_eps"])
        )

    def forward(self, x):
        s, (B, T, _) = self.s, x.shape
        size, heads, groups = s["head_size"], s["n_head"], s["n_query_groups"]
        qkv = self.attn["qkv"](self.norm_1(x)).view(B, T, -1, size)
        query, key, value = qkv[:, :, :heads], qkv[:, :, heads : heads + groups], qkv[:, :, heads + groups :]
        if s["norm_qk"]:
            query, key = self.attn["norm_q"](query), self.attn["norm_k"](key)
        query, key = turned(query, s["rope_base"]), turned(key, s["rope_base"])
        x = x + self.attn["proj"](attention(query, key, value, s["sliding_window_size"]))
        n, m = self.norm_2(x), self.mlp
        if "fc" in m:
            inner = m["fc"](n)
            return x + m["proj"](0.5 * inner * (1 + torch.erf(inner / math.sqrt(2))))
        gate = m["fc_1"](n)
        return x + m["proj"](gate * torch.sigmoid(gate) * m["fc_2"](n))


class LitGPT(nn.Module):
    """litgpt's `GPT` from its `Config`."""

    def __init__(self, **changes):
        super().__init__()
        self.settings = s = LITGPT | changes
        self.transformer = nn.ModuleDict({
            "wte": nn.Embedding(s["padded_vocab_size"], s["n_embd"]), "h": nn.ModuleList(LitBlock(s) for _ in range(s["n_layer"])),
        })  # fmt: skip
        self.transformer["ln_f"] = self.transformer["h"][0].norm(s["n_embd"])
        self.lm_head = nn.Linear(s["n_embd"], s["padded_vocab_size"], bias=s["lm_head_bias"])

    def forward(self, ids):
        x = self.transformer["wte"](ids)
        for block in self.transformer["h"]:
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


def as_older_litgpt(model: LitGPT) -> dict[str, torch.Tensor]:
    """Its state dict as until 2024: `attn.attn`, in which each group's queries, its key and its value lie together."""
    s, state = model.settings, {}
    for name, tensor in model.state_dict().items():
        if ".attn.qkv." in name:
            rows = tensor.view(-1, s["head_size"], *tensor.shape[1:])
            heads, groups, each = s["n_head"], s["n_query_groups"], s["n_head"] // s["n_query_groups"]
            order = [row for g in range(groups) for row in (*range(g * each, g * each + each), heads + g, heads + groups + g)]
            name, tensor = name.replace(".attn.qkv.", ".attn.attn."), rows[order].reshape(tensor.shape)
        state[name] = tensor
    return state


# ---------------------------------------------------------------------------------------------------------- the book's later variants


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
