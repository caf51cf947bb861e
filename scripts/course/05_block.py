# %% [markdown]
# # Lesson 5: The block
#
# About 20 minutes. You need: attention (lesson 4), and what a gradient is.
#
# After this lesson you can
#
# - normalize a vector by hand, in two ways, and say what it is good for,
# - explain what the MLP adds to attention, and how GELU differs from ReLU,
# - show why a deep network needs shortcuts, by measuring gradients through twelve layers.

# %% tags=["parameters"]
small = False

# %%
import math

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from torch import nn

Attention = lesson(4).Attention
torch.manual_seed(5)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. Layer norm
#
# Layer after layer adds to the vectors, and their size drifts. A matrix that gets inputs of size 1 today and of size 100 tomorrow is hard to train. So each
# vector is brought to mean 0 and variance 1 first.
#
# By hand, for (2, 4, 6, 8): the mean is 5, the distances from it are -3, -1, 1, 3, their squares 9, 1, 1, 9 with mean 5. So the standard deviation is
# √5 = 2.236, and the result is (-1.342, -0.447, 0.447, 1.342).
#
# Two details. The variance divides by C, not by C - 1. And a tiny number, 0.00001, is added to it, so that a vector of equal numbers does not divide by
# zero. At the end each number gets a trained scale and shift, so that a layer may undo what it does not want. (Ba et al. 2016)


# %%
class LayerNorm(nn.Module):
    """(..., C) -> (..., C): each vector by itself."""

    def __init__(self, C, eps=1e-5):
        super().__init__()
        self.scale, self.shift, self.eps = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C)), eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        variance = centred.pow(2).mean(-1, keepdim=True)
        return centred / torch.sqrt(variance + self.eps) * self.scale + self.shift


print(LayerNorm(4)(torch.tensor([2.0, 4, 6, 8])).detach())

# %% [markdown]
# ## 2. RMS norm
#
# Later models drop the mean and the shift: they only divide by the root of the mean square (Zhang & Sennrich 2019). For (2, 4, 6, 8): the squares 4, 16, 36,
# 64 have mean 30, its root is 5.477, and the result is (0.365, 0.730, 1.095, 1.461).


# %%
class RMSNorm(nn.Module):
    """(..., C) -> (..., C)"""

    def __init__(self, C, eps=1e-5):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(C)), eps

    def forward(self, x):
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale


print(RMSNorm(4)(torch.tensor([2.0, 4, 6, 8])).detach())

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), sharey=True)
drifted = torch.randn(2000, 64) * 4 + 3
with torch.no_grad():
    for axis, title, values in zip(
        axes, ("before", "layer norm", "RMS norm"), (drifted, LayerNorm(64)(drifted), RMSNorm(64)(drifted))
    ):
        axis.hist(values.flatten().numpy(), bins=60, range=(-12, 18), density=True)
        axis.set(title=f"{title}: mean {values.mean():.1f}, std {values.std():.1f}", xlabel="number")
figure.tight_layout()
plt.show()

# %% [markdown]
# Layer norm moves the middle to 0; RMS norm only shrinks.
#
# ## 3. GELU
#
# Two matrices in a row are one matrix: `(x @ A) @ B = x @ (A @ B)`. Between them we need something that is not a straight line. The simplest
# is ReLU: negative numbers become 0. Where it is flat, no gradient flows. GELU multiplies x by the probability that a random number from the normal
# distribution is smaller than x. For large x that is x itself, for very negative x it is 0, and in between it bends smoothly, a little below 0.
# (Hendrycks & Gimpel 2016)
#
# GPT-2 computes it by a formula with tanh, which is close but not equal. A model must be used with the one it was trained with.


