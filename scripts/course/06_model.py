# %% [markdown]
# # Lesson 6: The model
#
# About 20 minutes. You need: attention (lesson 4) and the block (lesson 5). `make quickstart` has trained the model that we open here; it takes
# about three minutes.
#
# After this lesson you can
#
# - write a whole GPT in sixty lines and say what each line is for,
# - load weights saved under other names, and make sure that none is missing or used twice,
# - count parameters and memory of any GPT from its sizes.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import json
from dataclasses import dataclass

import matplotlib.pyplot as plt
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

torch.manual_seed(6)
if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")

# %% [markdown]
# ## 1. The whole thing
#
# ```
#  ids (B, T)                              "One day, Anna" -> 5 numbers
#     |
#  token vectors + position vectors        (B, T, C)
#     |
#  +--|---------------------------------+
#  |  +--> norm --> attention --> + ---> |  what other tokens know
#  |  |__________________________/       |
#  |  +--> norm --> MLP --------> + ---> |  what to make of it
#  |  |__________________________/       |
#  +--|---------------------------------+  x 4 layers
#     |
#  norm
#     |
#  times the token vectors                 (B, T, V): a score for each token of the vocabulary, at each position
# ```
#
# The vector that runs down the left is called the **residual stream**. Nothing ever overwrites it: attention and MLP read it and add to it.
#
# Layer norm and GELU are the formulas of lesson 5; here each is one operation of PyTorch.
#
# The last step deserves a second look. The output scores are dot products of the stream with the *token vectors themselves*. A token scores high
# where the stream points in its direction. So input and output share one matrix; that is called weight tying (Press & Wolf 2017).


# %%
@dataclass
class Config:
    """Sizes of a GPT-2 like model."""

    V: int  # tokens in the vocabulary
    T: int  # longest row
    C: int  # width of the residual stream
    H: int  # heads
    L: int  # layers
    qkv_bias: bool = False


class LayerNorm(nn.Module):
    def __init__(self, C):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x):  # the formula of lesson 5, as one operation of PyTorch
        return nn.functional.layer_norm(x, self.scale.shape, self.scale, self.shift, eps=1e-5)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.H, C = config.H, config.C
        self.query, self.key, self.value = (nn.Linear(C, C, bias=config.qkv_bias) for _ in range(3))
        self.output = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = (part(x).view(B, T, self.H, -1).transpose(1, 2) for part in (self.query, self.key, self.value))  # (B, H, T, D)
        scores = q @ k.transpose(-1, -2) * (C // self.H) ** -0.5
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return self.output((weights @ v).transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up, self.down = nn.Linear(config.C, 4 * config.C), nn.Linear(4 * config.C, config.C)

    def forward(self, x):
        return self.down(nn.functional.gelu(self.up(x), approximate="tanh"))  # GPT-2's GELU, the formula of lesson 5


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_1, self.attention = LayerNorm(config.C), Attention(config)
        self.norm_2, self.mlp = LayerNorm(config.C), MLP(config)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        return x + self.mlp(self.norm_2(x))


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.V, config.C)
        self.positions = nn.Embedding(config.T, config.C)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.L))
        self.norm = LayerNorm(config.C)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T  # (B, T, V)


# %% [markdown]
# ## 2. Somebody else's weights
#
# The checkpoint is a folder. `config.json` holds the sizes, `model.safetensors` the weights, each under a name. The names are not ours. That is
# normal: every project has its own names. What we need is a map from our names to theirs. `{}` stands for the layer.

# %%
NAMES = {
    "tokens.weight": "model.embed_tokens.weight",
    "positions.weight": "model.embed_positions.weight",
    "blocks.{}.norm_1.scale": "model.layers.{}.input_layernorm.weight",
    "blocks.{}.norm_1.shift": "model.layers.{}.input_layernorm.bias",
    "blocks.{}.attention.query": "model.layers.{}.self_attn.q_proj",
    "blocks.{}.attention.key": "model.layers.{}.self_attn.k_proj",
    "blocks.{}.attention.value": "model.layers.{}.self_attn.v_proj",
    "blocks.{}.attention.output": "model.layers.{}.self_attn.o_proj",
    "blocks.{}.norm_2.scale": "model.layers.{}.post_attention_layernorm.weight",
    "blocks.{}.norm_2.shift": "model.layers.{}.post_attention_layernorm.bias",
    "blocks.{}.mlp.up": "model.layers.{}.mlp.up_proj",
    "blocks.{}.mlp.down": "model.layers.{}.mlp.down_proj",
    "norm.scale": "model.norm.weight",
    "norm.shift": "model.norm.bias",
}


