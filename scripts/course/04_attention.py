# %% [markdown]
# # Lesson 4: Attention
#
# About 20 minutes. You need: vectors and matrices in PyTorch, and lesson 3's idea that every token is a vector.
#
# After this lesson you can
#
# - compute one attention score, one set of weights and one context vector by hand,
# - say what query, key and value are for, and why scores are divided by the square root of their width,
# - write causal, multi-head and grouped attention, and show that they equal the attention of the shipped model.

# %% tags=["parameters"]
small = False  # the tests set this to True, and the lesson then uses fewer numbers

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn

torch.manual_seed(4)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. One score: a dot product
#
# Take four words. Each is a vector of three numbers, chosen here so that you can follow with a pencil.
#
# | word | vector |
# |---|---|
# | the | 0, 1, 0 |
# | dog | 2, 0, 1 |
# | chased | 0, 1, 2 |
# | it | 1, 0, 1 |
#
# The vector of "it" is the same in every sentence. What "it" *means* depends on the words before it. Attention computes a new vector for
# "it" by mixing the vectors of the words it can see, and giving more weight to the words that matter.
#
# How much does a word matter to "it"? The simplest measure is the dot product: multiply the numbers in pairs and add up. It is large
# where both vectors are large in the same places.

# %%
words = ["the", "dog", "chased", "it"]
x = torch.tensor([[0.0, 1, 0], [2, 0, 1], [0, 1, 2], [1, 0, 1]])  # (T, C): 4 tokens, 3 numbers each

query = x[3]  # "it" asks
scores = []
for word, vector in zip(words, x):
    products = [float(a * b) for a, b in zip(query, vector)]
    scores.append(sum(products))
    print(f"it · {word:<7} = {' + '.join(f'{p:g}' for p in products)} = {scores[-1]:g}")

# %% [markdown]
# "dog" scores highest, with 3.
#
# ## 2. From scores to weights: softmax
#
# We want weights that are positive and add up to 1. Softmax raises e to each score and divides by the sum. Exponentiation makes everything positive,
# dividing makes the sum 1.
#
# | word | score | e^score | weight |
# |---|---|---|---|
# | the | 0 | 1.00 | 1.00 / 35.86 = 0.028 |
# | dog | 3 | 20.09 | 20.09 / 35.86 = 0.560 |
# | chased | 2 | 7.39 | 7.39 / 35.86 = 0.206 |
# | it | 2 | 7.39 | 7.39 / 35.86 = 0.206 |
#
# e^score overflows for scores above 88 in 32-bit numbers. Subtracting the largest score first changes nothing, since the factor
# cancels in the division, and it keeps every exponent at 0 or below.


# %%
def softmax(scores):
    """Weights that add up to 1 over the last axis."""
    powers = (scores - scores.amax(-1, keepdim=True)).exp()
    return powers / powers.sum(-1, keepdim=True)


weights = softmax(torch.tensor(scores))
context = sum(weight * vector for weight, vector in zip(weights, x))
print("weights", weights)
print("new vector of 'it'", context)

# %% [markdown]
# The new vector is `0.028 * the + 0.560 * dog + 0.206 * chased + 0.206 * it`: "it" has become mostly "dog". Such a mix is called a
# **context vector**.
#
# Every word asks the same question of every word, itself included. As matrices this is one line: `x @ x.T` contains all scores, with row t for the word that asks.

# %%
all_scores = x @ x.T  # (T, C) @ (C, T) -> (T, T)
all_contexts = softmax(all_scores) @ x  # (T, T) @ (T, C) -> (T, C)
print(all_scores)
assert torch.allclose(all_contexts[3], context)

# %% [markdown]
# ## 3. Weights that can learn: query, key, value
#
# So far nothing can be trained. And one vector has three jobs at once: it asks, it is found, and it is mixed in. Attention gives each job its
# own vector, made by a matrix that training adjusts:
#
# - the **query** `x @ W_q`: what this token is looking for,
# - the **key** `x @ W_k`: what this token can be found by,
# - the **value** `x @ W_v`: what this token contributes once it is found.
#
# (Vaswani et al. 2017, "Attention Is All You Need", section 3.2.)

# %%
C, D = 3, 2  # width of a token, width of query, key and value
W_q, W_k, W_v = (torch.randn(C, D) for _ in range(3))  # random: nothing is trained yet
q, k, v = x @ W_q, x @ W_k, x @ W_v  # each (T, D)
print("scores of 'it':", q[3] @ k.T)
print("context of 'it':", softmax(q[3] @ k.T / math.sqrt(D)) @ v)  # why it is divided: just below

