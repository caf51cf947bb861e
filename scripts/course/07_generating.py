# %% [markdown]
# # Lesson 7: Generating
#
# About 20 minutes. You need: the model of lesson 6 and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - continue a text greedily, and by sampling with temperature, top-k and top-p,
# - compute these distributions by hand for three tokens,
# - write the key/value cache, and say what it saves and what it costs.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import json
import math
import time

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from tokenizers import Tokenizer

if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
model = lesson(6).load(checkpoint)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
END = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
torch.set_grad_enabled(False)  # nothing is trained here
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## 1. One token after the other
#
# The model gives a score to each token of the vocabulary, at each position. To generate, we need only the scores at the last position. **Greedy** means: take the token with the highest score,
# append it to the text, and ask again. Stop at the end mark or after enough tokens.


# %%
def greedy(model, ids, new_tokens):
    """ids (1, T) -> (1, T + new_tokens), or shorter if the text ends."""
    for _ in range(new_tokens):
        best = model(ids)[:, -1].argmax(-1, keepdim=True)  # (1, 1)
        ids = torch.cat([ids, best], dim=1)
        if best == END:
            break
    return ids


start = torch.tensor([tokenizer.encode("One day, Anna").ids])
print(tokenizer.decode(greedy(model, start, 10 if small else 40)[0].tolist()))

# %% [markdown]
# Greedy always writes the same text. And always taking the most likely token often gives dull text; large models fall into loops.
#
# ## 2. Sampling, and temperature
#
# Softmax turns scores into probabilities, and we draw a token from them: we sample. A **temperature** divides the scores first. Three tokens with scores 2, 1, 0:
#
# | temperature | scores | probabilities |
# |---|---|---|
# | 1 | 2, 1, 0 | 0.665, 0.245, 0.090 |
# | 0.5 | 4, 2, 0 | 0.867, 0.117, 0.016 |
# | 2 | 1, 0.5, 0 | 0.506, 0.307, 0.186 |
#
# Below 1, likely tokens become more likely; near 0, sampling is greedy. Above 1, the distribution flattens.

# %%
scores = torch.tensor([2.0, 1.0, 0.0])
for temperature in (1, 0.5, 2):
    print(f"temperature {temperature:3}:", (scores / temperature).softmax(-1))

# %% [markdown]
# ## 3. Top-k and top-p
#
# A vocabulary has many tokens, and almost all are wrong at a given position. Each has a tiny probability, but together they are drawn often enough to spoil a text. Two ways to cut
# this tail off:
#
# - **top-k** keeps the k most likely tokens (Fan et al. 2018),
# - **top-p** keeps the smallest set of most likely tokens that reaches the probability p (Holtzman et al. 2020): few tokens if the model is confident, many if it is not.
#
# Tokens that are cut off get the score minus infinity, so that softmax normalizes the rest again.


# %%
def distribution(scores, temperature=1.0, top_k=None, top_p=None):
    """Scores (..., V) -> probabilities to draw from (..., V)."""
    scores = scores / temperature
    if top_k is not None:
        smallest_kept = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < smallest_kept, -torch.inf)
    if top_p is not None:
        ordered, tokens = scores.softmax(-1).sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # the total probability of all more likely tokens
        cut = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, tokens, before >= top_p)
        scores = scores.masked_fill(cut, -torch.inf)
    return scores.softmax(-1)


print("all:      ", distribution(scores))
print("top-k 2:  ", distribution(scores, top_k=2))
print("top-p 0.6:", distribution(scores, top_p=0.6))


def sample(model, ids, new_tokens, **settings):
    """As `greedy`, with tokens drawn from `distribution`."""
    for _ in range(new_tokens):
        token = torch.multinomial(distribution(model(ids)[:, -1], **settings), 1)
        ids = torch.cat([ids, token], dim=1)
        if token == END:
            break
    return ids


for temperature in (0.7, 2.0):
    torch.manual_seed(1)
    text = tokenizer.decode(sample(model, start, 10 if small else 30, temperature=temperature, top_p=0.95)[0].tolist())
    print(f"temperature {temperature}: {text}\n")

# %% tags=["figure"]
after = model(torch.tensor([tokenizer.encode("She looked under the").ids]))[0, -1]
likely = after.topk(8).indices
figure, axis = plt.subplots(figsize=(8, 2.8))
for number, temperature in enumerate((0.5, 1.0, 2.0)):
    places = torch.arange(8) + 0.27 * number
    axis.bar(places, distribution(after, temperature)[likely], width=0.25, label=f"temperature {temperature:g}")
