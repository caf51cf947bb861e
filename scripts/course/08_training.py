# %% [markdown]
# # Lesson 8: Training by hand
#
# About 20 minutes. You need: rows (lesson 2), the model (lesson 6), and what a gradient is.
#
# After this lesson you can
#
# - compute the loss and the perplexity of a prediction by hand,
# - write AdamW, gradient clipping, and a schedule with warm-up and cosine, each in a few lines,
# - train a small GPT, evaluate it, watch it write, save it, and resume exactly where it stopped.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
small = False

# %%
import copy
import json
import math
import tempfile
from collections import Counter

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what earlier lessons defined

one, two, six = lesson(1), lesson(2), lesson(6)

# %% [markdown]
# ## 1. The loss
#
# The model gives each token a probability. It is good if the token that really came next got a high one. The loss is minus the natural logarithm of that probability:
#
# | probability of the correct token | loss |
# |---|---|
# | 1 | 0 |
# | 0.5 | 0.69 |
# | 0.1 | 2.30 |
# | 0.001 | 6.91 |
#
# Averaged over many tokens, it is called **cross-entropy**. e to the loss is the **perplexity**: a loss of 2.30 is as good as guessing among 10 equally likely tokens. A model
# that has learned nothing has perplexity V, the size of the vocabulary.


# %%
def cross_entropy(scores, targets):
    """Scores (..., V), target ids (...) -> mean of -log probability of the targets."""
    highest = scores.amax(-1, keepdim=True)
    log_of_sum = (scores - highest).exp().sum(-1, keepdim=True).log() + highest
    log_probabilities = scores - log_of_sum  # log of softmax, without overflow
    return -log_probabilities.gather(-1, targets[..., None]).mean()


scores, target = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])
print(f"probability {scores.softmax(-1)[0, 0]:.3f}, loss {cross_entropy(scores, target):.3f} = -log 0.665")

# %% [markdown]
# ## 2. AdamW
#
# The gradient says how the loss changes if a parameter is moved a little. The simplest step goes against it: `parameter -= rate * gradient`. But gradients are noisy, and of
# very different size from parameter to parameter. Adam keeps two running averages for each parameter:
#
# - `m`, of the gradient: the direction, with the noise averaged out,
# - `v`, of its square: the usual size.
#
# Each step multiplies the old average by β and adds 1 - β times the new value; here β is 0.9 for m and 0.95 for v.
#
# The step is `rate * m / √v`: about `rate`, whatever the size of the gradient. Both averages start at 0 and are too small at first; in step t, dividing by `1 - β^t` corrects that. A tiny `eps` keeps
# the division from failing where v is 0. The W stands for weight decay: each step also shrinks the matrices by a tiny factor, but not biases and norms. (Loshchilov & Hutter 2019)
#
# By hand, first step, gradient 4: m = 0.1 * 4 = 0.4, corrected 0.4 / 0.1 = 4; v = 0.05 * 16 = 0.8, corrected 0.8 / 0.05 = 16; the step is rate * 4 / √16 = rate. So the first step
# always has the size `rate`, and the weight below, which starts at 1, becomes 0.99.


# %%
class AdamW:
    def __init__(self, parameters, betas=(0.9, 0.95), eps=1e-8, decay=0.1):
        self.parameters, self.betas, self.eps, self.decay = list(parameters), betas, eps, decay
        self.m = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.v = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.t = 0

    @torch.no_grad()
    def step(self, rate):
        self.t += 1
        first, second = self.betas
        for parameter, m, v in zip(self.parameters, self.m, self.v):
            if parameter.ndim > 1:  # matrices only
                parameter *= 1 - rate * self.decay
            m += (1 - first) * (parameter.grad - m)
            v += (1 - second) * (parameter.grad**2 - v)
            corrected_m, corrected_v = m / (1 - first**self.t), v / (1 - second**self.t)
            parameter -= rate * corrected_m / (corrected_v.sqrt() + self.eps)


