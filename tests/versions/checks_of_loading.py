"""Checks of what transformers opens by its Auto classes and pipelines, and writes again."""

import tempfile
from pathlib import Path

import torch
from case import TRUST, Case, load, near, same
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline


def config(case: Case) -> None:
    """AutoConfig: each value of config.json is there, and again after save_pretrained."""
    found = AutoConfig.from_pretrained(case.folder, **TRUST)
    assert type(found).__module__.startswith("transformers_modules."), type(found)
    with tempfile.TemporaryDirectory() as folder:
        found.save_pretrained(folder)
        again = AutoConfig.from_pretrained(folder, **TRUST)
    library = {"transformers_version", "architectures", "dtype", "torch_dtype"}  # whose form is the library's own
    for name in case.config.keys() - library:
        expected = case.config[name]
        for source in (found, again):
            value = getattr(source, name)
            if name == "auto_map":  # where the code comes from may be put before the class
                value = {key: place.split("--")[-1] for key, place in value.items()}
            same(value, expected, name)
    same((found.n_embd, found.emb_dim), (case.config["hidden_size"],) * 2, "other names of hidden_size")


def tokenizer(case: Case) -> None:
    """AutoTokenizer: ids, text and special tokens; a padded batch on either side."""
    found = AutoTokenizer.from_pretrained(case.folder, **TRUST)
    same([found(prompt)["input_ids"] for prompt in case.texts["prompts"]], case.texts["ids"], "ids")
    same(found(case.texts["text"])["input_ids"], case.texts["text_ids"], "ids of the long text")
    same(found.decode(case.texts["text_ids"]), case.texts["text"], "decoded text")
    same((found.pad_token_id, found.eos_token_id, found.bos_token_id), (case.pad, case.eos, case.eos), "pad, end, begin")
    for side in ("left", "right"):
        batch = found(case.texts["prompts"], padding=True, padding_side=side, return_tensors="pt")
        ids, mask = case.padded(side)
        same((batch["input_ids"].tolist(), batch["attention_mask"].tolist()), (ids.tolist(), mask.tolist()), f"{side} padding")


def language_model(case: Case) -> None:
    """AutoModelForCausalLM: the logits of each row."""
    case.compare_logits(case.lm())


@torch.no_grad()
def base_model(case: Case) -> None:
    """AutoModel: the last hidden states."""
    unused = set() if case.config["tie_word_embeddings"] else {"lm_head.weight"}
    hidden = load(AutoModel, case.folder, unused=unused)(case.rows[0][None]).last_hidden_state[0]
    near(hidden, case.expected[f"recorded.hidden.{case.layers}"], "last hidden states")


@torch.no_grad()
def classifier_from_lm(case: Case) -> None:
    """AutoModelForSequenceClassification from a language model: its body, and a head drawn by the model's own rule."""
    unused = set() if case.config["tie_word_embeddings"] else {"lm_head.weight"}
    model = load(AutoModelForSequenceClassification, case.folder, new={"score.weight"}, unused=unused, num_labels=50)
    body = load(AutoModel, case.folder, unused=unused)
    for name, weight in body.state_dict().items():
        near(model.model.state_dict()[name], weight, name, tolerance=0)
    std, expected = model.score.weight.std().item(), case.config["initializer_range"]
    assert abs(std / expected - 1) < 0.1, f"the new head has standard deviation {std}, expected {expected}"
    last = case.expected[f"recorded.hidden.{case.layers}"][-1]
    near(model(case.ids, attention_mask=case.mask).logits[0], last @ model.score.weight.T, "logits")


@torch.no_grad()
def classifier(case: Case) -> None:
    """A trained classifier: each row alone, and all rows padded on either side."""
    model = load(AutoModelForSequenceClassification, case.other("classifier"))
    case.compare_logits(model, "labels")
    expected = torch.stack([case.expected[f"labels.{i}"] for i in range(len(case.rows))])
    for side in ("left", "right"):
        ids, mask = case.padded(side)
        near(model(ids, attention_mask=mask).logits, expected, f"{side} padding")
    assert model(ids, attention_mask=mask, labels=torch.tensor([0, 1, 2])).loss.isfinite()


