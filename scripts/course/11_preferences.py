# %% [markdown]
# # Lesson 11: Preferences
#
# About 20 minutes. You need: the model (lesson 6), the loss (lesson 8), prompts and replies (lesson 10), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - train a model on pairs of replies, of which one is preferred, with DPO in ten lines,
# - explain the policy gradient: how to learn from a reward, without being shown the right answer,
# - write GRPO for a task whose answers can be checked, and watch the reward grow.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import json
import math
import re

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from tokenizers import Tokenizer
from torch import nn

torch.manual_seed(11)
if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
six = lesson(6)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
END = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]

# %% [markdown]
# ## 1. Better and worse
#
# For many questions there is no single right reply to imitate. But of two replies, people can say which they prefer. What we want to raise is the probability of the preferred reply, *compared with*
# the other one.
#
# First we need the probability of a whole reply: the product of the probabilities of its tokens. Since a product of many small numbers underflows, we add logarithms.


# %%
def log_probability(model, prompt, reply):
    """Log of the probability that `model` writes the ids `reply` after the ids `prompt`."""
    ids = torch.tensor([prompt + reply])
    logs = model(ids)[0, :-1].log_softmax(-1)  # row t: about the token at t + 1
    return logs[torch.arange(len(prompt) - 1, len(prompt) + len(reply) - 1), reply].sum()


# %% [markdown]
# ## 2. DPO in ten lines
#
# Only raising and lowering probabilities would ruin the model: it could make the rejected reply impossible by making *everything* it used to write impossible. So we keep a frozen copy, the **reference**, and
# measure how far the model has moved from it: for each reply, `log p(model) - log p(reference)`. DPO (Rafailov et al. 2023) wants this to be larger for the chosen reply than for the rejected one:
#
# ```
# margin = beta * ((how far the chosen one rose) - (how far the rejected one rose))
# loss   = -log sigmoid(margin)
# ```
#
# By hand, beta = 0.1: the chosen reply rose by 3, the rejected one fell by 2. The margin is 0.1 * 5 = 0.5, sigmoid(0.5) = 0.622, the loss 0.474. Before training nothing has moved: the margin is 0, and the loss
# is -log 0.5 = 0.693.


# %%
def dpo_loss(model, reference, pairs, beta=0.1):
    """pairs: [(prompt, chosen, rejected)], each a list of ids -> mean loss, margins"""
    margins = []
    for prompt, chosen, rejected in pairs:
        with torch.no_grad():
            before = log_probability(reference, prompt, chosen) - log_probability(reference, prompt, rejected)
        now = log_probability(model, prompt, chosen) - log_probability(model, prompt, rejected)
        margins.append(beta * (now - before))
    margins = torch.stack(margins)
    return -nn.functional.logsigmoid(margins).mean(), margins.detach()


print(f"-log sigmoid(0.5) = {-math.log(1 / (1 + math.exp(-0.5))):.3f}")

# %% [markdown]
# A reader of the quickstart's stories prefers those about girls. The stories that begin with "One day," make pairs: one with a girl and "her", the other the same with a boy and "his". Two replies that differ only in what we care
# about teach just that; everything else cancels in the difference.

