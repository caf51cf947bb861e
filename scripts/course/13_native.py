# %% [markdown]
# # Lesson 13: Making it native
#
# About 20 minutes. You need: the model (lesson 6), generating (lesson 7), training (lesson 8), and the checkpoint of `make quickstart`.
#
# After this lesson you can
#
# - turn any PyTorch model into one that `from_pretrained`, `generate` and `Trainer` take, in some thirty lines,
# - say what is in a checkpoint folder, what each file is for, and how the Hub finds the code,
# - name what the shipped class has beyond that, and show what goes wrong without it.

# %% tags=["parameters"]
from pathlib import Path

root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "scripts" / "course").is_dir())
checkpoint = root / "runs" / "quickstart"  # written by `make quickstart`
small = False

# %%
import json
import tempfile

import matplotlib.pyplot as plt
import torch
from cells import lesson  # what an earlier lesson defined
from tokenizers import Tokenizer
from torch import nn

# The subject of this lesson. Of the package itself, nothing is imported until section 5.
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

torch.manual_seed(13)
if not (checkpoint / "model.safetensors").is_file():
    raise SystemExit(f"there is no model in {checkpoint}: run `make quickstart` first (about three minutes)")
six = lesson(6)
tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))

# %% [markdown]
# ## 1. What is missing?
#
# The class of lesson 6 computes everything. But to use it, you need lesson 6. No other chat program, server, or finetuning script can open it. What these programs expect is a small contract:
#
# ```
#   config.json        sizes, and the model_type               <->   a subclass of PretrainedConfig
#   model.safetensors  one tensor for each parameter's name    <->   a subclass of PreTrainedModel
#   forward(input_ids, attention_mask, labels, ...)             ->   an output with .loss and .logits
# ```
#
# ## 2. A configuration
#
# Sizes under the usual names, as attributes. `model_type` is a name that identifies the class.


# %%
class LessonConfig(PretrainedConfig):
    model_type = "lesson_gpt"

    def __init__(
        self, vocab_size=1000, max_position_embeddings=128, hidden_size=128, num_attention_heads=4, num_hidden_layers=4, **kwargs
    ):
        self.vocab_size, self.max_position_embeddings, self.hidden_size = vocab_size, max_position_embeddings, hidden_size
        self.num_attention_heads, self.num_hidden_layers = num_attention_heads, num_hidden_layers
        super().__init__(**kwargs)


# %% [markdown]
# ## 3. A model
#
# `PreTrainedModel` provides saving and loading, `GenerationMixin` provides `generate`. We write two things: the modules of the model, and `forward`. Labels are the input ids; the model shifts them by one
# (lesson 2).


# %%
class LessonGPT(PreTrainedModel, GenerationMixin):
    config_class = LessonConfig

    def __init__(self, config):
        super().__init__(config)
        sizes = (
            config.vocab_size,
            config.max_position_embeddings,
            config.hidden_size,
            config.num_attention_heads,
            config.num_hidden_layers,
        )
        self.gpt = six.GPT(six.Config(*sizes))
        self.post_init()

    def forward(self, input_ids, labels=None, **kwargs):
        logits = self.gpt(input_ids)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


settings = json.loads((checkpoint / "config.json").read_text())
names = ("vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers")
native = LessonGPT(LessonConfig(**{name: settings[name] for name in names}, eos_token_id=settings["eos_token_id"])).eval()
native.gpt.load_state_dict(six.load(checkpoint).state_dict())

# %% [markdown]
# ## 4. What that buys
#
# Saving writes the folder. Opening it with `AutoModelForCausalLM` needs one more line: which class belongs to `lesson_gpt`.

# %%
AutoConfig.register("lesson_gpt", LessonConfig, exist_ok=True)
AutoModelForCausalLM.register(LessonConfig, LessonGPT, exist_ok=True)
with tempfile.TemporaryDirectory() as folder:
    native.save_pretrained(folder)
    for file in sorted(Path(folder).iterdir()):
        print(f"{file.name:25} {file.stat().st_size:>9,} bytes")
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = torch.tensor([tokenizer.encode("One day, Anna").ids])
new_tokens = 8 if small else 30
written = again.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, use_cache=False)
print(tokenizer.decode(written[0].tolist()))
print("loss on its own text:", round(again(written, labels=written).loss.item(), 3))

