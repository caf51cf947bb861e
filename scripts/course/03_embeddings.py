# %% [markdown]
# # Lesson 3: Embeddings and positions
#
# About 15 minutes. You need: ids and rows (lessons 1 and 2), matrix products.
#
# After this lesson you can
#
# - explain why looking up a row of a table is a matrix product, and what that means for training,
# - say why a model needs positions, and add learned ones,
# - rotate queries and keys with rotary positions, and show that their dot product depends only on the distance.

# %% tags=["parameters"]
small = False

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

torch.manual_seed(3)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. A table of vectors
#
# An id is only a number: 7 is not "more" than 3. So each id gets its own vector, a row of a table, and training moves the vectors to where they
# are useful. The table is called an **embedding**.
#
# Looking up row 2 is the same as multiplying by a vector that is 1 at index 2 and 0 elsewhere (a **one-hot** vector):
#
# ```
#              | 0.1  0.2 |
#  [0 0 1 0] @ | 0.3  0.4 |  =  0 * row 0 + 0 * row 1 + 1 * row 2 + 0 * row 3  =  [0.5  0.6]
#              | 0.5  0.6 |
#              | 0.7  0.8 |
# ```

# %%
table = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]], requires_grad=True)  # (V, C): 4 words, 2 numbers each
ids = torch.tensor([2, 0, 2])


def one_hot(ids, V):
    """(T,) -> (T, V): one row for each id, with a single 1"""
    rows = torch.zeros(len(ids), V)
    rows[torch.arange(len(ids)), ids] = 1
    return rows


print(one_hot(ids, 4))
assert torch.equal(one_hot(ids, 4) @ table, table[ids])

# %% [markdown]
# Nobody multiplies by all those zeros; `table[ids]` picks the rows. But since it *is* a matrix product, it has a gradient like any other. Only
# rows that were used get one, and a row that was used twice gets the sum of both.

# %%
table[ids].sum().backward()
print(table.grad)

# %% [markdown]
# Row 2 was used twice, row 0 once, rows 1 and 3 not at all. A token that never occurs in the training text keeps its random vector.
#
# ## 2. Why positions?
#
# Attention mixes vectors by their dot products, whatever their order (lesson 4). "dog bites man" and "man bites dog" contain the same three vectors, so no
# mix of all of them can tell who bites whom.

# %%
words = {"dog": 0, "bites": 1, "man": 2}
vectors = torch.randn(3, 4)


def mixed(sentence, positions=None):
    """What the word 'bites' sees of the sentence through attention without matrices."""
    x = vectors[[words[word] for word in sentence.split()]]
    if positions is not None:
        x = x + positions[: len(x)]
    return (x[1] @ x.T).softmax(-1) @ x


print("without positions:", torch.allclose(mixed("dog bites man"), mixed("man bites dog"), atol=1e-6))

# %% [markdown]
# ## 3. Learned positions
#
# GPT-2's answer is simple: a second table, with a row for each *position*, is added to the first. Token 7 at position 0 and token 7 at position 5 then have different
# vectors. Both tables are trained. The price: there is no row for a position beyond the table, so the model cannot read longer texts.

# %%
positions = torch.randn(10, 4)
print("with positions:   ", torch.allclose(mixed("dog bites man", positions), mixed("man bites dog", positions), atol=1e-6))


class Embedding(nn.Module):
    """ids (B, T) -> (B, T, C): the token's row plus the position's row."""

    def __init__(self, V, T, C):
        super().__init__()
        self.tokens, self.positions = nn.Parameter(torch.randn(V, C) * 0.02), nn.Parameter(torch.randn(T, C) * 0.02)

    def forward(self, ids):
        return self.tokens[ids] + self.positions[: ids.shape[1]]  # (B, T, C) + (T, C)