def their_name(our_name):
    """The name in the checkpoint of a parameter of GPT."""
    layer = next((part for part in our_name.split(".") if part.isdigit()), "")
    pattern = our_name.replace(f".{layer}.", ".{}.") if layer else our_name
    if pattern in NAMES:
        return NAMES[pattern].format(layer)
    module, _, kind = pattern.rpartition(".")  # a Linear has a weight and perhaps a bias, called so by everybody
    return f"{NAMES[module].format(layer)}.{kind}"


def load(folder):
    """GPT with the weights of a checkpoint. Every tensor is used, and every parameter of ours is filled; otherwise it says which is not."""
    settings = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", "qkv_bias")
    model = GPT(Config(*(settings[name] for name in sizes)))
    tensors = load_file(folder / "model.safetensors")
    state = {name: tensors.pop(their_name(name)) for name, _ in model.named_parameters()}
    if tensors:
        raise ValueError(f"these tensors have no place in the model: {', '.join(tensors)}")
    model.load_state_dict(state)
    return model.eval()


model = load(checkpoint)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
print(model.config)
print(their_name("blocks.2.attention.query.weight"))

# %% [markdown]
# It writes. We take the token with the highest score, append it to the text, and ask again. Lesson 7 does this better.

# %%
with torch.no_grad():
    ids = torch.tensor([tokenizer.encode("One day, Anna").ids])
    for _ in range(10 if small else 40):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
print(tokenizer.decode(ids[0].tolist()))

# %% [markdown]
# ## 3. Counting
#
# All parameters of a layer with biases on query, key and value: the norms have 2 * 2C, attention 4 (C * C + C), the MLP 2 * 4 C * C + 4C + C. For large C the
# squares win: **12 C² per layer**. GPT-2 small has C = 768 and 12 layers: 12 * 768² * 12 = 85 million, and 39 million in its token vectors.


# %%
def count(config):
    """Parameters by part, from the sizes alone."""
    C, qkv = config.C, 3 * (config.C**2 + config.C * config.qkv_bias)
    return {
        "tokens": config.V * C,
        "positions": config.T * C,
        "attention": config.L * (qkv + C**2 + C),
        "MLP": config.L * (2 * 4 * C**2 + 4 * C + C),
        "norms": (2 * config.L + 1) * 2 * C,
    }


for name, config in {
    "this model": model.config,
    "GPT-2 small": Config(V=50257, T=1024, C=768, H=12, L=12, qkv_bias=True),
    "GPT-2 XL": Config(V=50257, T=1024, C=1600, H=25, L=48, qkv_bias=True),
}.items():
    total = sum(count(config).values())
    print(
        f"{name}: {total:,} parameters; {total * 4 / 1e6:,.1f} MB as float32;",
        {k: f"{v / total:.0%}" for k, v in count(config).items()},
    )
assert sum(count(model.config).values()) == sum(parameter.numel() for parameter in model.parameters())

# %% [markdown]
# A number takes 4 bytes in float32. Training with AdamW keeps four numbers for each parameter: the parameter, its gradient, and two running averages
# (lesson 8). So a model that takes 0.5 GB to use takes 2 GB to train, and the activations of the layers come on top.

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(7, 2.2))
for row, (name, config) in enumerate(
    {
        "this model": model.config,
        "GPT-2 small": Config(50257, 1024, 768, 12, 12, True),
        "GPT-2 XL": Config(50257, 1024, 1600, 25, 48, True),
    }.items()
):
    start, total = 0.0, sum(count(config).values())
    for color, (part, number) in enumerate(count(config).items()):
        axis.barh(row, number / total, left=start, color=f"C{color}", label=part if row == 0 else None)
        start += number / total
axis.set_yticks(range(3), ["this model", "GPT-2 small", "GPT-2 XL"])
axis.set_xlabel("share of the parameters")
axis.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0), frameon=False)
figure.tight_layout()
plt.show()

# %% [markdown]
# With the same vocabulary, the larger a model is, the smaller the share of its token vectors.
#
# ## 4. Compare with the shipped model
#
# The package opens the same folder. We give both the same text and compare every score at every position. The package can compute attention in several ways;
# `eager` is written out like ours. A number of 32 bits holds about seven digits, so each operation rounds. Two programs that do the same operations
# in the same order round in the same way.

# %% tags=["compare"]
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt_scratch  # noqa: F401  registers the model with the Auto classes

eager, fused = (AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=name).eval() for name in ("eager", "sdpa"))
text = "One day, Anna could not find her red ball. She looked under the bed, behind the door and on the roof."
ids = AutoTokenizer.from_pretrained(checkpoint)(text, return_tensors="pt")["input_ids"]
assert ids[0].tolist() == tokenizer.encode(text).ids
with torch.no_grad():
    ours, theirs = model(ids), eager(ids).logits