def text_generation_pipeline(case: Case) -> None:
    """The greedy text of each prompt, one by one and as a batch."""
    pipe = pipeline("text-generation", model=str(case.folder), **TRUST)
    pipe.tokenizer.padding_side = "left"
    settings = {"max_new_tokens": case.expected["greedy"].shape[1], "do_sample": False, "return_full_text": False}
    for size in (1, len(case.rows)):
        answers = pipe(case.texts["prompts"], batch_size=size, clean_up_tokenization_spaces=False, **settings)
        same([answer[0]["generated_text"] for answer in answers], case.texts[case.style], f"texts, batch size {size}")


def text_classification_pipeline(case: Case) -> None:
    """Labels and their probabilities, one by one and as a batch."""
    pipe = pipeline("text-classification", model=str(case.other("classifier")), **TRUST)
    for size in (1, len(case.rows)):
        for i, answer in enumerate(pipe(case.texts["prompts"], batch_size=size, top_k=None)):
            probabilities = case.expected[f"labels.{i}"].softmax(-1)
            found = {part["label"]: part["score"] for part in answer}
            near(torch.tensor([found[label] for label in case.texts["labels"]]), probabilities, f"prompt {i}, batch size {size}")


def saved_again(case: Case) -> None:
    """save_pretrained of what was loaded: the code files, the same tensors, and all of it opens once more."""
    model, names = case.lm(), AutoTokenizer.from_pretrained(case.folder, **TRUST)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        names.save_pretrained(folder)
        same(
            sorted(path.name for path in Path(folder).glob("*.py")),
            sorted(path.name for path in case.folder.glob("*.py")),
            "code files",
        )
        for path in case.folder.glob("*.py"):
            assert (Path(folder) / path.name).read_bytes() == path.read_bytes(), f"{path.name} is another file now"
        before, after = load_file(case.folder / "model.safetensors"), load_file(Path(folder) / "model.safetensors")
        same(after.keys(), before.keys(), "tensors")
        case.compare_logits(case.lm(Path(folder)))
        found = AutoTokenizer.from_pretrained(folder, **TRUST)
        same(found(case.texts["text"])["input_ids"], case.texts["text_ids"], "ids of the tokenizer saved again")


def sharded(case: Case) -> None:
    """A checkpoint in several files, and one that this release cuts."""
    model = case.lm(case.other("sharded"))
    case.compare_logits(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="40KB")
        assert len(list(Path(folder).glob("*.safetensors"))) > 1, "one file only"
        case.compare_logits(case.lm(Path(folder)))


@torch.no_grad()
def bf16(case: Case) -> None:
    """A checkpoint in bf16: exact in fp32, within the precision of bf16 in bf16, and saved in bf16 again."""
    case.compare_logits(case.lm(case.other("bf16")), "bf16")
    model = case.lm(case.other("bf16"), dtype=torch.bfloat16)
    for i, row in enumerate(case.rows):
        near(model(row[None]).logits[0], case.expected[f"bf16.{i}"], f"row {i} in bf16", tolerance=0.05)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        same({weight.dtype for weight in load_file(Path(folder) / "model.safetensors").values()}, {torch.bfloat16}, "saved dtype")
    short = AutoModelForCausalLM.from_pretrained(case.other("bf16"), torch_dtype="auto", **TRUST)
    same(short.dtype, torch.bfloat16, 'torch_dtype="auto"')


@torch.no_grad()
def rotary_scaling(case: Case) -> None:
    """Each type, asked for when the model is loaded, on more tokens than max_position_embeddings."""
    if case.config["position_embedding_type"] != "rope":
        return
    row = torch.tensor(case.texts["rope_row"])
    for name, settings in case.texts["ropes"].items():
        model = case.lm(rope_parameters=dict(settings))
        near(model(row[None], use_cache=False).logits[0], case.expected[f"rope.{name}"], name)


CHECKS = (
    config,
    tokenizer,
    language_model,
    base_model,
    classifier_from_lm,
    classifier,
    text_generation_pipeline,
    text_classification_pipeline,
    saved_again,
    sharded,
    bf16,
    rotary_scaling,
)