# %% [markdown]
# ## 4. Rotary positions
#
# What matters in language is mostly how far apart two words are, not where they are. Rotary positions (Su et al. 2021) build that in. The numbers of a query
# or key are taken in pairs. A pair is a point in the plane; it is rotated around the origin by an angle that grows with the position.
#
# Rotating (a, b) by an angle gives (a cos - b sin, b cos + a sin). By hand, 90 degrees has cos 0 and sin 1, so (1, 0) becomes (0, 1).


# %%
def turn(pair, angle):
    """A point rotated around the origin, counterclockwise, by `angle` in radians."""
    a, b = pair
    return a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)


print("(1, 0) turned by 90 degrees:", tuple(round(number, 3) for number in turn((1, 0), math.pi / 2)))

# %% [markdown]
# Rotate a query by 5 steps and a key by 3, and their dot product is that of a query rotated by 2 and an unrotated key. Rotate both by 100 more steps: nothing
# changes. The dot product depends only on the difference, 2.

# %%
query, key = (1.0, 2.0), (0.5, -1.0)
for at_query, at_key in ((5, 3), (105, 103), (2, 0), (5, 4)):
    q, k = turn(query, 0.1 * at_query), turn(key, 0.1 * at_key)
    print(f"query at {at_query:3}, key at {at_key:3}, distance {at_query - at_key}: {q[0] * k[0] + q[1] * k[1]:.4f}")

# %% [markdown]
# A head of width D has D / 2 pairs. Pair i rotates by θ^(-2i/D) radians per step, with θ = 10,000: the first pair by 1 radian, so that it distinguishes neighbors; the last
# by about a ten-thousandth, so that it has hardly moved over a long text.
#
# Which numbers make a pair is a matter of layout. Here number i goes with number i + D/2: the first half of a head with the second half.


# %%
def rotate(x, positions, theta=10000.0):
    """Rotary positions: x (..., T, D), positions (T,) -> the same shape, pair (i, i + D/2) rotated by position * theta^(-2i/D)."""
    D = x.shape[-1]
    speeds = theta ** (-torch.arange(0, D, 2).float() / D)  # (D/2,)
    angles = positions[:, None].float() * speeds  # (T, D/2)
    first, second = x[..., : D // 2], x[..., D // 2 :]
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), dim=-1)


q, k = torch.randn(1, 16), torch.randn(1, 16)
here = rotate(q, torch.tensor([5])) @ rotate(k, torch.tensor([3])).T
there = rotate(q, torch.tensor([205])) @ rotate(k, torch.tensor([203])).T
print(f"{here.item():.4f} {there.item():.4f}")
assert torch.allclose(here, there, atol=1e-3)

# %% [markdown]
# Two plots: how the pairs of a head rotate over the positions, and the dot product of a vector with itself at growing distance. It is largest at distance 0 and
# falls off, unevenly.

# %% tags=["figure"]
D, T = 32, 64
speeds = 10000.0 ** (-torch.arange(0, D, 2).float() / D)
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
image = axes[0].imshow((torch.arange(T)[:, None] * speeds).cos().T, aspect="auto", cmap="RdBu")
axes[0].set(title="cosine of the angle", xlabel="position", ylabel="pair of the head")
figure.colorbar(image, ax=axes[0])
same = torch.ones(T, D)
axes[1].plot(rotate(same, torch.arange(T)) @ same[0])
axes[1].set(title="dot product with itself", xlabel="distance")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 5. Compare with the package
#
# First the embedding: the hidden states that the package's model passes to its first layer. Then rotary positions, on random queries.

# %% tags=["compare"]
from gpt_scratch import GPTScratchConfig, GPTScratchModel
from gpt_scratch.modeling_gpt_scratch import apply_rotary, rotary_embedding

sizes = {"vocab_size": 50, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "max_position_embeddings": 40}
theirs = GPTScratchModel(GPTScratchConfig(**sizes)).eval()
ours = Embedding(V=50, T=40, C=32)
ids = torch.randint(0, 50, (3, 20))
with torch.no_grad():
    ours.tokens.copy_(theirs.embed_tokens.weight)
    ours.positions.copy_(theirs.embed_positions.weight)
    difference = (ours(ids) - theirs(ids, output_hidden_states=True).hidden_states[0]).abs().max().item()
