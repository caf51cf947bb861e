# %% [markdown]
# # Lesson 9: Classifying
#
# About 15 minutes. You need: the model (lesson 6), a training step (lesson 8), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - turn a language model into a classifier by replacing its head,
# - say which token to read the answer from, and why padding must not change it,
# - freeze parts of a model, and see what that costs and saves.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import copy
import csv
import json
import random
import tempfile

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn

torch.manual_seed(9)
if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
six = lesson(6)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

# %% [markdown]
# ## 1. Messages
#
# Two kinds of messages: from a friend, and adverts. A small grammar writes them, so that nothing must be downloaded. Both kinds use "free", "win" and "tonight", so single words are not
# enough; and both have the same endings, so that the difference must be remembered to the end.

# %%
FRIEND = [
    "Are you free {when}? I could {do} with you.",
    "Did you see who could win the game {when}?",
    "I am late, sorry. Please {do} without me {when}.",
    "My brother wants to {do} {when}. Will you come?",
    "Thank you for the {thing}, it was a kind present.",
    "Can you bring the {thing} {when}? I need it to {do}.",
]
ADVERT = [
    "Win a free {thing} {when}!",
    "Your {thing} is waiting. Answer {when} and pay nothing!",
    "Only {when}: every {thing} at half the price. Come and buy!",
    "You have won a {thing}! Send your name {when} to get it free.",
    "Do not miss it {when}: buy one {thing}, get two.",
    "The best {thing} in town, free for the first who calls {when}!",
]
CLOSING = ["Call me now!", "Answer soon.", "Tell your friends.", "See you {when}!", "It will be fun.", "Do not be late."]
WORDS = {
    "when": ["tonight", "today", "tomorrow", "this evening", "on Sunday", "now", "in the morning"],
    "do": ["cook", "swim", "play", "read", "walk home", "fly the kite"],
    "thing": ["boat", "lamp", "red ball", "basket", "drum", "book", "blue kite", "warm coat"],
}
LABELS = ["advert", "friend"]  # ids 0 and 1


def write_messages(number, seed):
    """[(text, label)], no two texts alike."""
    draw = random.Random(seed)
    found = {}
    while len(found) < number:
        label = LABELS[len(found) % 2]
        pattern = f"{draw.choice(ADVERT if label == 'advert' else FRIEND)} {draw.choice(CLOSING)}"
        found[pattern.format(**{name: draw.choice(words) for name, words in WORDS.items()})] = label
    rows = list(found.items())
    draw.shuffle(rows)
    return rows


messages = write_messages(60 if small else 300, seed=9)
third = len(messages) // 6
splits = {"train": messages[: 4 * third], "validation": messages[4 * third : 5 * third], "test": messages[5 * third :]}
for text, label in messages[:4]:
    print(f"{label:7} {text}")

# %% [markdown]
# ## 2. Another head
#
# The language model's last step maps a vector of C numbers to a score for each token of the vocabulary. We want a score for each of two classes. So we take the model without that step, and put a
# small matrix of C x 2 in its place. Everything below has learned English already, and stays.
#
# Which of the vectors do we read? With the causal mask, the first token has seen only itself; only the **last** one has seen the whole message.


# %%
def hidden_states(gpt, ids):
    """ids (B, T) -> (B, T, C): a GPT of lesson 6 without its last step."""
    x = gpt.tokens(ids) + gpt.positions(torch.arange(ids.shape[1]))
    for block in gpt.blocks:
        x = block(x)
    return gpt.norm(x)


class Classifier(nn.Module):
    """ids (B, T), how many of each row are real (B,) -> scores (B, classes)"""

    def __init__(self, gpt, classes):
        super().__init__()
        self.gpt, self.score = gpt, nn.Linear(gpt.config.C, classes, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, ids, lengths):
        x = hidden_states(self.gpt, ids)
        return self.score(x[torch.arange(len(ids)), lengths - 1])


def collate(rows, width=None, pad=0):
    """[(text, label)] -> ids (B, T) filled up with `pad` on the right, lengths (B,), classes (B,)"""
    encoded = [tokenizer.encode(text).ids for text, _ in rows]
    lengths = torch.tensor([len(ids) for ids in encoded])
    width = width or int(lengths.max())
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in encoded])
    return ids, lengths, torch.tensor([LABELS.index(label) for _, label in rows])


# %% [markdown]
# ## 3. Padding must not matter
#
# Messages in a batch differ in length, so short ones are padded. The causal mask protects us: padding on the right comes *later*, and no real token sees it. But the answer must be
# read at the last *real* token, not in the last column. Watch what happens to one message when it is padded to three widths, with two kinds of padding.