weight = torch.tensor([1.0], requires_grad=True)
(4 * weight).sum().backward()
AdamW([weight]).step(rate=0.01)
print(f"after a step of rate 0.01 with gradient 4: {weight.item():.4f}")

# %% [markdown]
# ## 3. Clipping and schedule
#
# Now and then a batch has an enormous gradient. **Clipping** takes all gradients together as one long vector; if it is longer than 1, all are divided by its length.
#
# The **rate** is not constant. It grows from 0 in the first steps, while Adam's averages are still poor (warm-up), and then falls along half a cosine wave, so that the
# last steps are small.


# %%
@torch.no_grad()
def clip(parameters, longest=1.0):
    """Shorten all gradients together to at most `longest`; returns the length before."""
    gradients = [parameter.grad for parameter in parameters]
    length = torch.sqrt(sum(gradient.pow(2).sum() for gradient in gradients))
    if length > longest:
        for gradient in gradients:
            gradient *= longest / (length + 1e-6)
    return length.item()


def rate_at(step, steps, highest, warmup):
    """The rate of step 0, 1, ..., steps - 1."""
    if step < warmup:
        return highest * step / warmup
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(5, 2.4))
axis.plot([rate_at(step, 200, 2e-3, 20) for step in range(200)])
axis.set(xlabel="step", ylabel="rate")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 4. The loop
#
# The rows are made as in lesson 2, from stories. T is 65, since a row of 65 tokens trains 64 predictions, and the model has two layers. A tenth of the rows is held out: the loss on them shows whether the model learns the
# language, or only memorizes its rows.

