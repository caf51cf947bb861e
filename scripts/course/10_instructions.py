# %% [markdown]
# # Lesson 10: Following instructions
#
# About 20 minutes. You need: the model (lesson 6), the loss (lesson 8), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - write an instruction and its reply in three common formats, and say which tokens the model is trained on,
# - put examples of different length into one batch without spoiling the loss,
# - write LoRA in twenty lines, train it, and merge it into the model.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False  # the tests set this to True, and the lesson then trains for two steps only

# %%
import json

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from tokenizers import Tokenizer
from torch import nn

torch.manual_seed(10)
if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
six = lesson(6)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
END = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]

# %% [markdown]
# ## 1. A language model continues; an assistant replies
#
# Give a language model a question, and it may continue with a second question: in its training text that is what came next. To make it reply, we train it on many texts of one
# fixed form: first the instruction, then the reply, then the end mark. When such a model is given the form up to where the reply begins, it writes a reply, and stops.
#
# Which form does not matter, as long as it is the same in training and in use. Some instructions come with an *input*, the text that they are about. Three common forms (phi3 and chatml a
# little changed, to end with this tokenizer's own end mark):

# %%
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
FORMATS = {  # what stands before the reply; and what joins an instruction and its input
    "alpaca": (PREAMBLE + "\n\n### Instruction:\n{}\n\n### Response:\n", "\n\n### Input:\n"),
    "phi3": ("<|user|>\n{}\n<|assistant|>:\n", "\n"),
    "chatml": ("<|im_start|>user\n{}<|endoftext|>\n<|im_start|>assistant\n", "\n\n"),
}


def prompt_of(record, style):
    """{"instruction", "input", "output"} -> the text before the reply"""
    form, joined_by = FORMATS[style]
    request = record["instruction"] + (joined_by + record["input"] if record["input"] else "")
    return form.format(request)


record = {"instruction": "Name the animal.", "input": "It purrs.", "output": "A cat."}
for style in FORMATS:
    print(f"--- {style}\n{prompt_of(record, style)}{record['output']}<|endoftext|>\n")

# %% [markdown]
# ## 2. Train on the reply only
#
# The model need not learn to write instructions; the user does that. So the tokens of the prompt are *seen* but not *scored*, that is, they do not count in the loss: their labels are -100. The end mark, `|`
# below, is scored. If it were not, the model would never learn to stop.
#
# ```
# tokens   Name  the  animal  .   A     cat  .   |
# labels   -100 -100  -100  -100  A     cat  .   |
# ```
#
# (As in lesson 2, labels are shifted by one when the loss is computed: the label `A` is predicted from the last token of the prompt.)
#
# Prompt and reply are encoded separately, so that no token spans both. The tokenizer of the quickstart has no token for `<|user|>` and splits it into pieces; that works too.


# %%
def encode(record, style):
    """ids and labels, of equal length"""
    prompt, reply = tokenizer.encode(prompt_of(record, style)).ids, [*tokenizer.encode(record["output"]).ids, END]
    return prompt + reply, [-100] * len(prompt) + reply


ids, labels = encode(record, "phi3")
print([tokenizer.decode([number], skip_special_tokens=False) for number in ids])
print(labels)

# %% [markdown]
# ## 3. Batches
#
# Rows of a batch are padded on the right. Padding gets the label -100. Beware of a common mistake: many tokenizers have no pad token, so the end mark is used for padding too. Code that
# then masks labels where the id equals the pad id masks the true end marks as well, and the model never stops. Mask by *length*. The `attention_mask`, 1 for real tokens and 0 for padding, is for the package's model; ours does
# not need it here.


# %%
def collate(rows, pad):
    """[(ids, labels)] -> input_ids, labels, attention_mask, each (B, T)"""
    T = max(len(ids) for ids, _ in rows)
    return {
        "input_ids": torch.tensor([ids + [pad] * (T - len(ids)) for ids, _ in rows]),
        "labels": torch.tensor([labels + [-100] * (T - len(labels)) for _, labels in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (T - len(ids)) for ids, _ in rows]),
    }


