# %% [markdown]
# # Lesson 12: Looking inside
#
# About 20 minutes. You need: attention (lesson 4), the model (lesson 6), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - draw what each head of a trained model looks at,
# - read what the model "would say" after each layer, and which tokens of a text surprised it,
# - find the head that copying needs, switch it off, and measure what the model can no longer do.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import math

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from tokenizers import Tokenizer

if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
six = lesson(6)
model = six.load(checkpoint)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
torch.manual_seed(12)
torch.set_grad_enabled(False)  # nothing is trained here

# %% [markdown]
# ## 1. Keep what is otherwise discarded
#
# The model of lesson 6 returns only its final scores. For this lesson we run its parts ourselves and keep the attention weights and the residual stream after each layer. We can also switch heads off: its output is replaced by
# zeros before the output matrix.


# %%
def run(model, ids, off=()):
    """ids (B, T) -> scores (B, T, V), stream after the embedding and each layer [(B, T, C)], attention [(B, H, T, T)].

    `off` holds (layer, head) pairs to switch off.
    """
    B, T = ids.shape
    x = model.tokens(ids) + model.positions(torch.arange(T))
    stream, maps = [x], []
    for layer, block in enumerate(model.blocks):
        attention, normed = block.attention, block.norm_1(x)
        parts = (attention.query, attention.key, attention.value)
        q, k, v = (part(normed).view(B, T, attention.H, -1).transpose(1, 2) for part in parts)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        mixed = weights @ v  # (B, H, T, D)
        for off_layer, head in off:
            if off_layer == layer:
                mixed[:, head] = 0
        x = x + attention.output(mixed.transpose(1, 2).reshape(B, T, -1))
        x = x + block.mlp(block.norm_2(x))
        stream.append(x)
        maps.append(weights)
    return head_of(model, x), stream, maps


def head_of(model, x):
    """Stream (..., C) -> scores (..., V)"""
    return model.norm(x) @ model.tokens.weight.T


text = 'One day, Clara could not find her broken drum. She looked under the bed. Her mother said, "Where did you see it last?" Clara thought'
ids = torch.tensor([tokenizer.encode(text).ids[: model.config.T]])
words = [tokenizer.decode([number]) for number in ids[0].tolist()]
scores, stream, maps = run(model, ids)
assert torch.allclose(scores, model(ids), atol=1e-4)
print(len(words), "tokens:", "|".join(words))

# %% [markdown]
# ## 2. What heads look at
#
# Each row of a map is a token that asks; bright is what it looks at. Look for a line just below the diagonal (the token before), a bright first column (where attention rests if there is nothing to find), single bright spots (a name
# further up), and rows without any (a head that takes a little of everything).

# %% tags=["figure"]
L, H = model.config.L, model.config.H
figure, axes = plt.subplots(L, H, figsize=(2 * H, 2 * L))
for layer in range(L):
    for head in range(H):
        axes[layer][head].imshow(maps[layer][0, head], cmap="viridis")
        axes[layer][head].set(xticks=[], yticks=[], title=f"layer {layer}, head {head}")
figure.tight_layout()
plt.show()

# %% [markdown]
# A map is hard to judge by eye. A number is better: how much of its attention does a head give to the previous token?


# %%
def to_previous(maps):
    """[(B, H, T, T)] -> (L, H): mean weight on the token just before"""
    return torch.stack([layer.diagonal(offset=-1, dim1=-2, dim2=-1).mean((0, 2)) for layer in maps])


print("weight on the token before, layer by layer:")
for layer, row in enumerate(to_previous(maps)):
    print(f"  layer {layer}:", " ".join(f"{share:.2f}" for share in row.tolist()))

# %% [markdown]
# ## 3. The logit lens
#
# All layers write into one stream, and the head reads it at the end. What if the head read it earlier? After each layer we take the stream, apply the last norm and the token vectors, and see which token has the highest score. (nostalgebraist 2020)

# %%
lens = torch.stack([head_of(model, x[0]) for x in stream])  # (L + 1, T, V)
best = lens.softmax(-1).max(-1)
places = [place for place, word in enumerate(words) if word.strip() in ("find", "the", "see", "She", "under")][:6] or [0, 1, 2]
for layer in range(len(stream)):
    said = [f"{words[place].strip()} -> {tokenizer.decode([int(best.indices[layer, place])])!r}" for place in places]
    print("embedding" if layer == 0 else f"layer {layer - 1}  ", "  ".join(said))