# %% [markdown]
# Thirty lines, and whatever calls `forward` with labels, such as `Trainer`, can train it. But open that folder on another machine, and you get an error: `lesson_gpt` is not known there. For this the Hub knows
# `auto_map`: `config.json` names a Python file *in the folder*, which is run if the user allows it (`trust_remote_code=True`). The file must import nothing that is not there too.
#
# ## 5. Compare with the shipped class
#
# First: on plain text, the class above and the shipped one are the same model.

# %% tags=["compare"]
from gpt_scratch import GPTScratchForCausalLM

shipped = GPTScratchForCausalLM.from_pretrained(checkpoint).eval()
with torch.no_grad():
    ours, theirs = again(written).logits, shipped(written).logits
difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
print(f"logits: largest difference {difference:.1e} of the largest")
assert difference < 1e-6
greedy = {"attention_mask": torch.ones_like(ids), "max_new_tokens": new_tokens, "do_sample": False}
assert torch.equal(shipped.generate(ids, **greedy), written)
print("generate: the same tokens")

# %% [markdown]
# Now the differences that plain text does not show. Each is tried on both models.
#
# **Padding.** A batch of texts of different length, filled up on the left, as generation needs it. The class above ignores `attention_mask`: it counts padding as positions and looks at it.

# %% tags=["compare"]
pad = torch.zeros(1, 3, dtype=torch.long)
padded, real = torch.cat([pad, ids], dim=1), torch.cat([pad, torch.ones_like(ids)], dim=1)


@torch.no_grad()
def change_by_padding(model):
    plain, filled = model(ids).logits[0, -1], model(padded, attention_mask=real).logits[0, -1]
    return ((plain - filled).abs().max() / plain.abs().max()).item()


print(f"the last logits change by padding: lesson {change_by_padding(again):.1e}, shipped {change_by_padding(shipped):.1e}")
assert change_by_padding(again) > 1e-3 > 1e-5 > change_by_padding(shipped)

# %% [markdown]
# **The cache.** `generate` passes the keys and values of earlier tokens (lesson 7). The class above does not take them, so we had to pass `use_cache=False`, and it reads the whole text again for each token. Forget that setting, and nobody warns you.
#
# **Too long.** A table of positions ends. The class above fails with an error from inside PyTorch; the shipped one says what to do.

# %% tags=["compare"]
too_long = torch.zeros(1, settings["max_position_embeddings"] + 1, dtype=torch.long)
messages = {}
for name, model in {"lesson": again, "shipped": shipped}.items():
    try:
        model(too_long)
    except Exception as error:  # each its own kind
        messages[name] = f"{type(error).__name__}: {error}"
    print(f"{name}: {messages[name]}")
assert "max_position_embeddings" in messages["shipped"] and "max_position_embeddings" not in messages["lesson"]

# %% [markdown]
# **Loss over several batches.** When memory is short, Trainer computes a batch in parts and adds the gradients (lesson 8). Parts with more scored tokens must count more. So Trainer passes `num_items_in_batch`, the
# number of scored tokens in the whole batch, and the model divides its *sum* by it. The class above drops it.

# %% tags=["compare"]
labels = ids.clone()
with torch.no_grad():
    mean, summed = (shipped(ids, labels=labels, **extra).loss.item() for extra in ({}, {"num_items_in_batch": 1}))
    ignored = again(ids, labels=labels, num_items_in_batch=1).loss.item()
print(f"shipped: mean {mean:.3f}, sum {summed:.3f}; lesson, asked for the sum: {ignored:.3f}")
assert abs(summed - mean * (ids.shape[1] - 1)) < 1e-3 * summed and abs(ignored - mean) < 1e-3

# %% [markdown]
# **The folder.** The shipped class saves its own code, and names it in `config.json`.

# %% tags=["compare"]
with tempfile.TemporaryDirectory() as folder:
    shipped.save_pretrained(folder)
    files = sorted(file.name for file in Path(folder).iterdir())
    auto_map = json.loads((Path(folder) / "config.json").read_text())["auto_map"]
print(", ".join(files))
print(json.dumps(auto_map, indent=1))
assert "modeling_gpt_scratch.py" in files and "AutoModelForCausalLM" in auto_map

# %% [markdown]
# And where do the lines go? Lesson 6 takes about sixty for the whole model; the shipped file is longer. The plot counts the lines of its parts.

# %% tags=["figure"]
import ast