# %%
def gelu(x):
    """GELU as in GPT-2."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def exact_gelu(x):
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def silu(x):
    """x times sigmoid(x): a similar shape, and cheaper. Llama uses it."""
    return x * torch.sigmoid(x)


x = torch.linspace(-4, 4, 401)
print("GELU of -1, 0, 1, 2:", gelu(torch.tensor([-1.0, 0, 1, 2])))
print(f"the two forms differ by up to {(gelu(x) - exact_gelu(x)).abs().max():.1e}")

# %% tags=["figure"]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8))
for function, name in ((torch.relu, "ReLU"), (gelu, "GELU"), (silu, "SiLU")):
    points = x.clone().requires_grad_()
    function(points).sum().backward()
    axes[0].plot(x, function(x), label=name)
    axes[1].plot(x, points.grad, label=name)
axes[0].set(title="value", xlabel="x")
axes[1].set(title="slope", xlabel="x")
axes[0].legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 4. The MLP
#
# Attention moves information between tokens. The MLP works on each token by itself: it makes the vector four times as wide, applies GELU to each number, and makes the vector narrow again. Two thirds
# of a layer's parameters are here.
#
# The gated form has three matrices: the output of the first is a gate that scales the output of the second, and the third maps back to the original width (Shazeer 2020).


# %%
class MLP(nn.Module):
    """(..., C) -> (..., C)"""

    def __init__(self, C):
        super().__init__()
        self.up, self.down = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        return self.down(gelu(self.up(x)))


class GatedMLP(nn.Module):
    """(..., C) -> (..., C)"""

    def __init__(self, C, inner):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(C, inner), nn.Linear(C, inner), nn.Linear(inner, C)

    def forward(self, x):
        return self.down(silu(self.gate(x)) * self.up(x))


# %% [markdown]
# ## 5. Shortcuts
#
# In training, the gradient travels back from the loss through all layers. Each layer multiplies it by its own slopes. Twelve factors of one half make 0.0002: the
# first layers learn nothing. With a **shortcut**, a layer computes `x + f(x)`. The slope of that is 1 plus the slope of f, so the gradient always has a path
# back at full strength. (He et al. 2015)
#
# We measure it: twelve layers of the simplest kind, the same weights with and without shortcuts, and the size of the gradient at each layer.


# %%
def gradients(shortcuts, layers=12, C=32):
    """Size of the gradient of each layer's matrix, first layer first."""
    torch.manual_seed(0)
    matrices = [nn.Linear(C, C) for _ in range(layers)]
    x = torch.randn(16, C)
    for matrix in matrices:
        x = x + gelu(matrix(x)) if shortcuts else gelu(matrix(x))
    x.pow(2).mean().backward()
    return [matrix.weight.grad.norm().item() for matrix in matrices]


for shortcuts in (False, True):
    sizes = gradients(shortcuts)
    print(f"{'with' if shortcuts else 'without'} shortcuts: first layer {sizes[0]:.1e}, last layer {sizes[-1]:.1e}")
assert gradients(True)[0] > 1000 * gradients(False)[0]

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(6, 2.8))
for shortcuts, label in ((False, "without shortcuts"), (True, "with shortcuts")):
    axis.semilogy(range(1, 13), gradients(shortcuts), marker="o", label=label)
axis.set(xlabel="layer", ylabel="size of its gradient")
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 6. The block
#
# Now all parts come together: norm, attention, shortcut; norm, MLP, shortcut.
#
# ```
#  x ---+--> norm --> attention --+--> + ---+--> norm --> MLP --+--> + --->
#       |                              |    |                        |
#       +------------------------------+    +------------------------+
# ```
#
# The norm is *inside* the branch, before attention and MLP (pre-norm, as in GPT-2). In the original transformer it came after the sum, on the main path, where it
# touches every gradient; such models need a careful warm-up (lesson 8).


# %%
class Block(nn.Module):
    """(B, T, C) -> (B, T, C)"""

    def __init__(self, C, H, norm=LayerNorm, mlp=None):
        super().__init__()
        self.norm_1, self.attention = norm(C), Attention(C, H)
        self.norm_2, self.mlp = norm(C), mlp or MLP(C)

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))[0]
        return x + self.mlp(self.norm_2(x))


print(sum(p.numel() for p in Block(64, 4).parameters()), "parameters at C = 64; 12 C² =", 12 * 64**2)

# %% [markdown]
# ## 7. Compare with the package
#
# Two blocks of the package: one as in GPT-2 (layer norm, plain MLP), one as in Llama (RMS norm, gated MLP). The norms, the MLPs and the whole block must
# compute the same.

# %% tags=["compare"]
from gpt_scratch import GPTScratchConfig
from gpt_scratch.modeling_gpt_scratch import GPTScratchBlock

NAMES = {
    "norm_1.scale": "input_layernorm.weight",
    "norm_1.shift": "input_layernorm.bias",
    "norm_2.scale": "post_attention_layernorm.weight",
    "norm_2.shift": "post_attention_layernorm.bias",
    "attention.query.": "self_attn.q_proj.",
    "attention.key.": "self_attn.k_proj.",
    "attention.value.": "self_attn.v_proj.",
    "attention.output.": "self_attn.o_proj.",
    "mlp.gate.": "mlp.gate_proj.",
    "mlp.up.": "mlp.up_proj.",
    "mlp.down.": "mlp.down_proj.",
}


def theirs_of(name):
    """Our name of a parameter in a block -> the package's."""
    ours = next(ours for ours in NAMES if name.startswith(ours))
    return name.replace(ours, NAMES[ours])