difference = (ours - theirs).abs().max().item()
print(f"{ours.numel():,} scores of at most {theirs.abs().max():.1f}: largest difference {difference:.1e}")
assert difference <= 1e-6

# %% [markdown]
# By default the package uses `sdpa`, a single operation of PyTorch for the whole of attention. It is faster, but sums in another order. Now the scores do differ a little.
# Is that a mistake, or rounding? 64 bits round a billion times more finely. There both must agree, and each result in 32 bits must be about as far from them as the two are from each other.

# %% tags=["compare"]
with torch.no_grad():
    scores = fused(ids).logits
    exact, their_exact = model.double()(ids), fused.double()(ids).logits
model.float()
largest, difference = exact.abs().max().item(), (ours - scores).abs().max().item()
print(f"ours and sdpa:    largest difference {difference:.1e}, which is {difference / largest:.1e} of the largest score")
for name, rounded in {"ours": ours, "sdpa": scores}.items():
    print(f"{name} and 64 bits: largest difference {(rounded - exact).abs().max().item():.1e}")
print(f"both in 64 bits:  largest difference {(exact - their_exact).abs().max().item():.1e}")
assert difference <= 1e-6 * largest
assert (exact - their_exact).abs().max() < 1e-10

# %% [markdown]
# The class of sixty lines *is* the model, down to rounding. What the package adds is not mathematics but everything around it; lesson 13 goes through it.
#
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/06_model.py`.
#
# **Exercise 1.** GPT-2 small has 124,439,808 parameters, with one matrix for input and output. Some models keep two separate ones. How many parameters would
# GPT-2 small have then?

# %% tags=["exercise"]
untied = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 124_439_808 + 50257 * 768:
        return "Right: 163,037,184, one matrix of 50,257 x 768 more"
    if answer == 124_439_808 - 50257 * 768:
        return "Wrong: you took the matrix away; untied, the head gets a matrix of its own in addition"
    if answer == 124_439_808 + (50257 + 1024) * 768:
        return "Wrong: positions are only read at the input, so they are not doubled"
    return "Wrong: the head maps 768 numbers to 50,257 scores, without bias; add the size of that matrix"


print(check_1(untied))

# %% [markdown]
# **Exercise 2.** How many bytes do parameters, gradients and AdamW's two averages take in float32?


# %% tags=["exercise"]
def training_bytes(parameters):
    """Number of parameters -> bytes"""
    ...


# %% tags=["check"]


def check_2(function):
    given = function(1000)
    if given is None:
        return "Exercise 2: no answer yet"
    if given == 16_000:
        return "Right: four numbers of 4 bytes for each parameter"
    if given == 4_000:
        return "Wrong: that is enough to use the model, but training keeps a gradient and two averages for each parameter as well"
    if given == 12_000:
        return "Wrong: you have three numbers for each parameter; count parameter, gradient, average of gradients, average of their squares"
    return "Wrong: for 1,000 parameters there are 4,000 numbers of 4 bytes"


print(check_2(training_bytes))

# %% [markdown]
# **Exercise 3.** Many checkpoints keep query, key and value in one matrix of shape (3C, C): first the C rows of the query, then the key's, then the value's. Cut it into
# the three.


# %% tags=["exercise"]
def split_qkv(matrix):
    """(3C, C) -> three matrices (C, C): query, key, value"""
    ...


# %% tags=["check"]


def check_3(function):
    matrix = torch.arange(12.0).view(6, 2)
    given = function(matrix)
    if given is None:
        return "Exercise 3: no answer yet"
    if len(given) != 3 or any(part.shape != (2, 2) for part in given):
        return f"Wrong: a (6, 2) matrix makes three of (2, 2), not {[tuple(part.shape) for part in given]}; cut along the rows, dim=0"
    if all(torch.equal(part, matrix[start : start + 2]) for part, start in zip(given, (0, 2, 4))):
        return "Right: rows 0 to C, C to 2C and 2C to 3C"
    if torch.equal(given[0], matrix[::3]):
        return "Wrong: you took every third row; the rows of the query lie together, at the top"
    return "Wrong: the order is query, key, value, from top to bottom"


print(check_3(split_qkv))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | the model without head | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchModel` |
# | the head, tied | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchForCausalLM` |
# | maps of names for checkpoints from elsewhere | `gpt_scratch/conversion/weight_maps.py`, `HF_GPT2` |
# | each tensor used once, or an error that names it | `gpt_scratch/conversion/convert.py` |
# | parameters and memory of a model | `gpt_scratch/analysis/summary.py` |
#
# **Sources.** Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3 (the architecture); Press & Wolf 2017,
# arXiv:1608.05859 (tying); Kaplan et al. 2020, arXiv:2001.08361, section 2.1 (12 C² a layer).