def loss_of(model, batch):
    """Mean over the tokens that are scored. Padding is on the right, where the causal mask hides it."""
    scores = model(batch["input_ids"])
    return nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())  # leaves -100 out


# %% [markdown]
# ## 4. LoRA
#
# A model of 7 billion parameters takes 112 GB to train whole (lesson 6: 16 bytes each). LoRA, low-rank adaptation, trains a small addition (Hu et al. 2021). Each matrix W (out, in) stays frozen. Next to it are two thin
# ones: A (r, in) and B (out, r). The layer computes
#
# ```
# W x  +  (alpha / r) * B (A x)
# ```
#
# alpha is a constant that you choose: the weight of the addition. `B @ A` has the shape of W, but each of its rows is only a mix of the r rows of A; it has **rank** r at most. For 768 x 768 and r = 8: 589,824 numbers in W, 8 * 768 * 2 = 12,288 in A and B. B starts as zeros, so at first nothing changes; A starts at
# random, since with both at zero neither would get a gradient. After training, the product, with its factor, can be added to W, and inference costs no extra time.


# %%
class LoRA(nn.Module):
    """A frozen linear layer and its trained addition: (..., in) -> (..., out)"""

    def __init__(self, linear, rank=4, alpha=8):
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.A = nn.Parameter(torch.randn(rank, linear.in_features) / linear.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x):
        return self.linear(x) + self.scale * (x @ self.A.T @ self.B.T)


def add_lora(model, rank=4, alpha=8):
    """Freeze the model, and put LoRA around every linear layer of its blocks."""
    model.requires_grad_(False)
    for module in list(model.blocks.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRA(child, rank, alpha))
    return model


model = add_lora(six.load(checkpoint))
trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
print(f"{trained:,} of {sum(parameter.numel() for parameter in model.parameters()):,} parameters train")

# %% [markdown]
# ## 5. Train it
#
# The model of the quickstart tells stories and has never seen a question. We teach it a form: when asked about somebody, answer with one sentence and stop. The examples are made from the stories: the first sentence of each story, if
# that names exactly one person (and holds no "and").

# %%
lines = (root / "gpt_scratch" / "data" / "samples" / "stories.jsonl").read_text(encoding="utf-8").splitlines()
NAMES = ["Anna", "Tom", "Mia", "Ben", "Lucy", "Max", "Emma", "Leo", "Clara", "Sam", "Nora", "Finn"]
records = []
for line in lines:
    sentence = json.loads(line)["text"].split(". ")[0] + "."
    found = [name for name in NAMES if name in sentence]
    if len(found) == 1 and " and " not in sentence:
        records.append({"instruction": f"Tell me about {found[0]}.", "input": "", "output": sentence})
print(len(records), "examples, such as", records[0])
T = model.config.T
rows = [tuple(part[:T] for part in encode(record, "phi3")) for record in records[: 8 if small else 600]]
rows = [row for row in rows if any(label != -100 for label in row[1])]  # without those whose reply was cut off at T


@torch.no_grad()
def reply(model, instruction, tokens=20):
    """Greedy, up to the end mark; and whether that came."""
    ids = tokenizer.encode(prompt_of({"instruction": instruction, "input": ""}, "phi3")).ids[: T - tokens]
    begin = len(ids)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        if ids[-1] == END:
            break
    return tokenizer.decode(ids[begin:]), ids[-1] == END


@torch.no_grad()
def try_out(model, names):
    """Ask about each name, and count the replies that stop by themselves and those that are about the right person."""
    replies = [reply(model, f"Tell me about {name}.", 3 if small else 20) for name in names]
    stopped = sum(ended for _, ended in replies)
    return [text for text, _ in replies], stopped, sum(name in text for name, (text, _) in zip(names, replies))