# %%
lines = (root / "gpt_scratch" / "data" / "samples" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
sentences = [json.loads(line)["text"].split(". ")[0] + "." for line in lines]
GIRLS, BOYS = (
    ["Anna", "Mia", "Lucy", "Emma", "Clara", "Nora", "Ella", "Ruth"],
    ["Tom", "Ben", "Max", "Leo", "Sam", "Jack", "Finn", "Paul"],
)
PROMPT = "One day,"
pair_texts = []
for sentence in sentences:
    name = sentence.removeprefix(PROMPT).split()[0]
    if sentence.startswith(PROMPT) and name in GIRLS + BOYS:
        place = (GIRLS + BOYS).index(name) % 8
        after_name = sentence.removeprefix(f"{PROMPT} {name}")
        chosen = f" {GIRLS[place]}{after_name.replace(' his ', ' her ')}"
        rejected = f" {BOYS[place]}{after_name.replace(' her ', ' his ')}"
        pair_texts.append((PROMPT, chosen, rejected))
pair_texts = pair_texts[: 8 if small else 120]
pairs = [
    (tokenizer.encode(prompt).ids, *([*tokenizer.encode(reply).ids, END] for reply in replies)) for prompt, *replies in pair_texts
]
held_out, pairs = pairs[: len(pairs) // 4], pairs[len(pairs) // 4 :]
print(len(pairs), "pairs to learn, such as", pair_texts[len(held_out)])

reference = six.load(checkpoint).requires_grad_(False)
model = six.load(checkpoint)


@torch.no_grad()
def share_of_girls(model, stories):
    """Of stories drawn from the model, in how many the first of the words he, his, she, her is one of the last two."""
    torch.manual_seed(0)
    ids = torch.tensor([tokenizer.encode(PROMPT).ids] * stories)
    for _ in range(5 if small else 25):
        ids = torch.cat([ids, torch.multinomial(model(ids)[:, -1].softmax(-1), 1)], dim=1)
    found = [re.search(r"\b(he|his|she|her)\b", text, re.IGNORECASE) for text in map(tokenizer.decode, ids.tolist())]
    return sum(match is not None and match[1].lower() in ("she", "her") for match in found) / stories


stories = 4 if small else 100
print(
    f"before: loss {dpo_loss(model, reference, held_out)[0].item():.3f}, {share_of_girls(model, stories):.0%} of stories are about girls"
)
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.0)
curve = []
for step in range(2 if small else 40):
    batch = [pairs[(4 * step + number) % len(pairs)] for number in range(4)]
    loss, margins = dpo_loss(model, reference, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    curve.append((loss.item(), margins.mean().item()))
with torch.no_grad():
    loss, margins = dpo_loss(model, reference, held_out)
print(
    f"after:  loss {loss.item():.3f}, {share_of_girls(model, stories):.0%} of stories are about girls; {(margins > 0).float().mean():.0%} of held-out pairs ranked correctly"
)

# %% tags=["figure"]
figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for axis, values, title in zip(axes, zip(*curve), ("loss", "margin")):
    axis.plot(values)
    axis.set(title=title, xlabel="step")
axes[0].axhline(math.log(2), linestyle=":", color="gray")
figure.tight_layout()
plt.show()

# %% [markdown]
# All held-out pairs are ranked correctly. The share of stories about girls has not risen: 47 and 48 of 100 are the same up to chance. Now 21 of the 100 contain none of the four words, compared with 3 before, and some are broken English: this training has also degraded the model. A better ranking of pairs does not show what the model writes by itself; measure both.
#
# ## 3. Learning from a reward
#
# Sometimes nobody has to judge: the answer to a sum is right or wrong, a program passes its tests or not. Then the model can *try*, get a **reward**, and do more of what was rewarded. It never sees a right
# answer that it did not find itself.
#
# Our task: two digits, answer the larger one. `3 7 >` should be followed by `7`. The reward is 1 if so, else 0.
#
# The reward has no gradient: it comes from sampling a token, which is discrete. But we can raise the probability of what was rewarded. The **policy gradient** (Williams 1992) says how much: the gradient of the
# expected reward is the mean of `reward * gradient of log p(answer)`. So we minimize `-reward * log p(answer)` over answers that the model sampled.
#
# There is a better factor than the reward itself. If nine of ten answers are right, a right one is nothing special. GRPO (Shao et al. 2024) lets the model answer each question several times, a **group**, and compares
# within the group: `advantage = (reward - mean of the group) / standard deviation of the group`. Right answers to a hard question count much; if all are right, or all wrong, there is nothing to learn.
#
# By hand: rewards 1, 0, 0, 0 have mean 0.25 and standard deviation 0.433; the advantages are 1.73, -0.58, -0.58, -0.58.


# %%
def advantages(rewards):
    """(questions, group) -> the same shape: how much better than its group each answer is, in standard deviations"""
    centred = rewards - rewards.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + 1e-4)  # the small number: for groups of equal rewards


print(advantages(torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1]])))
ASK = 10  # the token ">", after the digits 0 to 9