# %%
classifier = Classifier(six.load(checkpoint), 2).eval()
with torch.no_grad():
    answers, wrong_answers = [], []
    for width, pad in ((50, 0), (57, 0), (64, 7)):
        ids, lengths, _ = collate(messages[:1], width, pad)
        answers.append(classifier(ids, lengths)[0])
        wrong_answers.append(classifier(ids, torch.tensor([width]))[0])
print("read at the last real token:", [[round(n, 3) for n in scores.tolist()] for scores in answers])
print("read in the last column:    ", [[round(n, 3) for n in scores.tolist()] for scores in wrong_answers])
assert all(torch.allclose(scores, answers[0], atol=1e-5) for scores in answers)
assert not torch.allclose(wrong_answers[0], wrong_answers[1], atol=1e-3)

# %% [markdown]
# ## 4. What trains?
#
# Training everything is not always best: it takes memory for gradients and averages (lesson 6), and with few examples a model may forget what it knew. **Freezing** a parameter means
# that it gets no gradient and stays. Common choices: the head alone, the last block too, or all.


# %%
def freeze(classifier, trainable):
    """Let only "head", "last block" (with the last norm and the head) or "all" train; returns how many parameters do."""
    for parameter in classifier.parameters():
        parameter.requires_grad = trainable == "all"
    parts = [classifier.score] + ([classifier.gpt.blocks[-1], classifier.gpt.norm] if trainable != "head" else [])
    for part in parts:
        for parameter in part.parameters():
            parameter.requires_grad = True
    return sum(parameter.numel() for parameter in classifier.parameters() if parameter.requires_grad)


@torch.no_grad()
def accuracy(classifier, rows):
    ids, lengths, classes = collate(rows)
    return (classifier(ids, lengths).argmax(-1) == classes).float().mean().item()


def train(classifier, rows, epochs, rate=2e-3, B=16):
    """Accuracy on the validation messages after each epoch."""
    optimizer = torch.optim.AdamW([p for p in classifier.parameters() if p.requires_grad], lr=rate)
    curve = []
    for epoch in range(epochs):
        order = random.Random(epoch).sample(rows, len(rows))
        for start in range(0, len(order), B):
            ids, lengths, classes = collate(order[start : start + B])
            loss = nn.functional.cross_entropy(classifier(ids, lengths), classes)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(accuracy(classifier, splits["validation"]))
    return curve


curves = {}
for trainable in ("head", "last block", "all"):
    torch.manual_seed(9)
    classifier = Classifier(six.load(checkpoint), 2)
    number = freeze(classifier, trainable)
    before = copy.deepcopy(classifier.gpt.tokens.weight)
    curves[trainable] = train(classifier, splits["train"], 1 if small else 5)
    print(
        f"{trainable:10}: {number:8,} parameters train; accuracy on the test messages {accuracy(classifier, splits['test']):.0%}"
    )
    assert torch.equal(before, classifier.gpt.tokens.weight) == (trainable != "all")  # frozen means frozen

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(5, 2.8))
for trainable, curve in curves.items():
    axis.plot(range(1, len(curve) + 1), curve, marker="o", label=trainable)
axis.set(xlabel="epoch", ylabel="accuracy on validation messages", ylim=(0.4, 1.02))
axis.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# With the seeds 0, 1 and 2 the head alone reaches 78%, 74% and 76%, the last block 98% and all 100% each time.
#
# ## 5. Compare with the package
#
# We let `scripts/finetune_classifier.py` train on the same messages, open what it wrote in *our* class, and measure. Our accuracy must be the one that the script reports, and the scores
# must be those of the package's classifier, with padding on either side.

# %% tags=["compare"]
import contextlib
import io
import sys

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.training.arguments import ScratchTrainingArguments, parse_arguments
from gpt_scratch.training.classification import ClassificationArguments

sys.path.insert(0, str(root / "scripts"))
import finetune_classifier