axis.set_xticks(torch.arange(8) + 0.27, [tokenizer.decode([token]) for token in likely.tolist()])
axis.set(title="after “She looked under the”", ylabel="probability")
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 4. The cache
#
# `greedy` above computes the whole text again for each new token. Yet the causal mask says that earlier tokens never see later ones: their vectors do not change. What
# does the new token need of them? Only their keys and values, in each layer. So we keep these, and read each token once.
#
# ```
# without cache   step 1: a b c      step 2: a b c d      step 3: a b c d e      3 + 4 + 5 = 12 tokens read
# with cache      step 1: a b c      step 2:       d      step 3:         e      3 + 1 + 1 =  5 tokens read
# ```
#
# For n new tokens it is about n²/2 against n. The price is memory: 2 vectors for each token and layer.


# %%
class Reader:
    """A GPT of lesson 6 that reads each token once, and keeps the keys and values (B, H, S, D) of each layer."""

    def __init__(self, model):
        self.model = model
        self.cache = [None] * len(model.blocks)
        self.read_before = 0

    def read(self, ids):
        """The next tokens (B, T) -> scores after the last of them (B, V)."""
        B, T = ids.shape
        x = self.model.tokens(ids) + self.model.positions(torch.arange(self.read_before, self.read_before + T))
        for layer, block in enumerate(self.model.blocks):
            attention, normed = block.attention, block.norm_1(x)
            parts = (attention.query, attention.key, attention.value)
            q, k, v = (part(normed).view(B, T, attention.H, -1).transpose(1, 2) for part in parts)
            if self.cache[layer] is not None:
                earlier_keys, earlier_values = self.cache[layer]
                k, v = torch.cat([earlier_keys, k], dim=2), torch.cat([earlier_values, v], dim=2)
            self.cache[layer] = k, v
            weights = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, S)
            later = torch.ones(T, k.shape[2], dtype=torch.bool).triu(1 + self.read_before)  # the T new rows are at the end
            mixed = weights.masked_fill(later, -torch.inf).softmax(-1) @ v
            x = x + attention.output(mixed.transpose(1, 2).reshape(B, T, -1))
            x = x + block.mlp(block.norm_2(x))
        self.read_before += T
        return self.model.norm(x[:, -1]) @ self.model.tokens.weight.T


def greedy_with_cache(model, ids, new_tokens):
    reader, unread = Reader(model), ids
    for _ in range(new_tokens):
        unread = reader.read(unread).argmax(-1, keepdim=True)
        ids = torch.cat([ids, unread], dim=1)
        if unread == END:
            break
    return ids


# %% [markdown]
# Are the tokens the same? And how much time does it save? The model is small and its texts are short, so the gain is small too; it grows with the length.

# %%
longest = model.config.T - start.shape[1]
lengths = [4, 8] if small else [10, 25, 50, 75, 100, longest]
seconds = {greedy: [], greedy_with_cache: []}
END, end = -1, END  # do not stop early: we measure
for new_tokens in lengths:
    assert torch.equal(greedy(model, start, new_tokens), greedy_with_cache(model, start, new_tokens))
    for write, times in seconds.items():
        best = math.inf
        for _ in range(1 if small else 3):  # the best of three: other programs only make it slower
            began = time.perf_counter()
            write(model, start, new_tokens)
            best = min(best, time.perf_counter() - began)
        times.append(best)
END = end
for write, times in seconds.items():
    print(f"{write.__name__:17}:", ", ".join(f"{n} tokens {t * 1000:.0f} ms" for n, t in zip(lengths, times)))

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(5, 3))
for write, times in seconds.items():
    axis.plot(lengths, [1000 * t for t in times], marker="o", label="with cache" if "cache" in write.__name__ else "without")
axis.set(xlabel="new tokens", ylabel="milliseconds", ylim=(0, None))
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 5. Compare with the package
#
# The package's model inherits `generate` from transformers. Greedy must give the same tokens. Sampling must too, if both start from the same random numbers. And the package's own
# function for the distribution must agree with ours.

# %% tags=["compare"]
from transformers import AutoModelForCausalLM

import gpt_scratch  # noqa: F401  registers the model with the Auto classes
from gpt_scratch.analysis.next_token import sampling_distribution

theirs = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
new_tokens = 12 if small else 60
ours_greedy = greedy_with_cache(model, start, new_tokens)
theirs_greedy = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=new_tokens, do_sample=False)
assert torch.equal(ours_greedy, theirs_greedy)
print("greedy: the same", ours_greedy.shape[1] - start.shape[1], "tokens")