# %%
lines = (root / "gpt_scratch" / "data" / "samples" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
texts = [json.loads(line)["text"] for line in lines[: 20 if small else 300]]
merges = one.learn_merges(Counter(piece for text in texts for piece in one.PIECE.findall(text)), 320 if small else 500)
content, END, T = one.token_bytes(merges), 256 + len(merges), 33 if small else 65
stream = torch.tensor([number for text in texts for number in [*one.encode(text, merges), END]])
rows = two.cut_rows(stream, T, T - 1)
held_out, rows = rows[-len(rows) // 10 :], rows[: -len(rows) // 10]
sizes = six.Config(V=END + 1, T=T, C=32, H=2, L=2) if small else six.Config(V=END + 1, T=T, C=64, H=4, L=2)
print(f"{len(rows)} rows of {T} tokens to learn, {len(held_out)} held out; vocabulary {sizes.V}")


def new_model(seed):
    """A GPT whose matrices start as small random numbers."""
    torch.manual_seed(seed)
    model = six.GPT(sizes)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def loss_of(model, rows):
    return cross_entropy(model(rows[:, :-1]), rows[:, 1:])


def train_step(model, optimizer, batch, rate):
    loss = loss_of(model, batch)
    for parameter in model.parameters():
        parameter.grad = None
    loss.backward()
    clip(optimizer.parameters)
    optimizer.step(rate)
    return loss.item()


@torch.no_grad()
def write(model, tokens=20):
    """A story's beginning, greedily."""
    ids = torch.tensor([one.encode("One day,", merges)])
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return b"".join(content.get(number, b"|") for number in ids[0].tolist()).decode(errors="replace")


model, losses, validation = new_model(seed=8), [], []
optimizer = AdamW(model.parameters())
B, epochs = 16, 1 if small else 10
steps = epochs * (len(rows) // B)
print(f"before training: loss {loss_of(model, held_out).item():.2f}, log V = {math.log(sizes.V):.2f}")
for epoch in range(epochs):
    order = torch.randperm(len(rows))
    for start in range(0, len(rows) - B + 1, B):
        batch = rows[order[start : start + B]]
        losses.append(train_step(model, optimizer, batch, rate_at(len(losses), steps, highest=5e-3, warmup=10)))
    with torch.no_grad():
        validation.append(loss_of(model, held_out).item())
    print(
        f"epoch {epoch + 1}: held out loss {validation[-1]:.2f}, perplexity {math.exp(validation[-1]):.0f}; {write(model, 5 if small else 20)!r}"
    )
assert validation[-1] < math.log(sizes.V)

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(6, 2.8))
axis.plot(losses, linewidth=0.8, label="training, each step")
axis.plot([(number + 1) * (len(rows) // B) - 1 for number in range(epochs)], validation, marker="o", label="held out")
axis.axhline(math.log(sizes.V), linestyle=":", color="gray", label="guessing")
axis.set(xlabel="step", ylabel="loss")
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 5. Stop and resume
#
# What must be saved to resume exactly? The weights, but also Adam's averages, its step count, and which rows come next. If the averages are forgotten, the first steps after the
# pause are as rough as at the start.

# %%
ROUNDS = 8


def train(model, optimizer, first, last):
    """Steps first .. last - 1 over the rows in their order; their losses."""
    return [
        train_step(model, optimizer, rows[B * step % (len(rows) - B) :][:B], rate_at(step, ROUNDS, 4e-3, 2))
        for step in range(first, last)
    ]


model = new_model(seed=1)
optimizer = AdamW(model.parameters())
losses_at_once = train(model, optimizer, 0, ROUNDS)

model = new_model(seed=1)
optimizer = AdamW(model.parameters())
first_half = train(model, optimizer, 0, ROUNDS // 2)
with tempfile.TemporaryDirectory() as folder:
    saved = {"model": model.state_dict(), "m": optimizer.m, "v": optimizer.v, "t": optimizer.t}
    torch.save(saved, Path(folder) / "checkpoint.pt")
    del model, optimizer  # the computer is switched off here
    saved = torch.load(Path(folder) / "checkpoint.pt", weights_only=True)
model = new_model(seed=999)
model.load_state_dict(saved["model"])
optimizer = AdamW(model.parameters())
optimizer.m, optimizer.v, optimizer.t = saved["m"], saved["v"], saved["t"]
second_half = train(model, optimizer, ROUNDS // 2, ROUNDS)
print([round(loss, 4) for loss in losses_at_once])
print([round(loss, 4) for loss in first_half + second_half])
assert first_half + second_half == losses_at_once  # to the last bit

# %% [markdown]
# ## 6. Compare with Hugging Face's Trainer
#
# The package trains with `Trainer`. We give its model our starting weights, the same rows in the same order, and the same settings, and compare the losses of twenty steps. The map
# of names is lesson 6's.

# %% tags=["compare"]
from transformers import Trainer, TrainingArguments, default_data_collator

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM

STEPS = 6 if small else 20
ours = new_model(seed=3)
config = GPTScratchConfig(
    vocab_size=sizes.V,
    max_position_embeddings=T,
    hidden_size=sizes.C,
    num_attention_heads=sizes.H,
    num_hidden_layers=sizes.L,
    drop_rate=0.0,
)
theirs = GPTScratchForCausalLM(config)
state = {six.their_name(name): parameter for name, parameter in copy.deepcopy(ours).state_dict().items()}
missing, unexpected = theirs.load_state_dict(state, strict=False)
assert missing in ([], ["lm_head.weight"]) and not unexpected  # the head is the token table
theirs.tie_weights()

optimizer = AdamW(ours.parameters())
chosen = torch.cat([rows] * (1 + B * STEPS // len(rows)))[: B * STEPS]
our_losses = [
    train_step(ours, optimizer, chosen[B * step : B * step + B], rate_at(step, STEPS, 4e-3, 3)) for step in range(STEPS)
]


class RecordingTrainer(Trainer):
    """Trainer that takes the rows in their order and keeps the loss of each step."""

    losses: list = []

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(dataset)

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=B, learning_rate=4e-3, lr_scheduler_type="cosine", warmup_steps=3,
        weight_decay=0.1, adam_beta2=0.95, max_grad_norm=1.0, use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    dataset = [{"input_ids": row, "labels": row} for row in chosen]
    trainer = RecordingTrainer(theirs, arguments, default_data_collator, dataset)
    trainer.train()
difference = max(abs(a - b) for a, b in zip(our_losses, trainer.losses))
print("ours   ", [round(loss, 5) for loss in our_losses[:6]], "...")
print("Trainer", [round(loss, 5) for loss in trainer.losses[:6]], "...")
print(f"{STEPS} steps: largest difference {difference:.1e}")
assert len(trainer.losses) == STEPS and difference < 1e-5

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/08_training.py`.
#
# **Exercise 1.** The correct tokens at two positions got the probabilities 0.5 and 0.125. What is the perplexity? (The mean loss first; then e to it.)

# %% tags=["exercise"]
perplexity = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if abs(answer - 4) < 1e-6:
        return "Right: as good as guessing among 4; the mean of log 2 and log 8 is log 4"
    if abs(answer - 5) < 1e-6:
        return "Wrong: 5 is the mean of 2 and 8; take the mean of the losses, and e to it afterwards"
    if abs(answer - 1 / 0.3125) < 1e-6:
        return "Wrong: you took the mean of the probabilities; take the mean of the losses, -log 0.5 and -log 0.125"
    if abs(answer - math.log(4)) < 1e-3:
        return "Wrong: that is the mean loss; the perplexity is e to it"
    return "Wrong: the losses are -log 0.5 = log 2 and -log 0.125 = log 8; e to their mean"


print(check_1(perplexity))

# %% [markdown]
# **Exercise 2.** A batch of 32 rows does not fit into memory. Write a step that computes it in `parts` of equal size, and leaves the same gradients as one batch would.


# %% tags=["exercise"]
def accumulate(model, batch, parts):
    """Leave in model.parameters() the gradients of `loss_of(model, batch)`, computing 1/parts of the rows at a time. Returns True."""
    ...


# %% tags=["check"]


def check_2(function):
    model, batch = new_model(seed=2), rows[:8]
    loss_of(model, batch).backward()
    expected = model.tokens.weight.grad.clone()
    for parameter in model.parameters():
        parameter.grad = None
    if function(model, batch, 4) is None:
        return "Exercise 2: no answer yet"
    given = model.tokens.weight.grad
    if given is None:
        return "Wrong: there is no gradient; call backward() for each part"
    if torch.allclose(given, expected, atol=1e-7):
        return "Right: each part's mean counts a quarter"
    if torch.allclose(given, 4 * expected, atol=1e-6):
        return "Wrong: the gradients are 4 times too large; backward() adds up, so divide each part's loss by the number of parts"
    return "Wrong: each row must count once; are gradients deleted between the parts, or rows left out?"


print(check_2(accumulate))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | the loss, without ever storing all scores | `gpt_scratch/loss_gpt_scratch.py`, `chunked_language_modeling_loss` |
# | the optimizers that Trainer lacks | `gpt_scratch/training/optimizers.py`, `adamw_on_all`, `MuonAndAdamW` |
# | loss over a whole data set | `gpt_scratch/evaluation/perplexity.py`, `evaluate_loss` |
# | samples, curves, overfitting | `gpt_scratch/training/callbacks.py`, `SamplesCallback`, `OverfittingCallback` |
# | checkpoints that are written atomically | `gpt_scratch/training/checkpoints.py`, `ResumableTrainer` |
# | the whole of it | `scripts/pretrain.py` |
#
# **Sources.** Kingma & Ba 2014, arXiv:1412.6980, algorithm 1 (Adam); Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2 (decay); Loshchilov & Hutter 2016, arXiv:1608.03983, section 3
# (cosine); Pascanu et al. 2013, arXiv:1211.5063, section 3.2 (clipping); Goyal et al. 2017, arXiv:1706.02677, section 2.2 (warm-up).
