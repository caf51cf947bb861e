# %% [markdown]
# # Lesson 2: Tokens to training rows
#
# About 10 minutes. You need: ids (lesson 1), and slices of tensors.
#
# After this lesson you can
#
# - cut a stream of ids into rows of equal length, with any stride, and say which tokens are predicted how often,
# - say what the inputs and the targets of a row are, and why one row of T tokens trains T - 1 predictions,
# - keep stories that share a row apart.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
small = False  # the tests set this to True, and the lesson then reads fewer stories

# %%
import json
from collections import Counter

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined

torch.manual_seed(2)
one = lesson(1)

# %% [markdown]
# ## 1. One row, many predictions
#
# A language model learns one thing: the next token. Take the ids `7 3 9 4 1`. They contain four examples at once.
#
# | seen | to predict |
# |---|---|
# | 7 | 3 |
# | 7 3 | 9 |
# | 7 3 9 | 4 |
# | 7 3 9 4 | 1 |
#
# A model makes all four predictions at once; the causal mask of lesson 4 keeps each of them from seeing its answer. So the **inputs** are the row without its
# last id, and the **targets**, which are to be predicted, are the row without its first.

# %%
row = torch.tensor([7, 3, 9, 4, 1])
inputs, targets = row[:-1], row[1:]
print("inputs ", inputs.tolist())
print("targets", targets.tolist())

# %% [markdown]
# ## 2. The sliding window
#
# All texts are concatenated into a stream, each followed by an end mark. A window of T tokens slides over it, and gives a row wherever it stops. How far it moves
# is the **stride**. (`(N,) -> (rows, T)` in the code are shapes: N ids go in, and a table of `rows` rows with T ids each comes out.)


# %%
def cut_rows(ids, T, stride):
    """(N,) -> (rows, T): windows of T ids whose starts are `stride` apart. Ids at the end that do not fill a row are left over."""
    return torch.stack([ids[start : start + T] for start in range(0, len(ids) - T + 1, stride)])


ids = torch.arange(12)
for stride in (4, 3, 1):
    rows = cut_rows(ids, T=4, stride=stride)
    print(f"stride {stride}: {len(rows)} rows", rows.tolist())

# %% [markdown]
# PyTorch has this operation built in, without copying anything: `ids.unfold(0, T, stride)`.

# %%
assert torch.equal(ids.unfold(0, 4, 3), cut_rows(ids, 4, 3))

# %% [markdown]
# Which stride? The first token of a row is not a target in that row. Count how often each token of the stream is predicted:

# %%
for stride in (4, 3, 1):
    times = Counter(cut_rows(ids, 4, stride)[:, 1:].flatten().tolist())
    print(f"stride {stride}: " + " ".join(str(times[number]) for number in range(12)))

# %% [markdown]
# - Stride T (4): every fourth token is never predicted.
# - Stride T - 1 (3): each token after the first is predicted once, except for what is left over at the end. Adjacent rows share one token.
# - Stride 1: tokens in the middle are predicted three times. That is three times the rows and the work, for the same 12 tokens.

# %% tags=["figure"]
figure, axes = plt.subplots(1, 3, figsize=(10, 2.4), sharex=True)
for axis, stride in zip(axes, (4, 3, 1)):
    rows = cut_rows(ids, 4, stride)
    picture = torch.zeros(len(rows), 12)
    for number, row in enumerate(rows):
        picture[number, row[0]], picture[number, row[1:]] = 0.4, 1.0  # pale: only read, never predicted
    axis.imshow(picture, cmap="Blues", aspect="auto", vmin=0, vmax=1.3)
    axis.set(title=f"stride {stride}", xlabel="token of the stream", ylabel="row", yticks=range(len(rows)))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 3. Real stories
#
# We encode stories with lesson 1's byte pairs, and append an end mark to each: a token of its own, whose id comes after those of the 256 bytes and the merges.

