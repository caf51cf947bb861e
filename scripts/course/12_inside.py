# %% [markdown]
# # Lesson 12: Looking inside
#
# About 20 minutes. You need: attention (lesson 4), the model (lesson 6), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - draw what each head of a trained model looks at,
# - read what the model "would say" after each layer, and which words of a text surprised it,
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
# ## 1. Keep what is otherwise thrown away
#
# A model of lesson 6 returns its last scores only. For this lesson we run its parts ourselves and keep the attention weights and the residual stream after each layer. We can also switch heads off: what a head has mixed is replaced by
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
# Each row of a map is a token that asks; bright is what it looks at. Look for a line just below the diagonal (the token before), a bright first column (a place to rest, where there is nothing to find), single bright spots (a name
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
# A map is hard to judge by eye. A number is better: how much of its attention does a head give to the token before?


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
# All layers write into one stream, and the head reads it at the end. What if the head read it earlier? After each layer we take the stream, apply the last norm and the token vectors, and see which word leads. (nostalgebraist 2020)

# %%
lens = torch.stack([head_of(model, x[0]) for x in stream])  # (L + 1, T, V)
best = lens.softmax(-1).max(-1)
places = [place for place, word in enumerate(words) if word.strip() in ("find", "the", "see", "She", "under")][:6] or [0, 1, 2]
for layer in range(len(stream)):
    said = [f"{words[place].strip()} -> {tokenizer.decode([int(best.indices[layer, place])])!r}" for place in places]
    print("embedding" if layer == 0 else f"layer {layer - 1}  ", "  ".join(said))

# %% [markdown]
# After the embedding the model mostly repeats the word itself: its vector is most like itself. Layer by layer the guess turns into what comes next.
#
# ## 4. Surprise
#
# How well did the model foresee each word? The surprise of a word is `-log2 p`: a word with probability 1/2 carries 1 bit, one with 1/8 carries 3. Names and things surprise; what follows from grammar does not.

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
# To find one we need text where nothing else helps: random tokens, twice in a row. The first half cannot be foreseen. The second can, but only by copying. With n tokens in a half, place t of the second half should look at
# t - n + 1.


# %%
def to_token_after_earlier(maps, n):
    """[(B, H, 2n, 2n)] -> (L, H): mean weight, in the second half, on the token after the same token's first occurrence"""
    return torch.stack([layer.diagonal(offset=1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, 2)) for layer in maps])


def repeated_tokens(V, n, rows):
    """(rows, 2n): n random tokens, twice"""
    return torch.randint(0, V, (rows, n)).repeat(1, 2)


n = 8
repeated = repeated_tokens(model.config.V - 2, n, 8 if small else 64)
copying = to_token_after_earlier(run(model, repeated)[2], n)
print(f"a head that looks anywhere gives {1 / (1.5 * n):.2f}; the strongest of the quickstart's model gives {copying.max():.2f}")

# %% [markdown]
# The model of the quickstart has no such head. Its stories are so regular that it gets by with grammar and a few names, and it has read for three minutes only. Larger models get such heads early in their training, all at once,
# and their loss drops visibly.
#
# So we train a model that must copy: two layers, 24 tokens, and nothing to read but random tokens that repeat. The length of a half is drawn anew for each batch, or else the model could simply learn "look eight places back".


