"""litgpt's `GPT` in plain torch; its windows are filled row by row, as in neither the package nor transformers.

Written from the published descriptions, like `published_layouts.py`; nothing of the package is imported.

Shapes: B batch, T tokens, C width, H heads, K key/value heads, D head size.
"""

import math

import torch
from plain_layers import RMS, attention, turned
from torch import nn

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