before, stopped, right = try_out(model, NAMES)
print(f"before: {stopped} of {len(NAMES)} replies stop by themselves, {right} name the right person; {before[0]!r}")
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3, weight_decay=0.0)
losses = []
for step in range(2 if small else 80):
    batch = collate([rows[(8 * step + number) % len(rows)] for number in range(8)], pad=END)
    loss = loss_of(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss of the replies {losses[0]:.2f} -> {losses[-1]:.2f}")
after, stopped, right = try_out(model, NAMES)
print(f"after:  {stopped} of {len(NAMES)} replies stop by themselves, {right} name the right person; {after[0]!r}")

# %% [markdown]
# The form is learned within 80 steps. To name the right person, the model would have to copy a word from the prompt, and a model this small, after three minutes of stories, hardly can (lesson 12 looks for heads that copy). Finetuning
# shapes what a model can do already; it adds little that is new.

# %% tags=["figure"]
figure, axis = plt.subplots(figsize=(5, 2.6))
axis.plot(losses)
axis.set(xlabel="step", ylabel="loss of the reply", ylim=(0, None))
figure.tight_layout()
plt.show()

# %% [markdown]
# ## 6. Compare with the package and with peft
#
# First the rows: ids, labels and batches, in all three formats, against the package's. Then LoRA against peft, Hugging Face's library for it, which the package uses: the same A and B, made large so
# that a mistake shows; logits (the scores of all tokens) and gradients must agree.

# %% tags=["compare"]
from transformers import AutoTokenizer

from gpt_scratch import GPTScratchForCausalLM
from gpt_scratch.data.instruction import InstructionCollator, encode_record, set_prompt_style
from gpt_scratch.training.finetuning import add_lora as package_lora  # which takes peft's

their_tokenizer = AutoTokenizer.from_pretrained(checkpoint)
examples = [records[0], records[1], record]
for style in FORMATS:
    set_prompt_style(their_tokenizer, style)
    our_rows = [encode(example, style) for example in examples]
    their_rows = [encode_record(example, their_tokenizer, style, mask_prompt=True) for example in examples]
    assert our_rows == [tuple(row) for row in their_rows], style
    ours, theirs = collate(our_rows, END), InstructionCollator(END)([{"input_ids": i, "labels": l} for i, l in their_rows])
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), style
print("ids, labels and batches are the same in", ", ".join(FORMATS))

theirs = package_lora(GPTScratchForCausalLM.from_pretrained(checkpoint), "CAUSAL_LM", rank=4, alpha=8).eval()
ours, their_parameters, pairs = add_lora(six.load(checkpoint), rank=4, alpha=8), dict(theirs.named_parameters()), []
with torch.no_grad():
    for name, parameter in ours.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind in ("A", "B"):
            their_module = six.their_name(f"{module}.weight").removesuffix(".weight")
            their_parameter = their_parameters[f"base_model.model.{their_module}.lora_{kind}.default.weight"]
            parameter.copy_(torch.randn_like(parameter) * 0.05)
            their_parameter.copy_(parameter)
            pairs.append((parameter, their_parameter))
assert len(pairs) == sum(parameter.requires_grad for parameter in theirs.parameters())
batch = collate([tuple(part[:T] for part in row) for row in our_rows], END)
our_scores, their_scores = ours(batch["input_ids"]), theirs(input_ids=batch["input_ids"]).logits
for scores in (our_scores, their_scores):
    nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten()).backward()
of_scores = ((our_scores - their_scores).abs().max() / their_scores.abs().max()).item()
largest = max(theirs.grad.abs().max().item() for _, theirs in pairs)
of_gradients = max((ours.grad - theirs.grad).abs().max().item() for ours, theirs in pairs) / largest
print(f"{len(pairs)} matrices A and B: logits differ by {of_scores:.1e}, gradients by {of_gradients:.1e} of the largest")
assert of_scores < 1e-5 and of_gradients < 1e-5