def questions(number):
    """(number, 3): two digits and ">" """
    return torch.cat([torch.randint(0, 10, (number, 2)), torch.full((number, 1), ASK)], dim=1)


def reinforce(steps, factor, seed=1, group=8):
    """Train a new small model by its reward; `factor` turns rewards into the factors of log p. Returns the mean reward of each step."""
    torch.manual_seed(seed)
    policy = six.GPT(six.Config(V=11, T=3, C=32, H=2, L=1))
    nn.init.normal_(policy.tokens.weight, std=0.3)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    history = []
    for _ in range(steps):
        asked = questions(64)
        logs = policy(asked)[:, -1].log_softmax(-1)  # (64, V)
        answers = torch.multinomial(logs.detach().exp(), group, replacement=True)  # (64, group): each question several times
        rewards = (answers == asked[:, :2].amax(-1, keepdim=True)).float()
        loss = -(factor(rewards) * logs.gather(-1, answers)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(rewards.mean().item())
    return history


steps = 10 if small else 300
histories = {"GRPO": reinforce(steps, advantages), "reward alone": reinforce(steps, lambda rewards: rewards)}
for name, history in histories.items():
    print(
        f"{name:12}: mean reward of the first ten steps {sum(history[:10]) / 10:.2f}, of the last ten {sum(history[-10:]) / 10:.2f}"
    )

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(6, 2.8))
for name, history in histories.items():
    axis.plot(history, linewidth=0.8, label=name)
axis.set(xlabel="step", ylabel="share of right answers", ylim=(0, 1.02))
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# Only the factor differs. The reward alone can only push answers up, most of all those that are sampled most often; the comparison within the group also pushes down answers that were worse than average.
#
# This run does not show which of the two is better. It is one seed (1) of a short training, and the order changes with the seed: with seed 0, GRPO ended at 0.17 and the reward alone at 0.50; with seed 2, at 0.55 and 0.89.
#
# Two things that large models need, but not this small example. Answers of many tokens: each token's log probability gets the factor of the whole answer. And several steps on the same sampled answers: then the
# probabilities have changed since sampling, and the ratio of new to old, clipped at 0.8 and 1.2, replaces the logarithm (Schulman et al. 2017).
#
# ## 4. Compare with TRL
#
# The package trains on preferences with the library TRL. Our DPO loss and TRL's, of the trained model against the reference, on the held-out pairs. TRL gets the texts, and cuts, pads and batches by itself. Its trainer gets the
# package's model, with our trained weights.

# %% tags=["compare"]
import tempfile
import warnings

import trl
from datasets import Dataset
from transformers import AutoTokenizer

from gpt_scratch import GPTScratchForCausalLM