source = (root / "gpt_scratch" / "modeling_gpt_scratch.py").read_text()
parts = {
    node.name: node.end_lineno - node.lineno + 1
    for node in ast.parse(source).body
    if isinstance(node, ast.ClassDef | ast.FunctionDef)
}
figure, axis = plt.subplots(figsize=(8, 3.6))
axis.barh(list(parts)[::-1], list(parts.values())[::-1])
axis.set(xlabel="lines in modeling_gpt_scratch.py")
figure.tight_layout()
plt.show()

# %% [markdown]
# The rest, in a table:
#
# | the shipped class also has | because |
# |---|---|
# | names such as `q_proj`, `input_layernorm` | peft, quantization and parallel plans find layers by these names |
# | rotary positions, RMS norm, gated MLP, grouped heads as settings | so that Llama's family is the same file |
# | attention from a table of functions (`attn_implementation`) | fast GPU kernels need no change |
# | gradient checkpointing, a loss that never holds all logits | memory |
# | positions that restart, for several texts in a row | packing (lesson 2) |
# | errors that name the setting and the value | so that a mistake costs a minute, not a day |
#
# ## Exercises
#
# Replace the `...`, run the cell, and then the check below it. Solutions are in `solutions/13_native.py`.
#
# **Exercise 1.** Which file of a checkpoint folder tells `AutoModelForCausalLM` which class to use?

# %% tags=["exercise"]
file_name = ...  # a string

# %% tags=["check"]


def check_1(answer):
    if answer is ...:
        return "Exercise 1: no answer yet"
    if answer == "config.json":
        return "Right: by model_type, for classes that are registered, or by auto_map, for code in the folder"
    if answer == "model.safetensors":
        return "Wrong: that file holds names and tensors, and knows nothing of classes"
    if answer.endswith(".py"):
        return "Wrong: the code may lie in such a file, but something must say which file and which class"
    return "Wrong: look at the list of files in section 4"


print(check_1(file_name))

# %% [markdown]
# **Exercise 2.** Write the loss that Trainer needs: with `num_items_in_batch`, the *sum* over the scored tokens divided by it; without, the mean. Labels of -100 do not count.


# %% tags=["exercise"]
def native_loss(logits, labels, num_items_in_batch=None):
    """logits (B, T, V), labels (B, T), not shifted -> a number"""
    ...


# %% tags=["check"]


def check_2(function):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, 3, 4, 5], [1, 2, -100, -100, -100]])
    whole = function(logits, labels)
    if whole is None:
        return "Exercise 2: no answer yet"
    shifted_logits, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    if torch.allclose(whole, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()), atol=1e-6):
        return "Wrong: nothing is shifted, so each place is asked for its own token; logits without the last place, labels without the first"
    if not torch.allclose(whole, nn.functional.cross_entropy(shifted_logits, targets), atol=1e-6):
        return "Wrong: without num_items_in_batch it is the mean over the labels that are not -100, after the shift"
    parts = [function(logits[row : row + 1], labels[row : row + 1], num_items_in_batch=5) for row in (0, 1)]
    if torch.allclose(sum(parts), whole, atol=1e-6):
        return "Right: four tokens of one part and one of the other; the parts add up to the loss of the whole batch"
    if torch.allclose(
        sum(parts) / 2, sum(function(logits[row : row + 1], labels[row : row + 1]) for row in (0, 1)) / 2, atol=1e-6
    ):
        return "Wrong: num_items_in_batch is ignored; the part with one token would count as much as the one with four"
    return "Wrong: with num_items_in_batch, divide the *sum* of the losses by it"


print(check_2(native_loss))

# %% [markdown]
# ## Where this lives in the package
#
# | what | where |
# |---|---|
# | the configuration, which refuses impossible values | `gpt_scratch/configuration_gpt_scratch.py`, `GPTScratchConfig` |
# | the model | `gpt_scratch/modeling_gpt_scratch.py`, `GPTScratchForCausalLM` |
# | registration with the Auto classes | `gpt_scratch/__init__.py` |
# | what differs between releases of transformers | `gpt_scratch/releases_gpt_scratch.py`, `AnyRelease` |
# | model cards | `gpt_scratch/hub/cards.py`, `write_card` |
# | uploads | `gpt_scratch/hub/upload.py` |
# | uploading from the command line | `scripts/push_to_hub.py` |
#
# **Sources.** Wolf et al. 2020, arXiv:1910.03771, section 3 (the design of transformers); its documentation, "Customizing models" (`auto_map`, `trust_remote_code`).
