"""Classification of a stream of texts in batches, and writing the results to a table."""

import csv
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import IO, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError, check_unicode
from ..tokenization.special_tokens import encode_text


@torch.inference_mode()
def classify_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], batch_size: int = 32, window: int = 16
) -> Iterator[dict]:
    """Yields for each text, in order, `{"text", "label", "score", "scores"}`, and `"cut_to"` if it was truncated to the model's positions.

    `window` batches are read ahead and sorted by length, to reduce padding; with 1, results are yielded as soon as a batch is full. A text
    that is empty or only white space has label `None` and an `"error"`.
    """
    labels = model.config.id2label
    limit = model.config.max_position_embeddings
    texts = iter(texts)
    while read := list(islice(texts, window * batch_size)):
        for text in read:
            check_unicode(text)
        ids = [encode_text(tokenizer, text)["input_ids"] for text in read]
        results: list[dict] = [{"text": text, "label": None, "score": None, "error": "empty text"} for text in read]
        order = sorted((i for i, row in enumerate(ids) if row and read[i].strip()), key=lambda i: len(ids[i]))
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


class LabelTable:
    """Writes a csv or tsv with all columns of the input table, then `label` and `score`, both empty for an empty text.

    If the table already has columns of these names, such as the true labels, the new ones are `predicted_label` and `predicted_score`.

    Args:
        file: opened with `newline=""`.
        columns: columns of the first row; `None` if the texts are not rows of a table, for a single column with the text.
    """

    def __init__(self, file: IO[str], delimiter: str, columns: Mapping[str, Any] | None):
        self.of_a_table = columns is not None
        kept = ["text"] if columns is None else list(columns)
        taken = {"label", "score"} & set(kept)
        self.names = {name: f"predicted_{name}" if taken else name for name in ("label", "score")}
        if again := set(self.names.values()) & set(kept):
            raise UserError(f"the table has a column {sorted(again)[0]!r} already: rename it, or write jsonl")
        self.writer = csv.DictWriter(file, [*kept, *self.names.values()], delimiter=delimiter, lineterminator="\n")
        self.writer.writeheader()

    def write(self, result: Mapping[str, Any], columns: Mapping[str, Any] | None) -> None:
        """Write one row.

        Raises:
            UserError: a column that the first row did not have.
        """
        row = {"text": result["text"]} if columns is None else dict(columns)
        for name, written in self.names.items():
            row[written] = "" if result[name] is None else result[name]
        try:
            self.writer.writerow(row)
        except ValueError as error:  # names the column
            raise UserError(f"a csv has the columns of its first row: {error}; write jsonl") from error
