"""Each setting of a classifier's run has its effect, and each metric is of the split that it names."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model
from transformers import DataCollatorWithPadding, TrainerState

from gpt_scratch import GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.data.classification import LabelledTexts
from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.classification import classification_metrics
from gpt_scratch.inference.classify import classify_texts
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments
from gpt_scratch.training.classification import (
    SPLITS,
    ClassificationArguments,
    ClassificationSplits,
    ClassifierTrainer,
    Predictions,
    encode_splits,
    figures_of_run,
    make_compute_metrics,
    make_loss,
    make_model,
    measure,
    plot_curves,
    read_splits,
    write_mistakes,
)

WORDS = ["noon", "five", "river", "phone", "home", "gold", "rain", "tea"]


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> str:
    """60 texts of ham and 30 of spam, of which 10 are copies of one another."""
    path = tmp_path_factory.mktemp("labelled") / "texts.csv"
    rows = [(f"see you at {WORDS[i % 8]} {i}", "ham") for i in range(60)] + [
        (f"win {WORDS[i % 8]} {i}", "spam") for i in range(20)
    ]
    rows += [("win a prize", "spam")] * 10
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return str(path)


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe([f"see you at {word}, win {word}" for word in WORDS], vocab_size=270)


def read(table: str, **flags) -> ClassificationSplits:
    return read_splits(ClassificationArguments(train_file=table, **flags))


def test_splits_follow_the_flags(table, capsys):
    splits = read(table)
    assert {name: part.counts() for name, part in splits.texts.items()} == {
        "train": {"ham": 42, "spam": 15}, "validation": {"ham": 6, "spam": 2}, "test": {"ham": 12, "spam": 4}}  # fmt: skip
    assert splits.copies_removed == 9 and splits.ids == {"ham": 0, "spam": 1} and splits.names == ["ham", "spam"]
    assert "9 duplicate texts were removed before splitting" in capsys.readouterr().out
    halves = read(table, split_fractions=[0.5, 0.25, 0.25])
    assert [len(part) for part in halves.texts.values()] == [30 + 10, 15 + 6, 15 + 5]
    assert read(table, split_seed=7).texts["test"].texts != splits.texts["test"].texts == read(table).texts["test"].texts
    copies = read(table, deduplicate=False)
    assert sum(map(len, copies.texts.values())) == 90 and copies.copies_removed == 0
    assert copies.also_in_train("test") == copies.texts["test"].texts.count("win a prize") > 0
    balanced = read(table, balance_classes=True)
    assert balanced.texts["train"].counts() == {"ham": 15, "spam": 15} and balanced.texts["test"].counts() == {
        "ham": 12,
        "spam": 4,
    }
    named = read(table, class_names=["spam", "ham"])
    assert named.ids == {"spam": 0, "ham": 1} and named.names == ["spam", "ham"]


def test_files_and_columns_follow_the_flags(tmp_path):
    for number, name in enumerate(SPLITS):
        rows = [{"body": f"{name} {i}", "kind": "ab"[i % 2], "text": "never read", "label": "neither"} for i in range(4 + number)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    files = {f"{name}_file": str(tmp_path / f"{name}.jsonl") for name in SPLITS}
    splits = read_splits(ClassificationArguments(split="files", text_column="body", label_column="kind", **files))
    assert {name: part.texts[-1] for name, part in splits.texts.items()} == {
        "train": "train 3", "validation": "validation 4", "test": "test 5"}  # fmt: skip
    assert splits.ids == {"a": 0, "b": 1}


def test_the_model_follows_the_flags(table, tokenizer, tmp_path):
    ids, train = {"ham": 0, "spam": 1, "eggs": 2}, read(table).texts["train"]
    made = {"config_overrides": "n_embd=16,n_layer=1,n_head=2,n_positions=24,drop_rate=0.25", "vocab_size": 275}
    model, own = make_model(ClassificationArguments(**made), ids, train, seed=1)
    assert (model.config.hidden_size, model.config.max_position_embeddings, model.config.residual_dropout) == (16, 24, 0.25)
    assert len(own) == model.config.vocab_size == 275 and model.config.id2label == {0: "ham", 1: "spam", 2: "eggs"}
    assert model.config.pad_token_id == own.pad_token_id is not None
    weights = [make_model(ClassificationArguments(**made), ids, train, seed)[0].score.weight for seed in (1, 2)]
    assert torch.equal(weights[0], model.score.weight) and not torch.equal(weights[1], model.score.weight)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    other = make_model(ClassificationArguments(**made, tokenizer_name=str(tmp_path / "tokenizer")), ids, train, seed=1)[1]
    assert other.get_vocab() == tokenizer.get_vocab() != own.get_vocab()
    resumed = make_model(ClassificationArguments(**made), ids, train, 1, resume=str(tmp_path / "tokenizer"))[1]
    assert resumed.get_vocab() == tokenizer.get_vocab()  # the run's own, and none trained anew

    base = tiny_model(cls=GPTScratchForCausalLM, vocab_size=len(tokenizer))
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    args = ClassificationArguments(model_name_or_path=str(tmp_path / "base"), config_overrides="drop_rate=0.4")
    model, own = make_model(args, ids, train, seed=1)
    assert (model.config.residual_dropout, model.config.attention_dropout, model.config.num_labels) == (0.4, 0.4, 3)
    assert torch.equal(model.model.norm.weight, base.model.norm.weight) and own.get_vocab() == tokenizer.get_vocab()
    with pytest.raises(UserError, match="only the dropout of a checkpoint can be changed"):
        make_model(
            ClassificationArguments(model_name_or_path=str(tmp_path / "base"), config_overrides="n_layer=1"), ids, train, 1
        )


def classifier(tokenizer, positions: int = 32) -> GPTScratchForSequenceClassification:
    return tiny_model(
        cls=GPTScratchForSequenceClassification, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=2,
        max_position_embeddings=positions,
    )  # fmt: skip


@pytest.mark.parametrize(("flag", "positions", "limit"), [(None, 32, 32), (4, 32, 4), (99, 6, 6)])
def test_texts_are_cut_at_the_length_of_the_flag(table, tokenizer, flag, positions, limit, capsys):
    splits = read(table)
    data = encode_splits(ClassificationArguments(max_length=flag), splits, classifier(tokenizer, positions), tokenizer)
    whole = {name: [len(tokenizer(text)["input_ids"]) for text in part.texts] for name, part in splits.texts.items()}
    description, printed = data.description(), capsys.readouterr().out
    for name, lengths in whole.items():
        cut = sum(length > limit for length in lengths)
        assert description[name] == {
            "rows": len(lengths), "classes": splits.texts[name].counts(), "texts_also_in_train": len(lengths) if name == "train" else 0,
            "texts_cut": cut, "longest": min(max(lengths), limit), "tokens": sum(min(length, limit) for length in lengths)}  # fmt: skip
        said = f"{name}: {cut} texts are longer than {limit} tokens and were truncated" in printed
        assert said == (cut > 0)
    assert description["copies_removed"] == 9


def test_the_loss_follows_the_flags(table, tokenizer):
    splits = read(table)
    data = encode_splits(ClassificationArguments(), splits, classifier(tokenizer), tokenizer)
    outputs, labels = SimpleNamespace(logits=torch.tensor([[2.0, 0.0], [5.0, 0.0]])), torch.tensor([0, 1])
    log_p = outputs.logits.log_softmax(-1)
    assert make_loss(ClassificationArguments(), SimpleNamespace(label_smoothing_factor=0.0), data) == {}  # the model's own
    weighted = make_loss(ClassificationArguments(class_weights=True), SimpleNamespace(label_smoothing_factor=0.0), data)[
        "compute_loss_func"
    ]
    weights = torch.tensor([57 / (2 * 42), 57 / (2 * 15)])
    assert weighted(outputs, labels).item() == pytest.approx(float(-(weights * log_p.diagonal()).sum() / 2), rel=1e-5)
    smoothed = make_loss(ClassificationArguments(), SimpleNamespace(label_smoothing_factor=0.2), data)["compute_loss_func"]
    expected = -(0.8 * log_p.diagonal() + 0.2 * log_p.mean(-1)).sum() / 2
    assert smoothed(outputs, labels).item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_metrics_are_of_the_named_split(table, tokenizer, tmp_path, strategy):
    """Against each text classified by itself. Weights are drawn at random, so that no split is all right or all wrong."""
    splits, model = read(table), classifier(tokenizer)
    tokenizer.padding_side = "right"
    data = encode_splits(ClassificationArguments(), splits, model, tokenizer)
    model.config.id2label = {0: "ham", 1: "spam"}
    args = ScratchTrainingArguments(
        str(tmp_path), use_cpu=True, disable_tqdm=True, per_device_eval_batch_size=4, train_sampling_strategy=strategy
    )
    trainer = ClassifierTrainer(
        model, args, train_dataset=data.rows["train"], eval_dataset=data.rows["validation"], processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer), compute_metrics=make_compute_metrics(),
    )  # fmt: skip
    measured, predictions = measure(trainer, data)
    accuracies = set()
    for name, part in splits.texts.items():
        alone = [next(classify_texts(model, tokenizer, [text], batch_size=1))["scores"] for text in part.texts]
        scores = np.array([[one["ham"], one["spam"]] for one in alone])
        expected = classification_metrics(scores, np.array([splits.ids[label] for label in part.labels]))
        found = {figure: measured[f"{name}_{figure}"] for figure in expected}
        assert found.pop("confusion_matrix") == expected.pop("confusion_matrix")
        assert found == {figure: pytest.approx(value, abs=1e-4) for figure, value in expected.items()}
        accuracies.add(round(expected["accuracy"], 3))
        if name == "test":
            by_text = dict(zip(predictions.texts.texts, predictions.scores[:, 1]))
            assert by_text == {text: pytest.approx(one["spam"], abs=1e-4) for text, one in zip(part.texts, alone)}
            assert [splits.ids[label] for label in predictions.texts.labels] == predictions.references.tolist()
    assert len(accuracies) > 1  # so that a figure of another split would be noticed
    trainer.state = TrainerState(
        global_step=9, epoch=3.0, log_history=[{"step": 9, "epoch": 3.0, "eval_loss": 0.5, "eval_accuracy": 0.75}]
    )
    figures = figures_of_run(trainer, data, measured, (5, 7), 2.5)
    assert (figures["trainable_parameters"], figures["all_parameters"], figures["steps"], figures["epochs"]) == (5, 7, 9, 3.0)
    assert figures["train_seconds"] == 2.5 and figures["labels"] == ["ham", "spam"] and figures["test_f1"] == measured["test_f1"]
    assert figures["curve"] == [{"step": 9, "epoch": 3.0, "eval_loss": 0.5, "eval_accuracy": 0.75}]


def test_the_table_of_mistakes_by_hand(tmp_path):
    texts = LabelledTexts(["one", "two", "three"], ["ham", "spam", "ham"], [5, 6, 7])
    scores = np.array([[0.4, 0.6], [0.2, 0.8], [0.1, 0.9]])
    write_mistakes(tmp_path / "mistakes.tsv", Predictions(texts, scores, np.array([0, 1, 0])), ["ham", "spam"])
    lines = (tmp_path / "mistakes.tsv").read_text(encoding="utf-8").splitlines()
    assert lines == ["confidence\tpredicted\ttrue\trow\ttext", "0.9000\tspam\tham\t7\tthree", "0.6000\tspam\tham\t5\tone"]


def test_curves_are_against_examples_seen(tmp_path, monkeypatch):
    from gpt_scratch.training import classification

    seen = []
    monkeypatch.setattr(
        classification, "save_lines", lambda history, labels, x, path, *rest: seen.append((history, labels, x, path.name))
    )
    plot_curves([{"step": 3, "epoch": 0.5, "loss": 1.0}, {"step": 6, "epoch": 1.0, "eval_accuracy": 0.5}], 40, tmp_path)
    assert [(path, x, [entry[x] for entry in history]) for history, _, x, path in seen] == [
        ("loss", "examples", [20.0, 40.0]), ("accuracy", "examples", [20.0, 40.0])]  # fmt: skip