# %% [markdown]
# After the embedding the highest score is that of the token itself: its vector is most similar to itself. Layer by layer the guess turns into the next token.
#
# ## 4. Surprise
#
# How well did the model predict each token? The surprise of a token is `-log2 p`: a token with probability 1/2 carries 1 bit, one with 1/8 carries 3. Names and objects are surprising; what follows from grammar is not.

# %%
surprise = -(scores[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]) / math.log(2)
for word, bits in list(zip(words[1:], surprise.tolist()))[:16]:
    print(f"{word:10} {bits:5.1f} bits {'#' * round(2 * bits)}")
print(f"mean {surprise.mean():.2f} bits a token")

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(10, 2.6))
axis.bar(range(1, len(words)), surprise)
axis.set_xticks(range(1, len(words)), words[1:], rotation=90, fontsize=7)
axis.set(ylabel="bits")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 5. A head that copies
#
# In "... Clara ... drum ... Clara", what comes after the second "Clara"? A good guess: what came after the first. Heads that do this are called **induction heads** (Olsson et al. 2022). At the second "Clara" such a head looks at the token
# *after* the first "Clara", and copies it.
#
# To find one we need text where nothing else helps: random tokens, twice in a row. The first half cannot be predicted. The second can, but only by copying. With n tokens in a half, position t of the second half should look at
# t - n + 1. The mean weight there is the head's **copying score**.


# %%
def to_token_after_earlier(maps, n):
    """[(B, H, 2n, 2n)] -> (L, H): mean weight, in the second half, on the token after the same token's first occurrence"""
    return torch.stack([layer.diagonal(offset=1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, 2)) for layer in maps])


def repeated_tokens(V, n, rows):
    """(rows, 2n): n different tokens in random order, twice"""
    return torch.rand(rows, V).argsort(-1)[:, :n].repeat(1, 2)


n = 12
repeated = repeated_tokens(model.config.V - 2, n, 8 if small else 64)
print(f"copying score of each head; a head that looks everywhere alike has {1 / (1.5 * n):.2f}")
for layer, row in enumerate(to_token_after_earlier(run(model, repeated)[2], n)):
    print(f"  layer {layer}:", " ".join(f"{share:.2f}" for share in row.tolist()))

# %% [markdown]
# No head of the quickstart's model copies. It is small, and has been trained for a few minutes. Larger models get such heads early in their training, within a short stretch of steps, and their loss drops visibly
# (Olsson et al. 2022, argument 1).
#
# So we train a model that must copy: two layers of two heads, 32 tokens, rows of 24. The first half of a row holds 12 different tokens in random order. The second half holds the same 12 in the same order, but it begins at
# another position and wraps around. With 6 tokens in a half:
#
# ```
#  7 3 9 4 1 8 | 9 4 1 8 7 3          after 9 comes 4, after 4 comes 1, ...
# ```
#
# If it began at the same position, a model could learn "look 11 positions back" and never look at a token. Here the distance differs from row to row. Only predictable tokens are scored: neither the first half, nor the first token of the second
# half, nor the token after the wrap (the 7 above).


# %%
def copying_rows(rows, V=32, n=12):
    """Rows (rows, 2n) as above, and which of their tokens 1 .. 2n - 1 can be predicted (rows, 2n - 1)"""
    first = torch.rand(rows, V).argsort(-1)[:, :n]
    places = (torch.arange(n) + torch.randint(2, n - 1, (rows, 1))) % n  # where in the first half each token of the second one is
    foreseen = torch.zeros(rows, 2 * n - 1, dtype=torch.bool)
    foreseen[:, n:] = places[:, :-1] != n - 1
    return torch.cat([first, first.gather(1, places)], dim=1), foreseen


@torch.enable_grad()
def copying_step(copier, optimizer, rate):
    """One step on new rows; the loss of the predictable tokens."""
    optimizer.param_groups[0]["lr"] = rate
    ids, foreseen = copying_rows(64)
    loss = torch.nn.functional.cross_entropy(copier(ids)[:, :-1][foreseen], ids[:, 1:][foreseen])
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(copier.parameters(), 1.0)
    optimizer.step()
    return loss.item()


torch.manual_seed(0)
copier = six.GPT(six.Config(V=32, T=2 * n, C=64, H=2, L=2))
for name, parameter in copier.named_parameters():
    if parameter.ndim > 1:
        torch.nn.init.normal_(parameter, std=0.5 if name in ("tokens.weight", "positions.weight") else 0.1)