# %%
@torch.enable_grad()
def train_copying(steps, V=24, T=24, B=64):
    """A GPT of two layers that has learned to continue repeated tokens; the loss of each step."""
    torch.manual_seed(0)
    copier, losses = six.GPT(six.Config(V=V, T=T, C=64, H=4, L=2)), []
    for parameter in copier.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    optimizer = torch.optim.AdamW(copier.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 100)
        half = int(torch.randint(T // 4, T // 2 + 1, ()))
        ids = torch.randint(0, V, (B, half)).repeat(1, 1 + T // half)[:, :T]
        scores = copier(ids)[:, half - 1 : -1]  # only what can be foreseen is scored
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), ids[:, half:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(copier.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return copier.eval(), losses


copier, losses = train_copying(3 if small else 700)
repeated = repeated_tokens(24, n, 8 if small else 64)
repeated_scores, _, repeated_maps = run(copier, repeated)
copying = to_token_after_earlier(repeated_maps, n)
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f}; guessing one of 24 is {math.log(24):.2f}")

# %% [markdown]
# It copies. Which head does it? Switch each off, one at a time, and see how much harder the second half becomes.


# %%
def surprise_by_half(scores, ids, n):
    """Mean bits of the tokens of the first half and of the second"""
    bits = -(scores[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]) / math.log(2)
    return bits[:, : n - 1].mean().item(), bits[:, n:].mean().item()


_, second = surprise_by_half(repeated_scores, repeated, n)
change = torch.zeros(2, 4)
for off in [(layer, head) for layer in range(2) for head in range(4)]:
    change[off] = surprise_by_half(run(copier, repeated, off=[off])[0], repeated, n)[1] - second
layer, head = divmod(int(change.argmax()), 4)
print(f"second half, all heads on: {second:.2f} bits a token, of {math.log2(24):.2f} for guessing")
for row in range(2):
    looks = " ".join(f"{share:.2f}" for share in copying[row].tolist())
    costs = " ".join(f"{bits:+5.2f}" for bits in change[row].tolist())
    print(f"layer {row}: weight on the token to copy {looks} | bits lost without the head {costs}")
print(
    f"the head that copying needs most is layer {layer}, head {head}: without it, {second + change[layer, head]:.2f} bits a token"
)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
axes[0].plot(losses)
axes[0].set(title="learning to copy", xlabel="step", ylabel="loss")
axes[1].imshow(repeated_maps[layer][0, head], cmap="viridis")
axes[1].set(title=f"layer {layer}, head {head}", xlabel="looked at", ylabel="asks")
axes[2].bar([f"{layer}.{head}" for layer in range(2) for head in range(4)], change.flatten())
axes[2].set(title="bits lost without the head", xlabel="layer.head")
figure.tight_layout()
plt.show()

# %% [markdown]
# One head carries most of the copying, and the model is lost without it. But compare the two rows of numbers: no head puts most of its weight on the token to copy, as the pure induction head of the papers does. After a minute of training, in such short
# rows, this model spreads its look over the region where that token can stand, and lets the MLP choose. That is the use of switching off: what a head looks at is a guess about what it does; what is lost without it is a measurement. Train it ten
# times as long, or on longer rows, and see whether a pure one forms.
#
# ## 6. Compare with the package
#
# The package draws the same from any checkpoint (`scripts/analyze.py`). Its maps, its lens and its surprise must be ours.

# %% tags=["compare"]
from transformers import AutoTokenizer

from gpt_scratch import GPTScratchForCausalLM
from gpt_scratch.analysis.attention import attention_maps
from gpt_scratch.analysis.next_token import logit_lens, next_token_places

theirs = GPTScratchForCausalLM.from_pretrained(checkpoint).eval()
of_maps = (torch.cat(maps) - attention_maps(theirs, ids)).abs().max().item()
their_lens = logit_lens(theirs, ids)
of_lens = ((lens - their_lens).abs().max() / their_lens.abs().max()).item()
places, _ = next_token_places(theirs, AutoTokenizer.from_pretrained(checkpoint), ids)
of_surprise = max(abs(place.surprise - bits) for place, bits in zip(places[1:], surprise.tolist()))
print(f"largest difference: maps {of_maps:.1e}, lens {of_lens:.1e} of the largest score, surprise {of_surprise:.1e} bits")
assert of_maps < 1e-5 and of_lens < 1e-5 and of_surprise < 1e-3 and len(places) == len(words)

# %% [markdown]
# ## Exercises
#
# Solutions are in `solutions/12_inside.py`.
#
# **Exercise 1.** The model gave a word the probability 1/8. How many bits of surprise is that?

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
# **Exercise 2.** The tokens are `A B C D A`, at places 0 to 4. Which place does an induction head look at from the last A?

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
    return "Wrong: find the earlier A, and go one place on"


print(check_2(place))

# %% [markdown]
# **Exercise 3.** How spread out is a head's attention? Write the **entropy** of each row of weights: the mean surprise, `sum of -w * log2(w)`. It is 0 where all weight lies on one token, and log2(n) where n tokens get the same. A weight of 0
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
# | lens and surprise | `gpt_scratch/analysis/next_token.py`, `logit_lens`, `next_token_places` |
# | pictures of any checkpoint | `scripts/analyze.py` |
# | the same in the browser | `gpt_scratch/demo/page.py` |
#
# **Sources.** nostalgebraist 2020, "interpreting GPT: the logit lens"; Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (the residual stream; heads that copy); Olsson et al. 2022, arXiv:2209.11895, section 2 (induction
# heads, and repeated random tokens to find them); Xiao et al. 2023, arXiv:2309.17453, section 3.1 (attention that rests on the first token).