# %% [markdown]
# ### Why divide by the square root of D?
#
# A dot product adds up D products. If the numbers are independent and random, with mean 0 and variance 1, the sum has variance D, so scores grow with D.
# Large scores make softmax pick one word with weight close to 1. Then a small change of the scores hardly changes the weights, and training, which
# follows such small changes (the gradient), has nothing to follow. Dividing by the square root of D keeps the variance at 1.
#
# Below, each word sees ten others. Unscaled, the largest of its ten weights approaches 1 as D grows; scaled, it stays the same.

# %%
for width in (4, 64, 1024):
    a, b = torch.randn(500, 1, width), torch.randn(500, 10, width)
    raw = (a * b).sum(-1)  # (500, 10): 500 words that ask, each sees 10 of its own
    scaled = raw / math.sqrt(width)
    print(
        f"D = {width:4}: standard deviation {raw.std():5.1f}, largest weight {softmax(raw).amax(-1).mean():.2f};"
        f" scaled {scaled.std():.1f}, {softmax(scaled).amax(-1).mean():.2f}"
    )

# %% [markdown]
# ## 4. No looking ahead: the causal mask
#
# A language model predicts the next word. In training all words of a row are present at once, so word t could read its own answer at t + 1. We
# forbid that: before softmax, each score of a later word becomes minus infinity, and e to the minus infinity is 0.
#
# The order matters. If you compute softmax first and set the forbidden weights to 0 afterwards, the rest no longer adds up to 1, and
# the later words have already taken part through the sum.


# %%
def causal_weights(scores):
    """(..., T, T) -> weights; row t spreads over the words 0 to t only."""
    T = scores.shape[-1]
    later = torch.ones(T, T, dtype=torch.bool).triu(diagonal=1)  # True above the diagonal
    return softmax(scores.masked_fill(later, -torch.inf))


print(causal_weights(all_scores))

# %% [markdown]
# The first word sees only itself, so its weight is 1 whatever its score.
#
# ## 5. Dropout on the weights
#
# In training, dropout sets some weights to 0 at random, so that the model does not rely on a single word. The others are divided by the fraction
# that is kept, so the sum stays the same on average. When the model is used, dropout does nothing. (Srivastava et al. 2014, section 4.)


# %%
def dropout(weights, p):
    """Each weight is 0 with probability p, and divided by 1 - p otherwise."""
    kept = torch.rand_like(weights) >= p
    return weights * kept / (1 - p)


print(dropout(torch.ones(2, 10), p=0.5))
print("mean of a million ones after dropout:", round(dropout(torch.ones(1_000 if small else 1_000_000), p=0.2).mean().item(), 2))

# %% [markdown]
# ## 6. Many heads, in a list
#
# Three matrices `W_q`, `W_k`, `W_v` make a **head**. It gives each token one set of weights: it can look for the subject *or* for the last verb. A model uses
# several heads side by side, each narrow, and concatenates their results. A last matrix mixes them. PyTorch's `nn.Linear(C, D)` contains a matrix to be
# trained and, unless `bias=False`, D numbers that are added to each result, the bias.
#
# From here on there are several rows at once. Shapes read: B rows, T tokens in each, C numbers for each token; H heads, each D = C / H wide.


# %%
class Head(nn.Module):
    """One causal head: (B, T, C) -> (B, T, D)."""

    def __init__(self, C, D):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(C, D, bias=False) for _ in range(3))

    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        return causal_weights(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])) @ v