optimizer = torch.optim.AdamW(copier.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
repeated = repeated_tokens(
    32, n, 8 if small else 64
)  # here the second half does begin at the same position: the model never trains on such rows
losses, growth = [], []
for step in range(3 if small else 300):
    losses.append(copying_step(copier, optimizer, 5e-3 * min(1, (step + 1) / 30)))
    if step % 10 == 0:
        growth.append(to_token_after_earlier(run(copier, repeated)[2], n).flatten())  # (L * H,)
print(f"loss {losses[0]:.2f} -> {losses[-1]:.3f}; guessing one of 32 is {math.log(32):.2f}")

# %% [markdown]
# It copies, and it generalizes: in the rows of this test the second half begins where the first does, and it has not seen such rows.
#
# Which head does it? The copying score says what a head looks at. What it contributes is another question. To answer it, switch the head off, and see how much harder the second half becomes.


# %%
def surprise_of_second_half(copier, ids, n, off=()):
    """Mean bits of the tokens of the second half, without its first"""
    scores = run(copier, ids, off)[0]
    return -(scores[:, n:-1].log_softmax(-1).gather(-1, ids[:, n + 1 :, None])).mean().item() / math.log(2)


repeated_maps = run(copier, repeated)[2]
copying, previous = to_token_after_earlier(repeated_maps, n), to_previous(repeated_maps)
heads = [(layer, head) for layer in range(2) for head in range(2)]
layer, head = divmod(int(copying.argmax()), 2)  # the induction head
induction_heads = [off for off in heads if copying[off] > 0.5]  # another one may have learned the same
all_on = surprise_of_second_half(copier, repeated, n)
bits = {off: surprise_of_second_half(copier, repeated, n, [off]) for off in heads}
print(f"second half: {all_on:.2f} bits a token; guessing one of 32 tokens is {math.log2(32):.2f} bits")
for off in heads:
    print(
        f"layer {off[0]}, head {off[1]}: copying score {copying[off]:.2f}, weight on the token before {previous[off]:.2f}; without it, {bits[off]:.2f} bits"
    )
without_all = surprise_of_second_half(copier, repeated, n, induction_heads)
print(f"the induction head is layer {layer}, head {head}; without all heads with a score above 0.5, {without_all:.2f} bits")
assert small or (layer == 1 and copying[layer, head] > 0.6 and all_on < 1 < 3 < without_all)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(13, 3.4))
axes[0].plot(losses, color="gray", linewidth=0.8)
axes[0].set(title="learning to copy", xlabel="step", ylabel="loss (gray)", ylim=(0, 4))
scores_axis = axes[0].twinx()
for off, curve in zip(heads, torch.stack(growth).T):
    scores_axis.plot(range(0, len(losses), 10), curve, label=f"layer {off[0]}, head {off[1]}")
scores_axis.set(ylabel="copying score", ylim=(0, 1))
scores_axis.legend(fontsize=7, loc="upper left")
axes[1].imshow(repeated_maps[layer][0, head], cmap="viridis")
axes[1].set(title=f"layer {layer}, head {head}", xlabel="looked at", ylabel="asks")
axes[2].bar(["none", *(f"{off[0]}.{off[1]}" for off in heads), "induction\nheads"], [all_on, *bits.values(), without_all])
axes[2].axhline(math.log2(32), linestyle=":", color="gray")
axes[2].set(title="second half", xlabel="switched off (layer.head)", ylabel="bits a token")
figure.tight_layout()
plt.show()

# %% [markdown]
# For many steps the loss stays near 2.5, the logarithm of 12: the model has learned that the next token is one of the twelve, and no more. Then copying scores rise from nothing to almost 1 within a few dozen steps, and the loss falls with
# them. The map shows the line that we looked for: each token of the second half looks at the token *after* its own first occurrence.
#
# It takes two layers. A head of layer 0 tells each token which one precedes it (its weight on the previous token is far above the others'). A head of layer 1 then looks for the position whose previous token is the current one. That is why
# switching off a head of layer 0 can hurt as much. And if two heads of layer 1 have learned the same, losing only one hurts little, since the other takes over. Without both
# the model is worse off than one that guesses: it has never been without them, and is sure of wrong tokens.
#
# ## 6. Compare with the package
#
# The package draws the same from any checkpoint (`scripts/analyze.py`). Its maps, its lens and its surprise must be ours. And the model that copies, with its weights in the package's class, must have the same induction head.

# %% tags=["compare"]
from transformers import AutoTokenizer

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.analysis.attention import attention_maps
from gpt_scratch.analysis.next_token import logit_lens, score_tokens