print(f"embedding: largest difference {difference:.1e}")
assert difference == 0

config = GPTScratchConfig(**sizes, position_embedding_type="rope")
x = torch.randn(3, 2, 20, 16)  # (B, H, T, D)
places = torch.arange(7, 27)
cos, sin = rotary_embedding(config, places[None], torch.float32)
difference = (rotate(x, places) - apply_rotary(x, cos, sin)).abs().max().item()
print(f"rotary: largest difference {difference:.1e}")
assert difference < 1e-5

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/03_embeddings.py`.
#
# **Exercise 1.** Rotate the point (3, 4) by 90 degrees, counterclockwise, by hand.

# %% tags=["exercise"]
turned = ...  # a pair of numbers

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if tuple(answer) == (-4, 3):
        return "Right: a cos - b sin = 3 * 0 - 4 * 1 = -4, b cos + a sin = 4 * 0 + 3 * 1 = 3"
    if tuple(answer) == (4, -3):
        return "Wrong: that is clockwise; mind the signs in (a cos - b sin, b cos + a sin)"
    if tuple(answer) == (4, 3):
        return "Wrong: swapping the numbers mirrors the point; one of them changes its sign"
    return "Wrong: put a = 3, b = 4, cos = 0, sin = 1 into (a cos - b sin, b cos + a sin)"


print(check_1(turned))

# %% [markdown]
# **Exercise 2.** A batch contains the ids `[5, 2, 5, 9]` and `[2, 5, 0, 0]`. How many rows of the token table get a gradient from it?

# %% tags=["exercise"]
rows_with_gradient = ...

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    if answer == 4:
        return "Right: rows 0, 2, 5 and 9, each once, however often it was used"
    if answer == 8:
        return "Wrong: eight places, but a row that is used several times is still one row; its gradients add up"
    if answer == 3:
        return "Wrong: row 0 counts too; 0 is an id like any other, and filling rows up with it does not keep it from getting a gradient"
    return "Wrong: count the different ids"


print(check_2(rows_with_gradient))

# %% [markdown]
# **Exercise 3.** When a model generates, it reads one token at a time (lesson 7). Write the embedding of ids that continue a text of which `start` tokens have been read already.


# %% tags=["exercise"]
def embed_from(embedding, ids, start):
    """Embedding, ids (B, T), number of tokens before them -> (B, T, C)"""
    ...


# %% tags=["check"]


def check_3(function):
    embedding, ids = Embedding(V=9, T=12, C=4), torch.tensor([[1, 2, 3, 4, 5]])
    given = function(embedding, ids[:, 3:], 3)
    if given is None:
        return "Exercise 3: no answer yet"
    if given.shape != (1, 2, 4):
        return f"Wrong: two tokens in, so the shape is (1, 2, 4) and not {tuple(given.shape)}; take as many positions as there are ids"
    if torch.allclose(given, embedding(ids)[:, 3:]):
        return "Right: positions start .. start + T"
    if torch.allclose(given, embedding(ids[:, 3:])):
        return "Wrong: these are positions 0 and 1, as if nothing had been read before; start at `start`"
    return "Wrong: add rows start .. start + T of the position table to the rows of the tokens"


print(check_3(embed_from))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | both tables | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchModel` |
# | rotary positions | `gpt_scratch/modeling_gpt_scratch.py`, `rotary_embedding`, `apply_rotary` |
# | positions where rows are padded or texts share a row | `gpt_scratch/positions_gpt_scratch.py`, `count_positions` |
# | rotary positions scaled to longer texts | `gpt_scratch/releases_gpt_scratch.py`, `scaled_rotary_frequencies` |
#
# **Sources.** Bengio et al. 2003, JMLR 3, section 2 (a trained vector for each word); Radford et al. 2018, "Improving Language Understanding by
# Generative Pre-Training", section 4.1 (learned positions); Su et al. 2021, arXiv:2104.09864, section 3.2 (rotary positions).
