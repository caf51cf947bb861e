"""Write the checkpoints that `check_checkpoint.py` opens, and what they compute, with today's package.

    python tests/versions/write_checkpoints.py FOLDER

For each style, a language model with its tokenizer (`gpt2_like`), the same in several files (`gpt2_like-sharded`) and in bf16 (`gpt2_like-bf16`), and a
classifier (`gpt2_like-classifier`). The reference knows no padding, no cache and no `generate`: each prompt is a row of its own, greedy and
beam search are written out here, hidden states and attentions are caught by hooks. `expected.json` holds texts and ids, `expected.safetensors` all
numbers, fp32.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file
from tiny_models import randomize, tiny_model

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.tokenization.portable import save_tokenizer

TEXT = (
    "One day, Anna lost her key. She looked by the river, and there it was. Tom had a cat. It's 2 o'clock, naïve 你好 🙂!\n" * 4
)
PROMPTS = ["One day, Anna", "Tom had a cat. She looked by the river, and", "The"]
LABELS = ["bad", "fair", "good"]
ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
NEW_TOKENS, BEAMS, BEAM_TOKENS = 12, 3, 6
# The last one is for a check of its own: every layer attends to the last 5 tokens, fewer than the prompts have.
STYLES = {"gpt2_like": {}, "llama_like": {"qk_norm": True}, "windowed_like": {"style": "llama", "sliding_window": 5}}


def louder(model: torch.nn.Module, factor: float = 4) -> torch.nn.Module:
    """Blocks that outweigh the embeddings: a tied model would say one token again and again, with its past or without."""
    for block in model.model.layers:
        for layer in (block.self_attn.o_proj, block.mlp.down_proj):
            layer.weight.data *= factor
    return model


def settings(style: str, tokenizer) -> dict:
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {
        "style": style.removesuffix("_like"),
        "vocab_size": len(tokenizer) + 2,
        "max_position_embeddings": 64,
        **special,
        **STYLES[style],
    }


@torch.no_grad()
def next_log_probabilities(model, rows: torch.Tensor) -> torch.Tensor:
    """Of the token after each row, (B, V), from a forward over all of it."""
    return model(rows, use_cache=False).logits[:, -1].log_softmax(-1)


def greedy(model, row: torch.Tensor) -> torch.Tensor:
    """The NEW_TOKENS most likely tokens, one after the other, (NEW_TOKENS,)."""
    start = len(row)
    for _ in range(NEW_TOKENS):
        best, next_best = next_log_probabilities(model, row[None])[0].topk(2)
        assert best[0] - best[1] > 1e-3, "two tokens are nearly equally likely: choose another seed"
        assert next_best[0] != model.config.eos_token_id, "the text ends: choose another seed"
        row = torch.cat((row, next_best[:1]))
    assert len(set(row[start:].tolist())) > NEW_TOKENS // 2, "the text repeats itself: choose another seed"
    return row[start:]


def beam_search(model, row: torch.Tensor) -> torch.Tensor:
    """The BEAMS best continuations without the end-of-text token, best first, (BEAMS, BEAM_TOKENS)."""
    rows, scores = row[None], torch.zeros(1)
    for _ in range(BEAM_TOKENS):
        candidates = next_log_probabilities(model, rows)
        candidates[:, model.config.eos_token_id] = -torch.inf
        candidates = scores[:, None] + candidates
        scores, places = candidates.flatten().topk(BEAMS)
        parents, tokens = places // candidates.shape[1], places % candidates.shape[1]
        rows = torch.cat((rows[parents], tokens[:, None]), dim=1)
    return rows[:, len(row) :]


def recorded(model, row: torch.Tensor) -> dict[str, torch.Tensor]:
    """What hooks see in a forward over one row: `hidden.I` (T, C), I from 0 to the number of layers; `attention.I` (H, T, T)."""
    model.set_attn_implementation("eager")
    seen, handles = {}, []
    for i, block in enumerate(model.model.layers):
        handles.append(block.register_forward_pre_hook(lambda _, inputs, i=i: seen.update({f"hidden.{i}": inputs[0][0]})))
        handles.append(block.self_attn.register_forward_hook(lambda *call, i=i: seen.update({f"attention.{i}": call[-1][1][0]})))
    handles.append(
        model.model.norm.register_forward_hook(lambda *call: seen.update({f"hidden.{len(model.model.layers)}": call[-1][0]}))
    )
    with torch.no_grad():
        model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    model.set_attn_implementation("sdpa")
    return seen


@torch.no_grad()
def logits(model, rows: list[torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {f"{name}.{i}": model(row[None], use_cache=False).logits[0] for i, row in enumerate(rows)}


@torch.no_grad()
def scaled(model, vocab_size: int) -> dict[str, torch.Tensor]:
    """`rope.NAME`: logits (T, V) with each rotary scaling, of more tokens than max_position_embeddings."""
    row, found = torch.arange(80) * 7 % vocab_size, {}
    for name, settings in ROPES.items():
        model.config.rope_parameters = dict(settings)
        found[f"rope.{name}"] = model(row[None], use_cache=False).logits[0]
    return found


def write_style(folder: Path, style: str, tokenizer, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """All checkpoints of one style; returns what they compute."""
    lm = louder(tiny_model(**settings(style, tokenizer)))
    classifier = tiny_model(cls=GPTScratchForSequenceClassification, **settings(style, tokenizer), num_labels=len(LABELS))
    classifier.config.id2label = dict(enumerate(LABELS))
    classifier.config.label2id = {label: i for i, label in enumerate(LABELS)}
    randomize(classifier, seed=1)
    rounded = louder(tiny_model(**settings(style, tokenizer))).to(torch.bfloat16)
    for name, model, size in (
        ("", lm, "1GB"),
        ("-sharded", lm, "40KB"),
        ("-bf16", rounded, "1GB"),
        ("-classifier", classifier, "1GB"),
    ):
        model.save_pretrained(folder / f"{style}{name}", max_shard_size=size)
        save_tokenizer(tokenizer, folder / f"{style}{name}")
    assert len(list((folder / f"{style}-sharded").glob("*.safetensors"))) > 1
    return {
        "greedy": torch.stack([greedy(lm, row) for row in rows]),
        "beams": torch.stack([beam_search(lm, row) for row in rows]),
        **{f"recorded.{name}": value for name, value in recorded(lm, rows[0]).items()},
        **logits(lm, rows, "logits"),
        **logits(rounded.float(), rows, "bf16"),
        **logits(classifier, rows, "labels"),
        **(scaled(lm, len(tokenizer)) if style == "llama_like" else {}),
    }


def main(folder: Path) -> None:
    tokenizer = train_byte_level_bpe([TEXT], 300)
    rows = [tokenizer(prompt, return_tensors="pt")["input_ids"][0] for prompt in PROMPTS]
    assert len({len(row) for row in rows}) == len(rows), "the prompts should differ in length"
    numbers = {f"row.{i}": row for i, row in enumerate(rows)}
    texts = {
        "prompts": PROMPTS,
        "labels": LABELS,
        "ids": [row.tolist() for row in rows],
        "text": TEXT,
        "ropes": ROPES,
        "rope_row": (torch.arange(80) * 7 % len(tokenizer)).tolist(),
        "text_ids": tokenizer(TEXT)["input_ids"],
    }
    for style in STYLES:
        found = write_style(folder, style, tokenizer, rows)
        numbers |= {f"{style}.{name}": value for name, value in found.items()}
        texts[style] = tokenizer.batch_decode(found["greedy"], skip_special_tokens=True)
    save_file({name: value.contiguous().clone() for name, value in numbers.items()}, folder / "expected.safetensors")
    (folder / "expected.json").write_text(json.dumps(texts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