theirs = GPTScratchForCausalLM.from_pretrained(checkpoint).eval()
of_maps = (torch.cat(maps) - attention_maps(theirs, ids)).abs().max().item()
their_lens = logit_lens(theirs, ids)
of_lens = ((lens - their_lens).abs().max() / their_lens.abs().max()).item()
places, _ = score_tokens(theirs, AutoTokenizer.from_pretrained(checkpoint), ids)
of_surprise = max(abs(place.surprise - bits) for place, bits in zip(places[1:], surprise.tolist()))
print(f"largest difference: maps {of_maps:.1e}, lens {of_lens:.1e} of the largest score, surprise {of_surprise:.1e} bits")
assert of_maps < 1e-5 and of_lens < 1e-5 and of_surprise < 1e-3 and len(places) == len(words)

sizes = {"vocab_size": 32, "max_position_embeddings": 2 * n, "hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
their_copier = GPTScratchForCausalLM(GPTScratchConfig(**sizes, drop_rate=0.0)).eval()
state = {six.their_name(name): value for name, value in copier.state_dict().items()}
missing, unexpected = their_copier.load_state_dict(state, strict=False)
assert missing in ([], ["lm_head.weight"]) and not unexpected  # the head is the token table
their_copier.tie_weights()
their_maps = attention_maps(their_copier, repeated[:1])
of_head = (their_maps[layer, head] - repeated_maps[layer][0, head]).abs().max().item()
print(f"the induction head's map differs by {of_head:.1e}")
assert of_head < 1e-5

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/12_inside.py`.
#
# **Exercise 1.** The model gave a token the probability 1/8. How many bits of surprise is that?

# %% tags=["exercise"]
bits_of_an_eighth = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 3:
        return "Right: -log2(1/8) = 3, as many yes-or-no questions as it takes to find one of eight"
    if abs(answer - math.log(8)) < 1e-2:
        return "Wrong: that is the natural logarithm; bits are logarithms to base 2"
    if answer == -3:
        return "Wrong: the logarithm of a probability is negative; surprise is minus that"
    return "Wrong: 2 to which power is 8?"


print(check_1(bits_of_an_eighth))

# %% [markdown]
# **Exercise 2.** The tokens are `A B C D A`, at positions 0 to 4. Which position does an induction head look at from the last A?

# %% tags=["exercise"]
place = ...

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    if answer == 1:
        return "Right: at B, which came after A the last time; with n = 4 it is 4 - 4 + 1"
    if answer == 0:
        return "Wrong: that is the earlier A itself; the head looks at what came *after* it, to copy it"
    if answer == 3:
        return "Wrong: that is the token just before; the head looks for the earlier A, and takes what came after it"
    return "Wrong: find the earlier A, and move one place to the right"


print(check_2(place))

# %% [markdown]
# **Exercise 3.** How spread out is a head's attention? Write the **entropy** of each row of weights: the mean surprise, `sum of -w * log2(w)`. It is 0 if one token has all the weight, and log2(n) if n tokens have equal weights. A weight of 0
# counts 0.


# %% tags=["exercise"]
def entropy(weights):
    """(..., T) of weights that add up to 1 -> (...), in bits"""
    ...


# %% tags=["check"]


def check_3(function):
    given = function(torch.tensor([[1.0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0, 0]]))
    if given is None:
        return "Exercise 3: no answer yet"
    if given.shape != (3,):
        return f"Wrong: one number for each row, so the shape is (3,), not {tuple(given.shape)}"
    if given.isnan().any():
        return "Wrong: 0 * log 0 came out as NaN; such a weight must count 0 (torch.xlogy does that, or clamp the weights first)"
    if torch.allclose(given, torch.tensor([0.0, 2.0, 1.0]), atol=1e-4):
        return "Right: 0, 2 and 1 bits"
    if torch.allclose(given, torch.tensor([0.0, 2.0, 1.0]) * math.log(2), atol=1e-4):
        return "Wrong: these are natural logarithms; divide by log 2 for bits"
    if (given < 0).any():
        return "Wrong: entropy is not negative; mind the minus sign"
    return f"Wrong: the entropies are 0, 2 and 1 bits, not {[round(number, 2) for number in given.tolist()]}"


print(check_3(entropy))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | maps, entropy, and what flows through all layers | `gpt_scratch/analysis/attention.py`, `attention_maps`, `attention_entropy`, `attention_rollout` |
# | lens and surprise | `gpt_scratch/analysis/next_token.py`, `logit_lens`, `score_tokens` |
# | plots for any checkpoint | `scripts/analyze.py` |
# | the same in the browser | `gpt_scratch/demo/page.py` |
#
# **Sources.** nostalgebraist 2020, "interpreting GPT: the logit lens"; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (the residual stream; heads that copy); Olsson et al. 2022, arXiv:2209.11895, section 2 (induction
# heads, and repeated random tokens to find them); Xiao et al. 2023, arXiv:2309.17453, section 3.1 (attention sinks).