class HeadsInAList(nn.Module):
    """H heads side by side: (B, T, C) -> (B, T, C)."""

    def __init__(self, C, H):
        super().__init__()
        self.heads = nn.ModuleList(Head(C, C // H) for _ in range(H))
        self.output = nn.Linear(C, C)

    def forward(self, x):
        return self.output(torch.cat([head(x) for head in self.heads], dim=-1))


# %% [markdown]
# ## 7. The same in one matrix
#
# A list of H heads makes 3 H small matrix products. One product with the concatenated matrices gives the same numbers at once. Then only
# the view of the memory changes: the last axis, C wide, is split into H heads of D, and the head axis moves before the token axis, so that `@` works on
# each head by itself. The class in section 8 does this.
#
# ```
# (B, T, C)  --project-->  (B, T, H * D)  --view-->  (B, T, H, D)  --transpose-->  (B, H, T, D)
# ```
#
# ## 8. Grouped heads
#
# When a model generates, it keeps the keys and values of all earlier tokens (lesson 7). With fewer key/value heads than query heads, each serving a
# group of query heads, this memory shrinks, with hardly any loss of quality (Ainslie et al. 2023, arXiv:2305.13245, section 2). With as
# many key/value heads as query heads, it is plain multi-head attention. So one class covers both.


# %%
class Attention(nn.Module):
    """Causal attention with H query heads and K key/value heads: (B, T, C) -> (B, T, C), and the weights (B, H, T, T)."""

    def __init__(self, C, H, K=None, dropout=0.0):
        super().__init__()
        self.H, self.K, self.D, self.dropout = H, K or H, C // H, dropout
        self.query = nn.Linear(C, self.H * self.D, bias=False)
        self.key = nn.Linear(C, self.K * self.D, bias=False)
        self.value = nn.Linear(C, self.K * self.D, bias=False)
        self.output = nn.Linear(C, C)

    def forward(self, x):
        B, T, C = x.shape
        q = self.query(x).view(B, T, self.H, self.D).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, self.K, self.D).transpose(1, 2)  # (B, K, T, D)
        v = self.value(x).view(B, T, self.K, self.D).transpose(1, 2)
        k = k.repeat_interleave(self.H // self.K, dim=1)  # head 0 serves queries 0, 1, ..., head 1 the next ones: (B, H, T, D)
        v = v.repeat_interleave(self.H // self.K, dim=1)
        weights = causal_weights(q @ k.transpose(-1, -2) / math.sqrt(self.D))
        used = dropout(weights, self.dropout) if self.training and self.dropout else weights
        mixed = (used @ v).transpose(1, 2).reshape(B, T, C)  # heads back side by side
        return self.output(mixed), weights


# %% [markdown]
# Does the fast form really equal the list? We copy the list's matrices into it and compare. (`nn.Linear` stores its matrix transposed, so matrices side by side in
# a formula are one below the other here.)

# %%
C, H = 16, 4
listed, fast = HeadsInAList(C, H), Attention(C, H)
with torch.no_grad():
    for name in ("query", "key", "value"):
        getattr(fast, name).weight.copy_(torch.cat([getattr(head, name).weight for head in listed.heads]))
    fast.output.load_state_dict(listed.output.state_dict())
    sentence = torch.randn(1, 7, C)
    difference = (listed(sentence) - fast(sentence)[0]).abs().max().item()
print(f"list against one matrix: largest difference {difference:.1e}")
assert difference < 1e-6

# %% [markdown]
# ## 9. Compare with the shipped model
#
# Only now do we import the package. We give its attention and ours the same matrices and the same input, once with 4 key/value heads and once with
# 2. The package calls the four matrices `q_proj`, `k_proj`, `v_proj` and `o_proj`.

# %% tags=["compare"]
from gpt_scratch import GPTScratchConfig
from gpt_scratch.modeling_gpt_scratch import GPTScratchAttention

NAMES = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj"}
C, H, T = (32, 4, 6) if small else (128, 4, 12)
x = torch.randn(2, T, C)
for K in (4, 2):
    config = GPTScratchConfig(hidden_size=C, num_attention_heads=H, num_key_value_heads=K, attention_dropout=0.0, vocab_size=10)
    config._attn_implementation = "eager"  # the one that also returns its weights
    theirs, ours = GPTScratchAttention(config, layer_idx=0), Attention(C, H, K)
    with torch.no_grad():
        for name, their_name in NAMES.items():
            getattr(ours, name).load_state_dict(getattr(theirs, their_name).state_dict())
        (our_output, our_weights), (their_output, their_weights) = ours(x), theirs(x)
    of_output = (our_output - their_output).abs().max().item()
    of_weights = (our_weights - their_weights).abs().max().item()
    print(f"{K} key/value heads: largest difference of outputs {of_output:.1e}, of weights {of_weights:.1e}")
    assert of_output < 1e-6 and of_weights < 1e-6

# %% [markdown]
# The same in a picture: head 0 of both. Each row is a token that asks and adds up to 1. Above the diagonal all weights are 0. The third plot shows the
# difference; its scale says that this is rounding.

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
for axis, map, title in zip(
    axes, (our_weights, their_weights, our_weights - their_weights), ("ours", "the package's", "difference")
):
    image = axis.imshow(map[0, 0], vmin=0 if title != "difference" else None, cmap="viridis")
    axis.set(title=title, xlabel="looked at", ylabel="asks")
    figure.colorbar(image, ax=axis, shrink=0.8)
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/04_attention.py`.
#
# **Exercise 1.** "chased" asks, with the vectors of section 1 and no matrices: vector `0, 1, 2`. What score does "chased" give
# to "it", vector `1, 0, 1`?

# %% tags=["exercise"]
score_of_it = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 2:
        return "Right: 0 * 1 + 1 * 0 + 2 * 1 = 2"
    if answer == 5:
        return (
            "Wrong: 5 is the score of 'chased' with itself, 0 * 0 + 1 * 1 + 2 * 2; take the vector of 'it' as the second factor"
        )
    return "Wrong: multiply the numbers in pairs, 0 * 1, 1 * 0 and 2 * 1, and add up"


print(check_1(score_of_it))

# %% [markdown]
# **Exercise 2.** Mistral's sliding window lets a token see only itself and the `window - 1` tokens before it. Write the weights. With `window=2` and
# equal scores the rows are `1 0 0 0`, `.5 .5 0 0`, `0 .5 .5 0`, `0 0 .5 .5`.


# %% tags=["exercise"]
def window_weights(scores, window):
    """(T, T) -> (T, T)"""
    ...


# %% tags=["check"]


def check_2(function):
    scores = torch.arange(16.0).view(4, 4) / 4
    given = function(scores.clone(), 2)
    if given is None:
        return "Exercise 2: no answer yet"
    seen = torch.ones(4, 4).tril() - torch.ones(4, 4).tril(-2)
    expected = torch.softmax(scores.masked_fill(seen == 0, -torch.inf), -1)
    if torch.allclose(given, expected, atol=1e-6):
        return "Right: too early and too late are both minus infinity before softmax"
    if not torch.allclose(given.sum(-1), torch.ones(4), atol=1e-5):
        return (
            f"Wrong: the rows add up to {[round(s, 2) for s in given.sum(-1).tolist()]}, not to 1; mask the scores before softmax"
        )
    if (given.triu(1) > 0).any():
        return "Wrong: a token sees a later one; the causal mask still holds"
    if (given * (1 - seen)).abs().max() > 0:
        return "Wrong: token 3 sees token 0 or 1, but a window of 2 holds only token 3 and token 2"
    return "Wrong: some token inside the window is not seen; a window of 2 holds the token itself and the one before it"


print(check_2(window_weights))

# %% [markdown]
# **Exercise 3.** How many numbers does `Attention(C=768, H=12, K=4)` contain? Its query, key and value matrices have no bias, its output matrix has one.

# %% tags=["exercise"]
numbers = ...

# %% tags=["check"]


def check_3(answer):
    if answer is ...:
        return "Exercise 3: no answer yet"
    if answer == sum(p.numel() for p in Attention(768, 12, 4).parameters()):
        return "Right: query and output 768 * 768 each, key and value 768 * 256 each, and a bias of 768"
    if answer == 4 * 768 * 768 + 768:
        return "Wrong: that is plain multi-head attention; 4 key/value heads of width 64 need only 768 * 256 for keys, and as much for values"
    if answer == 2 * 768 * 768 + 2 * 768 * 256:
        return "Wrong: the output matrix has a bias of 768 numbers"
    return "Wrong: add up four matrices and one bias; a head is 768 / 12 = 64 wide"


print(check_3(numbers))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | scores, mask, softmax, dropout, values | `gpt_scratch/modeling_gpt_scratch.py`, `eager_attention_forward` |
# | the matrices, heads and groups | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchAttention` |
# | masks for padding, caches and packed documents | `gpt_scratch/positions_gpt_scratch.py`, `causal_mask` |
# | attention maps of a trained model | `gpt_scratch/analysis/attention.py`, `attention_maps`; lesson 12 |
#
# **Sources.** Vaswani et al. 2017, arXiv:1706.03762, sections 3.2.1 (scaled dot products), 3.2.2 (heads) and 3.2.3 (the mask); Bahdanau et al. 2015,
# arXiv:1409.0473, section 3.1 (attention as a weighted sum); Srivastava et al. 2014, JMLR 15 (dropout); Ainslie et al. 2023,
# arXiv:2305.13245 (grouped heads).