for settings in ({"temperature": 0.8}, {"temperature": 1.2, "top_k": 20}, {"temperature": 1.0, "top_k": 40, "top_p": 0.9}):
    torch.manual_seed(7)
    ours_drawn = sample(model, start, new_tokens, **settings)
    torch.manual_seed(7)
    generate_settings = {"top_k": 0, "do_sample": True, "max_new_tokens": new_tokens, **settings}
    theirs_drawn = theirs.generate(start, attention_mask=torch.ones_like(start), **generate_settings)
    assert torch.equal(ours_drawn, theirs_drawn), settings
    scores = model(start)[:, -1]
    difference = (distribution(scores, **settings) - sampling_distribution(scores, **settings)).abs().max().item()
    assert difference < 1e-6, settings
    print(settings, "the same tokens; probabilities differ by at most", f"{difference:.1e}")

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/07_generating.py`.
#
# **Exercise 1.** Four tokens have the probabilities 0.5, 0.3, 0.15 and 0.05. How many of them does top-p with p = 0.7 keep?

# %% tags=["exercise"]
kept = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 2:
        return "Right: 0.5 is below 0.7, and 0.5 + 0.3 reaches it"
    if answer == 1:
        return "Wrong: the set must *reach* 0.7; 0.5 alone does not"
    if answer == 3:
        return "Wrong: two tokens make 0.8, which reaches 0.7 already; the set is the smallest that does"
    return "Wrong: add the probabilities up, from the largest down, until they reach 0.7"


print(check_1(kept))

# %% [markdown]
# **Exercise 2.** How many bytes does the cache of GPT-2 small take for 1,024 tokens, in float32? It has 12 layers and is 768 wide.

# %% tags=["exercise"]
cache_bytes = ...

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    right = 2 * 12 * 1024 * 768 * 4
    if answer == right:
        return "Right: 75 MB, keys and values of 12 layers; with 4 key/value heads in place of 12 it would be a third (lesson 4)"
    if answer == right // 2:
        return "Wrong: keys *and* values are kept, so twice as much"
    if answer == right // 4:
        return "Wrong: that is how many numbers there are; each takes 4 bytes"
    if answer == right // 12:
        return "Wrong: each of the 12 layers has keys and values of its own"
    return "Wrong: 2 vectors of 768 numbers for each token and layer, 4 bytes each"


print(check_2(cache_bytes))

# %% [markdown]
# **Exercise 3.** Another way to cut the tail: **min-p** keeps each token whose probability is at least `share` times that of the most likely token. Write it.


# %% tags=["exercise"]
def min_p(scores, share):
    """Scores (..., V) -> probabilities (..., V), 0 for what is cut off"""
    ...


# %% tags=["check"]


def check_3(function):
    scores = torch.tensor([0.42, 0.31, 0.19, 0.08]).log()
    given = function(scores.clone(), 0.25)
    if given is None:
        return "Exercise 3: no answer yet"
    expected = torch.tensor([0.42, 0.31, 0.19, 0.0]) / 0.92
    if torch.allclose(given, expected, atol=1e-6):
        return "Right: a quarter of 0.42 is 0.105, and only 0.08 lies below it"
    if not torch.allclose(given.sum(-1), torch.tensor(1.0), atol=1e-5):
        return "Wrong: what is left must add up to 1 again; set scores to minus infinity and take softmax"
    if given[-1] > 0:
        return "Wrong: the last token is still drawn; a score of 0 is not 'never', only minus infinity is"
    return "Wrong: compare each probability with share times the *largest probability*, not with share itself"


print(check_3(min_p))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | generation, inherited from transformers | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchForCausalLM` |
# | keys and values are put into the cache | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchAttention` |
# | the mask for tokens that come after cached ones | `gpt_scratch/positions_gpt_scratch.py`, `causal_mask` |
# | distributions, and their plots | `gpt_scratch/analysis/next_token.py`, `sampling_distribution`, `plot_temperatures` |
# | generating from the command line | `scripts/generate.py` |
#
# **Sources.** Fan et al. 2018, arXiv:1805.04833, section 5.4 (top-k); Holtzman et al. 2020, arXiv:1904.09751, section 3.1 (top-p); Nguyen et al. 2024, arXiv:2407.01082, section 3
# (min-p); Shazeer 2019, arXiv:1911.02150, section 2.4 (the cost of generating token by token).