# %%
lines = (root / "gpt_scratch" / "data" / "samples" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
texts = [json.loads(line)["text"] for line in lines[: 10 if small else 100]]
merges = one.learn_merges(Counter(piece for text in texts for piece in one.PIECE.findall(text)), 300 if small else 500)
end_mark = 256 + len(merges)
stories = [[*one.encode(text, merges), end_mark] for text in texts]
stream = torch.tensor([number for story in stories for number in story])
T = 32
rows = cut_rows(stream, T, T - 1)
print(
    f"{len(texts)} stories, {len(stream)} tokens, {len(rows)} rows of {T}; {len(stream) - ((len(rows) - 1) * (T - 1) + T)} tokens left over"
)

# %% [markdown]
# ## 4. Batches
#
# Training takes one step after another, each with B rows at once: a **batch**. The rows are shuffled before each pass over all of them (an **epoch**), so
# that a batch does not consist of a single story. Rows at the end that do not fill a batch are left out.

# %%
order = torch.randperm(len(rows))
for start in range(0, len(rows) - 3, 4):
    batch = rows[order[start : start + 4]]  # (B, T)
    inputs, targets = batch[:, :-1], batch[:, 1:]
    break  # a training step would follow here; the shapes of the first batch are enough
print("batch", tuple(batch.shape), "inputs", tuple(inputs.shape), "targets", tuple(targets.shape))

# %% [markdown]
# ## 5. Two stories in one row
#
# A row may contain the end of one story and the start of the next. Usually this is harmless: the end mark shows the model where a new story begins. Where it is
# not, three things keep the stories apart: positions (the number of a token in its story, lesson 3) that start again at 0, no attention (lesson 4) across the
# boundary, and no prediction of the first token of a story from the story before. The function below implements the first and the third; the second follows from the
# positions.
#
# Training libraries call the row, before it is shifted, the **labels**: the label at a position is the token at that position. The label -100 means "this one does not
# count"; PyTorch's cross-entropy, the loss of lesson 8, leaves it out by default.


# %%
def isolate(row, end):
    """(T,) -> positions and labels (T,): positions restart after each end mark; the first token of a new story is labelled -100."""
    positions, labels = [], []
    for place, number in enumerate(row.tolist()):
        new = place > 0 and row[place - 1] == end
        positions.append(0 if place == 0 or new else positions[-1] + 1)
        labels.append(-100 if new else number)
    return torch.tensor(positions), torch.tensor(labels)


positions, labels = isolate(torch.tensor([5, 6, 0, 7, 8]), end=0)
print("positions", positions.tolist(), "labels", labels.tolist())

# %% [markdown]
# ## 6. Compare with the package
#
# The package keeps the tokens of all stories in an Arrow table (a file that is read in parts) and cuts each row on demand, so any stride takes the same
# memory. It returns the whole row as `input_ids` and as `labels`; the shift by one happens in the model, in one place. Its default stride is T - 1.

# %% tags=["compare"]
import datasets

from gpt_scratch.data.blocks import TokenBlocks

table = datasets.Dataset.from_dict({"input_ids": stories})
for stride in (T, T - 1, 5):
    blocks = TokenBlocks(table, block_size=T, stride=stride)
    ours = cut_rows(stream, T, stride)
    theirs = torch.stack([blocks[number]["input_ids"] for number in range(len(blocks))])
    assert torch.equal(ours, theirs), stride
    print(f"stride {stride}: the same {len(ours)} rows")
isolated = TokenBlocks(table, block_size=T, isolate_documents=True, end_id=end_mark)
for number in range(len(isolated)):
    positions, labels = isolate(rows[number], end_mark)
    assert torch.equal(positions, isolated[number]["position_ids"]) and torch.equal(labels, isolated[number]["labels"]), number
print(f"isolated: the same positions and labels in {len(isolated)} rows")

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/02_rows.py`.
#
# **Exercise 1.** A stream of 1,020 tokens is split into rows of 128 with stride 64. How many rows are there?

# %% tags=["exercise"]
how_many = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 14:
        return "Right: the last start that leaves 128 tokens is 892, and 892 // 64 + 1 = 14"
    if answer == 13:
        return "Wrong: 13 strides fit, and the row that starts at 0 comes on top"
    if answer == 1020 // 64:
        return "Wrong: the last start must leave room for 128 tokens, so it is at most 1020 - 128"
    if answer == 1020 // 128:
        return "Wrong: that is stride 128; with stride 64 rows overlap by half"
    return "Wrong: starts are 0, 64, 128, ... as long as start + 128 is at most 1020"


print(check_1(how_many))

# %% [markdown]
# **Exercise 2.** Write inputs and targets for a whole batch, and leave out (set to -100) each target that is the pad id. Rows that are shorter than others are padded at the
# end.


# %% tags=["exercise"]
def inputs_and_targets(batch, pad):
    """(B, T) -> inputs (B, T - 1), targets (B, T - 1)"""
    ...


# %% tags=["check"]


def check_2(function):
    batch = torch.tensor([[7, 3, 9, 4], [5, 6, 0, 0]])
    given = function(batch.clone(), 0)
    if given is None:
        return "Exercise 2: no answer yet"
    inputs, targets = given
    if torch.equal(inputs, targets) or torch.equal(inputs, batch):
        return (
            "Wrong: inputs and targets are shifted against each other: inputs without the last column, targets without the first"
        )
    if not torch.equal(inputs, batch[:, :-1]):
        return "Wrong: the inputs stay as they are, padding included; -100 is no id (a slice shares the memory of its batch: clone the targets before you change them)"
    if torch.equal(targets, batch[:, 1:]):
        return "Wrong: the pad id 0 is still a target; the model would learn to write padding"
    if torch.equal(targets, torch.tensor([[3, 9, 4], [6, -100, -100]])):
        return "Right: shifted by one, and padding is not scored"
    return f"Wrong: the targets are [[3, 9, 4], [6, -100, -100]], not {targets.tolist()}"


print(check_2(inputs_and_targets))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | rows over an Arrow table | `gpt_scratch/data/blocks.py`, `TokenBlocks` |
# | positions and labels of stories in one row | `gpt_scratch/data/blocks.py`, `block_row` |
# | the same from a stream that never ends | `gpt_scratch/data/blocks.py`, `StreamedBlocks` |
# | the shift by one | `gpt_scratch/loss_gpt_scratch.py`, `_targets` |
# | no attention across stories | `gpt_scratch/positions_gpt_scratch.py`, `find_documents` |
#
# **Sources.** Bengio et al. 2003, JMLR 3, section 2 (predicting the next word from a window); Krell et al. 2021, arXiv:2107.02027, section 3 (several texts in
# one row without mixing them).