def load_classifier(folder):
    """Our class with the weights of a classifier of the package."""
    settings = json.loads((folder / "config.json").read_text())
    sizes = ("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", "qkv_bias")
    tensors = load_file(folder / "model.safetensors")
    classifier = Classifier(six.GPT(six.Config(*(settings[name] for name in sizes))), tensors["score.weight"].shape[0])
    state = {name: tensors.pop(six.their_name(name)) for name, _ in classifier.gpt.named_parameters()}
    classifier.gpt.load_state_dict(state)
    classifier.score.load_state_dict({"weight": tensors.pop("score.weight")})
    assert not tensors, tensors.keys()
    return classifier.eval()


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    for name, rows in splits.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
    flags = {
        "split": "files", "train_file": folder / "train.csv", "validation_file": folder / "validation.csv", "test_file": folder / "test.csv",
        "model_name_or_path": checkpoint, "trainable": "all", "output_dir": folder / "out", "num_train_epochs": 1 if small else 2,
        "learning_rate": 1e-3, "per_device_train_batch_size": 16, "eval_strategy": "no", "save_strategy": "no", "use_cpu": True,
        "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    precision = torch.get_float32_matmul_precision()  # the script may choose a faster one, which rounds more
    with contextlib.redirect_stdout(io.StringIO()):
        record = finetune_classifier.main(*parse_arguments((ClassificationArguments, ScratchTrainingArguments), words))
    torch.set_float32_matmul_precision(precision)
    ours = load_classifier(folder / "out")
    theirs = GPTScratchForSequenceClassification.from_pretrained(folder / "out").eval()
    ids, lengths, classes = collate(splits["test"])
    real = (torch.arange(ids.shape[1]) < lengths[:, None]).long()  # their way to say what is padding
    # The same messages filled up on the left, as generation needs it: the package counts positions from the first real token.
    left_ids, left_real = (torch.stack([row.roll(-n) for row, n in zip(part, lengths.tolist())]) for part in (ids, real))
    with torch.no_grad():
        our_scores, their_scores = ours(ids, lengths), theirs(ids, attention_mask=real).logits
        from_left = theirs(left_ids, attention_mask=left_real).logits
difference = ((our_scores - their_scores).abs().max() / their_scores.abs().max()).item()
our_accuracy = (our_scores.argmax(-1) == classes).double().mean().item()
print(
    f"accuracy: ours {our_accuracy:.4f}, the script's {record['metrics']['test_accuracy']:.4f}; scores differ by {difference:.1e} of the largest"
)
by_side = ((from_left - their_scores).abs().max() / their_scores.abs().max()).item()
print(f"the package's scores with padding on the left differ by {by_side:.1e} of the largest")
assert abs(our_accuracy - record["metrics"]["test_accuracy"]) < 1e-9 and difference < 1e-5 and by_side < 1e-5

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/09_classifying.py`.
#
# **Exercise 1.** Suppose we read the answer at the *first* token, since it is always real. For the messages of this lesson, each of which begins with one of about ten words: what can such a
# classifier at most tell apart? Give a string: `"messages"`, `"first words"` or `"nothing"`.

# %% tags=["exercise"]
can_tell_apart = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == "first words":
        return "Right: the first token has seen only itself, so all messages with the same first token get the same scores"
    if answer == "messages":
        return "Wrong: the causal mask hides all later words from the first token"
    if answer == "nothing":
        return "Wrong: it does see one word, itself; 'Win' and 'Are' would get different scores"
    return "Wrong: choose one of the three"


print(check_1(can_tell_apart))

# %% [markdown]
# **Exercise 2.** Padding may also be on the left. Then the real tokens must still count their positions from 0. Write the positions: `[0, 0, 1, 1, 1]` (1 is real) gives `[0, 0, 0, 1, 2]`.


# %% tags=["exercise"]
def positions_of(real):
    """(B, T) of 0 and 1 -> (B, T): how many real tokens precede each one; padding counts as 0"""
    ...


# %% tags=["check"]


def check_2(function):
    real = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    given = function(real.clone())
    if given is None:
        return "Exercise 2: no answer yet"
    if torch.equal(given[0], torch.arange(5)) or torch.equal(given[0], torch.tensor([0, 0, 2, 3, 4])):
        return "Wrong: these are columns; the first real token of the first row has position 0, wherever it stands"
    if given[0, 2] == 1:
        return "Wrong: you counted the token itself; position is the number of real tokens *before* it"
    if (given < 0).any():
        return "Wrong: padding got position -1, and a table of positions has no such row to look up"
    if torch.equal(given[:2], torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])):
        return "Right: the same message has the same positions on either side, so the model computes the same"
    return f"Wrong: the first row is [0, 0, 0, 1, 2], not {given[0].tolist()}"


print(check_2(positions_of))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | the classifier | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchForSequenceClassification` |
# | the last real token, and positions with padding on either side | `gpt_scratch/positions_gpt_scratch.py`, `last_real_token`, `count_positions` |
# | what trains | `gpt_scratch/training/classification.py`, `choose_trainable` |
# | accuracy, F1, confusion, calibration | `gpt_scratch/evaluation/classification.py`, `classification_metrics` |
# | the whole of it | `scripts/finetune_classifier.py` |
#
# **Sources.** Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", section 3.2 (a linear layer on the last token); Howard & Ruder 2018, arXiv:1801.06146,
# section 3.3 (freezing, and unfreezing layer by layer).
