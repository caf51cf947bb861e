"""Labels and scores for a stream of texts, in batches, with a trained classifier."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..tokenization.special_tokens import encode_text
from .generation import check_unicode


@torch.inference_mode()
def classify_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], batch_size: int = 32, window: int = 16
) -> Iterator[dict]:
    """For each text, in order: `{"text", "label", "score", "scores"}`, and `"cut_to"` where it was longer than the model's positions.

    `window` batches are read ahead and sorted by length, so that short texts are not padded to long ones; 1 answers as soon as a batch
    is full. An empty text has label `None` and an `"error"`: there is nothing to classify, and any label would be wrong.
    """
    labels = model.config.id2label
    limit = model.config.max_position_embeddings
    texts = iter(texts)
    while read := list(islice(texts, window * batch_size)):
        for text in read:
            check_unicode(text)
        ids = [encode_text(tokenizer, text)["input_ids"] for text in read]
        results: list[dict] = [{"text": text, "label": None, "score": None, "error": "empty text"} for text in read]
        order = sorted((i for i, row in enumerate(ids) if row), key=lambda i: len(ids[i]))
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            rows = {
                "input_ids": [ids[i][:limit] for i in batch],
                "attention_mask": [[1] * min(len(ids[i]), limit) for i in batch],
            }
            padded = tokenizer.pad(rows, return_tensors="pt").to(model.device)
            for i, scores in zip(batch, model(**padded).logits.float().softmax(-1).tolist()):
                best = max(range(len(scores)), key=scores.__getitem__)
                named = {labels[k]: round(score, 6) for k, score in enumerate(scores)}
                results[i] = {"text": read[i], "label": labels[best], "score": round(scores[best], 6), "scores": named}
                if len(ids[i]) > limit:
                    results[i]["cut_to"] = limit
        yield from results