# %% [markdown]
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/10_instructions.py`.
#
# **Exercise 1.** How many numbers train in a LoRA of rank 8 around a matrix of 768 x 3072?

# %% tags=["exercise"]
lora_numbers = ...

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == 8 * (768 + 3072):
        return "Right: A is (8, in) and B is (out, 8), so 8 * (in + out) = 30,720 in place of 2.4 million"
    if answer == 768 * 3072:
        return "Wrong: that is the frozen matrix; count A and B"
    if answer == 8 * 768 * 3072:
        return "Wrong: the sizes are added, not multiplied: A holds 8 * in numbers, B holds out * 8"
    return "Wrong: count A, of (8, in), and B, of (out, 8)"


print(check_1(lora_numbers))

# %% [markdown]
# **Exercise 2.** A row has the ids `5 6 7` for the prompt, `8 9` for the reply, the end mark `0`, and two pads, which are `0` too. Write its eight labels.

# %% tags=["exercise"]
eight_labels = ...  # a list of eight numbers

# %% tags=["check"]


def check_2(answer):
    if answer is ...:
        return "Exercise 2: no answer yet"
    if list(answer) == [-100, -100, -100, 8, 9, 0, -100, -100]:
        return "Right: the first 0 ends the reply and is learned, the others only fill up"
    if list(answer) == [-100, -100, -100, 8, 9, -100, -100, -100]:
        return "Wrong: the true end mark is masked along with the padding, so the model would never learn to stop"
    if list(answer) == [-100, -100, -100, 8, 9, 0, 0, 0]:
        return "Wrong: padding is scored; the model would learn to write end marks after end marks"
    if list(answer)[:3] == [5, 6, 7]:
        return "Wrong: the prompt is seen but not scored; its labels are -100"
    return "Wrong: -100 for the prompt and for padding, the ids themselves for the reply and its end mark"


print(check_2(eight_labels))

# %% [markdown]
# **Exercise 3.** Write the merge: one plain matrix that does what the layer with its LoRA does.


# %% tags=["exercise"]
def merged(lora):
    """LoRA -> weight (out, in)"""
    ...


# %% tags=["check"]


def check_3(function):
    lora = LoRA(nn.Linear(3, 5), rank=2, alpha=8)
    with torch.no_grad():
        lora.B.normal_()
        weight = lora.linear.weight.clone()
        given = function(lora)
        if given is None:
            return "Exercise 3: no answer yet"
        if given.shape != (5, 3):
            return f"Wrong: the weight has the shape (out, in) = (5, 3), not {tuple(given.shape)}; multiply B @ A"
        if not torch.equal(lora.linear.weight, weight):
            return "Wrong: the frozen weight itself was changed; a second call would add the product again"
        x = torch.randn(4, 3)
        if torch.allclose(x @ given.T + lora.linear.bias, lora(x), atol=1e-5):
            return "Right: W + scale * B @ A"
        if torch.allclose(given, weight + lora.B @ lora.A, atol=1e-5):
            return "Wrong: the factor alpha / r = 4 is missing"
    return "Wrong: the merged weight is W plus scale times B @ A"


print(check_3(merged))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | formats, as chat templates that are saved with the tokenizer | `gpt_scratch/data/instruction.py`, `CHAT_TEMPLATES` |
# | ids and labels | `gpt_scratch/data/instruction.py`, `encode_record` |
# | batches; several examples in one row | `gpt_scratch/data/instruction.py`, `InstructionCollator`, `pack_rows` |
# | LoRA, by peft | `gpt_scratch/training/finetuning.py`, `add_lora` |
# | the whole of it | `scripts/finetune_instructions.py` |
#
# **Sources.** Ouyang et al. 2022, arXiv:2203.02155, section 3 (training on replies); Taori et al. 2023, "Stanford Alpaca" (its format and preamble); Abdin et al. 2024, arXiv:2404.14219,
# section 2 (Phi-3's format); Hu et al. 2021, arXiv:2106.09685, section 4.1 (LoRA).