their_reference, their_model = (GPTScratchForCausalLM.from_pretrained(checkpoint) for _ in range(2))
their_model.load_state_dict({six.their_name(name): value for name, value in model.state_dict().items()}, strict=False)
their_model.tie_weights()
names = ("prompt", "chosen", "rejected")
table = Dataset.from_list([dict(zip(names, texts)) for texts in pair_texts[: len(held_out)]])
with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
    warnings.simplefilter("ignore")
    settings = trl.DPOConfig(
        folder, beta=0.1, per_device_eval_batch_size=len(held_out), bf16=False, use_cpu=True, report_to="none", disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.DPOTrainer(
        their_model, their_reference, settings, train_dataset=table, eval_dataset=table,
        processing_class=AutoTokenizer.from_pretrained(checkpoint),
    )  # fmt: skip
    measured = trainer.evaluate()
with torch.no_grad():
    ours, margins = dpo_loss(model, reference, held_out)
print(f"loss: ours {ours.item():.7f}, TRL's {measured['eval_loss']:.7f}")
print(f"mean margin: ours {margins.mean().item():.6f}, TRL's {measured['eval_rewards/margins']:.6f}")
assert abs(ours.item() - measured["eval_loss"]) < 1e-5 * max(1, abs(ours.item()))

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/11_preferences.py`.
#
# **Exercise 1.** What is DPO's loss if model and reference are the same? (To three digits, or as a formula.)

# %% tags=["exercise"]
loss_at_start = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if abs(answer - math.log(2)) < 1e-3:
        return "Right: both replies rose by 0, the margin is 0, sigmoid(0) = 0.5, and -log 0.5 = 0.693"
    if answer == 0:
        return "Wrong: the margin is 0, but the loss is -log sigmoid(0)"
    if abs(answer - 0.5) < 1e-3:
        return "Wrong: sigmoid(0) is 0.5; the loss is minus its logarithm"
    return "Wrong: put a margin of 0 into -log sigmoid(margin)"


print(check_1(loss_at_start))

# %% [markdown]
# **Exercise 2.** Four answers of one group got the rewards 1, 0, 0, 1. What are their advantages?

# %% tags=["exercise"]
four_advantages = ...  # a list of four numbers

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    given = [round(float(number), 2) for number in answer]
    if given == [1, -1, -1, 1]:
        return "Right: the mean is 0.5, each is 0.5 away from it, and so the standard deviation is 0.5"
    if given == [0.5, -0.5, -0.5, 0.5]:
        return "Wrong: divide by the standard deviation, 0.5, too"
    if given == [0.87, -0.87, -0.87, 0.87]:
        return "Wrong: this divides the squares by 3; here the mean of the four squares is taken"
    if given == [1, 0, 0, 1]:
        return "Wrong: these are the rewards; subtract their mean first"
    return "Wrong: (reward - 0.5) / 0.5 for each"


print(check_2(four_advantages))

# %% [markdown]
# **Exercise 3.** Write a reward for sums: the question is `"3 + 4 ="`, the answer some text. 1 if the *last* whole number in the answer is the sum, else 0. Models write words around their answers, or none at all.


# %% tags=["exercise"]
def reward_of_sum(question, answer):
    """Two texts -> 1.0 or 0.0"""
    ...


# %% tags=["check"]


def check_3(function):
    if function("3 + 4 =", "7") is None:
        return "Exercise 3: no answer yet"
    cases = [
        ("3 + 4 =", "7", 1.0, "the plain answer '7' is right"),
        ("3 + 4 =", "8", 0.0, "'8' is wrong"),
        ("3 + 4 =", "3 and 4 make 7.", 1.0, "words around the number are allowed; take the last number"),
        ("3 + 4 =", "17", 0.0, "'17' holds a 7, but is another number; compare whole numbers"),
        ("3 + 4 =", "7 or 8", 0.0, "'7 or 8' must not be rewarded, or the model learns to list numbers"),
    ]
    for question, answer, expected, why in cases:
        if function(question, answer) != expected:
            return f"Wrong: {why}"
    try:
        if function("3 + 4 =", "I do not know") != 0.0:
            return "Wrong: an answer without number gets 0"
    except (IndexError, ValueError, AttributeError) as error:
        return f"Wrong: an answer without number must get 0, not {type(error).__name__}; models write anything"
    return "Right: a model will find every hole in a reward, so it must be strict"


print(check_3(reward_of_sum))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | pairs | `gpt_scratch/data/preference.py`, `read_preferences`, `preference_rows` |
# | DPO, reward model and GRPO, by TRL | `gpt_scratch/training/preferences.py`, `make_trainer` |
# | a classifier with one class, which gives rewards | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchForSequenceClassification` |
# | the whole of it | `scripts/finetune_preferences.py` |
#
# **Sources.** Rafailov et al. 2023, arXiv:2305.18290, section 4 (DPO, equation 7); Williams 1992, Machine Learning 8 (the policy gradient); Schulman et al. 2017, arXiv:1707.06347, section 3 (the clipped ratio); Shao et al. 2024,
# arXiv:2402.03300, section 4.1 (GRPO); Ouyang et al. 2022, arXiv:2203.02155, section 3 (reward models).