C, H = (32, 4) if small else (128, 4)
styles = {
    "GPT-2": ({}, Block(C, H)),
    "Llama": (
        {"norm_type": "rmsnorm", "mlp_type": "gated", "hidden_act": "silu", "intermediate_size": 3 * C},
        Block(C, H, RMSNorm, GatedMLP(C, 3 * C)),
    ),
}
x = torch.randn(2, 9, C)
for name, (settings, ours) in styles.items():
    config = GPTScratchConfig(hidden_size=C, num_attention_heads=H, vocab_size=10, **settings)
    config._attn_implementation = "eager"
    theirs = GPTScratchBlock(config, layer_idx=0).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # norms start as ones and zeros, which would hide a mistake
            parameter.normal_(std=0.2)
        state = theirs.state_dict()
        ours.load_state_dict({key: state.pop(theirs_of(key)) for key in ours.state_dict()})
        assert not state, state.keys()
        parts = {
            "norm": (ours.norm_1(x), theirs.input_layernorm(x)),
            "MLP": (ours.mlp(x), theirs.mlp(x)),
            "block": (ours(x), theirs(x)[0]),
        }
    for part, (our_output, their_output) in parts.items():
        difference = ((our_output - their_output).abs().max() / their_output.abs().max()).item()
        print(f"{name} {part}: largest difference {difference:.1e} of the largest number")
        assert difference < 1e-6, part

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/05_block.py`.
#
# **Exercise 1.** What is the layer norm of the vector (1, 3), by hand? Leave out the 0.00001.

# %% tags=["exercise"]
normed = ...  # a pair of numbers

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    first, second = (round(float(number), 3) for number in answer)
    if (first, second) == (-1, 1):
        return "Right: the mean is 2, both are 1 away from it, and the mean of 1 and 1 is 1"
    if (first, second) == (-0.707, 0.707):
        return "Wrong: you divided the squares by C - 1 = 1; layer norm divides by C = 2"
    if (first, second) == (0.447, 1.342):
        return "Wrong: that is RMS norm; layer norm takes the mean away first"
    return "Wrong: take the mean, 2, away, and divide by the root of the mean square of what is left"


print(check_1(normed))

# %% [markdown]
# **Exercise 2.** A plain MLP has two matrices, C x 4C and 4C x C. A gated one has three, C x inner. Which `inner` gives it as many weights (without biases), for C = 768?

# %% tags=["exercise"]
inner = ...

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    if answer == 2048:
        return "Right: 3 C inner = 8 C², so inner = 8/3 C"
    if answer == 3072:
        return "Wrong: 4 C as in the plain MLP makes half as many weights again, since there are three matrices"
    if answer == 1536:
        return "Wrong: 2 C would hold if the gated MLP had four matrices; it has three"
    return "Wrong: solve 3 * 768 * inner = 2 * 768 * 4 * 768"


print(check_2(inner))

# %% [markdown]
# **Exercise 3.** Write a layer that starts as the identity: `x + strength * f(x)`, with a trained number `strength` that is 0 at first.


# %% tags=["exercise"]
class Gentle(nn.Module):
    """x -> x + strength * f(x)"""

    def __init__(self, f):
        super().__init__()
        self.f = f
        ...

    def forward(self, x): ...


# %% tags=["check"]


def check_3(cls):
    layer, x = cls(nn.Linear(3, 3)), torch.randn(2, 3)
    if (given := layer(x)) is None:
        return "Exercise 3: no answer yet"
    if not torch.equal(given, x):
        return "Wrong: with strength 0 the output is x itself; is the shortcut there, and does strength start at 0?"
    trained = dict(layer.named_parameters())
    if "strength" not in trained:
        return "Wrong: strength is not trained; make it an nn.Parameter"
    given.sum().backward()
    if trained["strength"].grad is None or float(trained["strength"].grad.abs().sum()) == 0:
        return "Wrong: strength gets no gradient; multiply f(x) by it"
    return "Right: at the start only strength has a gradient, and as it moves away from 0, f begins to learn"


print(check_3(Gentle))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | norms | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchLayerNorm`, `GPTScratchRMSNorm` |
# | both MLPs | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchMLP` |
# | the block | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchBlock` |
# | how the weights start, so that shortcuts do not add up to too much | `gpt_scratch/modeling_gpt_scratch.py`, `_init_weights` |
#
# **Sources.** Ba et al. 2016, arXiv:1607.06450, section 3 (layer norm); Zhang & Sennrich 2019, arXiv:1910.07467, section 4 (RMS norm); Hendrycks & Gimpel 2016,
# arXiv:1606.08415, section 2 (GELU); Shazeer 2020, arXiv:2002.05202, section 2 (gated MLPs); He et al. 2015, arXiv:1512.03385, section 3.1 (shortcuts); Xiong et
# al. 2020, arXiv:2002.04745, section 3 (pre-norm and post-norm).
