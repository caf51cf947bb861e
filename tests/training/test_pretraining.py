"""Each setting of a pretraining run has its effect, and each metric is computed as named."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, token_ids
from transformers import AutoTokenizer, EarlyStoppingCallback, TrainerState, TrainingArguments

from gpt_scratch import GPTScratchConfig
from gpt_scratch.data.language_modeling import BlockSettings, Corpus, LanguageModelingData
from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.perplexity import evaluate_loss
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.arguments import ScratchTrainingArguments, keep_best_checkpoint, parse_arguments
from gpt_scratch.training.callbacks import SamplesCallback, TrainingLossCallback
from gpt_scratch.training.losses import set_language_modeling_loss
from gpt_scratch.training.optimizers import make_optimizers
from gpt_scratch.training.pretraining import (
    PretrainingArguments,
    check_arguments,
    make_callbacks,
    make_model,
    measure,
    model_config,
    prepare_data,
    resolve_vocab_size,
)
from gpt_scratch.training.run import evaluation_curve


@pytest.fixture(scope="module")
def tokenizer():
    return train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=270)


class Rows(list):
    """Rows of token ids that are decoded as the validation text."""

    def tokens(self, start: int, stop: int) -> np.ndarray:
        return self[0]["input_ids"][start:stop].numpy()


def rows(seed: int, count: int = 5) -> Rows:
    return Rows({"input_ids": row, "labels": row} for row in token_ids(count, 8, seed=seed))


def data() -> LanguageModelingData:
    return LanguageModelingData(rows(1), rows(2), {"train": {"tokens": 40}, "validation": {"tokens": 36, "bytes": 90}})


def arguments(tmp_path, **given) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), use_cpu=True, **given)


def test_metrics_are_computed_as_named(tmp_path):
    history = [
        {"step": 0, "epoch": 0.0, "eval_loss": 4.0, "num_input_tokens_seen": 0},
        {"step": 2, "epoch": 1.0, "loss": 3.5, "train_tokens_per_second": 10.0},
        {"step": 2, "epoch": 1.0, "eval_loss": 3.0, "train_eval_loss": 2.5, "num_input_tokens_seen": 64},
        {"step": 4, "epoch": 2.0, "eval_loss": 3.25, "num_input_tokens_seen": 128},
        {"step": 4, "epoch": 2.0, "train_tokens_per_second": 20.0},
    ]
    model, given = tiny_model(), data()
    state = TrainerState(global_step=4, epoch=2.0, log_history=history, num_input_tokens_seen=128)
    trainer = SimpleNamespace(model=model, args=arguments(tmp_path, per_device_eval_batch_size=2), state=state)
    metrics = measure(trainer, given, 12.5, eval_train_blocks=3)
    expected = evaluate_loss(model, given.validation)["loss"]
    assert metrics["validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["validation_perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert metrics["validation_predicted_tokens"] == 5 * 7
    assert metrics["validation_bits_per_byte"] == pytest.approx(expected / math.log(2) * 36 / 90, rel=1e-5)
    assert metrics["train_loss"] == pytest.approx(evaluate_loss(model, given.train[:3])["loss"], rel=1e-5)
    assert (metrics["best_validation_loss"], metrics["best_validation_step"]) == (3.0, 2)
    assert (metrics["steps"], metrics["epochs"], metrics["tokens_seen"], metrics["train_seconds"]) == (4, 2.0, 128, 12.5)
    assert metrics["train_tokens_per_second"] == 20.0 and metrics["data"] == given.description
    assert metrics["curve"][1] == {
        "step": 2, "epoch": 1.0, "eval_loss": 3.0, "train_eval_loss": 2.5, "num_input_tokens_seen": 64}  # fmt: skip
    assert "train_loss" not in measure(trainer, given, 12.5, eval_train_blocks=0)
    assert evaluation_curve(history, "eval_loss")[2] == {"step": 4, "epoch": 2.0, "eval_loss": 3.25}


def test_callbacks_follow_the_flags(tokenizer):
    args = PretrainingArguments(eval_train_blocks=2, sample_prompt=["Anna"], sample_tokens=7, sample_temperature=0.6, early_stopping_patience=4)  # fmt: skip
    callbacks = {type(callback): callback for callback in make_callbacks(args, data(), tokenizer, "title")}
    assert len(callbacks[TrainingLossCallback].rows) == 2
    samples = callbacks[SamplesCallback]
    assert ([text for text, _ in samples.prompts], samples.max_new_tokens, samples.temperature) == (["Anna"], 7, 0.6)
    assert callbacks[EarlyStoppingCallback].early_stopping_patience == 4
    given = data()
    callbacks = {type(callback): callback for callback in make_callbacks(PretrainingArguments(), given, tokenizer, "")}
    [(prompt, _)] = callbacks[SamplesCallback].prompts
    assert prompt == tokenizer.decode(given.validation[0]["input_ids"][:8])  # of the validation text
    assert not {TrainingLossCallback, EarlyStoppingCallback} & callbacks.keys()
    assert SamplesCallback not in map(type, make_callbacks(PretrainingArguments(sample_tokens=0), data(), tokenizer, ""))


def sample(tokenizer, folder: Path, **settings) -> list[str]:
    folder.mkdir()
    model = tiny_model(vocab_size=270, eos_token_id=tokenizer.eos_token_id)
    callback = SamplesCallback(tokenizer, ["One day", "Anna"], **settings)
    callback.on_evaluate(ScratchTrainingArguments(str(folder)), TrainerState(global_step=7), None, model=model)
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["prompt"]) for line in lines] == [(7, "One day"), (7, "Anna")]
    return [line["text"] for line in lines]


def test_samples_have_their_temperature_length_and_seed(tokenizer, tmp_path):
    greedy = sample(tokenizer, tmp_path / "greedy", max_new_tokens=12)
    assert sample(tokenizer, tmp_path / "cold", max_new_tokens=12, temperature=1e-4) == greedy
    hot = sample(tokenizer, tmp_path / "hot", max_new_tokens=12, temperature=1.0)
    assert hot != greedy and hot != sample(tokenizer, tmp_path / "other", max_new_tokens=12, temperature=1.0, seed=5)
    short = sample(tokenizer, tmp_path / "short", max_new_tokens=3)
    assert all(whole.startswith(part) and len(part) < len(whole) for whole, part in zip(greedy, short))


def test_optimizers_follow_the_flags(tmp_path):
    model = tiny_model("llama")
    args = arguments(tmp_path, learning_rate=3e-3, weight_decay=0.2, adam_beta1=0.8, adam_beta2=0.9, adam_epsilon=1e-6)
    assert make_optimizers(PretrainingArguments(), args, model) == {}  # Trainer's own
    optimizer, scheduler = make_optimizers(PretrainingArguments(weight_decay_on="all"), args, model)["optimizers"]
    [group] = optimizer.param_groups
    assert (group["weight_decay"], group["lr"], group["betas"], group["eps"]) == (0.2, 3e-3, (0.8, 0.9), 1e-6)
    assert len(group["params"]) == len(list(model.parameters())) and scheduler is None
    for given, rate in ((None, 3e-3), (0.02, 0.02)):
        made = PretrainingArguments(optimizer="muon", muon_learning_rate=given)
        factory, settings = make_optimizers(made, args, model)["optimizer_cls_and_kwargs"]
        groups = factory()(model, **settings).param_groups
        assert [group["lr"] for group in groups] == [rate, 3e-3, 3e-3]
        assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.0]
        assert all((group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6) for group in groups[1:])


@pytest.mark.parametrize("implementation", ["chunked", "full"])
def test_the_loss_follows_the_flags(tmp_path, implementation):
    model = tiny_model()
    trainer = SimpleNamespace(
        model=torch.nn.Sequential(model), args=arguments(tmp_path, label_smoothing_factor=0.3), label_smoother=1
    )
    set_language_modeling_loss(trainer, implementation)
    assert (model.loss_implementation, model.label_smoothing, trainer.label_smoother) == (implementation, 0.3, None)
    ids = token_ids(2, 8)
    log_p = model(ids).logits[:, :-1].log_softmax(-1)
    true, uniform = -log_p.gather(-1, ids[:, 1:, None])[..., 0], -log_p.mean(-1)
    smoothed = model.train()(ids, labels=ids).loss.item()
    assert smoothed == pytest.approx((0.7 * true + 0.3 * uniform).mean().item(), rel=1e-4)
    assert model.eval()(ids, labels=ids).loss.item() == pytest.approx(true.mean().item(), rel=1e-4)  # figures are not smoothed


def test_a_new_model_has_a_row_for_each_token_unless_the_user_says_otherwise(tokenizer):
    for overrides, size in ((None, len(tokenizer)), ("vocab_size=300", 300), ("n_vocab=301", 301), ('{"n_vocab": 302}', 302)):
        args = PretrainingArguments(config_overrides=overrides)
        config = model_config(args)
        resolve_vocab_size(tokenizer, args, config)
        assert config.vocab_size == size
    args = PretrainingArguments(config_overrides="initialization=pytorch")
    config = model_config(args)
    resolve_vocab_size(tokenizer, args, config)
    assert config.vocab_size == len(tokenizer)
    args = PretrainingArguments(config_overrides="vocab_size=50")
    with pytest.raises(UserError, match="the model of --config_overrides: the tokenizer has"):
        resolve_vocab_size(tokenizer, args, model_config(args))


def test_the_model_follows_the_flags(tokenizer):
    for overrides, size, positions in (("n_embd=32,n_head=2", 24, 24), ("n_embd=32,n_head=2,n_positions=99", 24, 99)):
        config = model_config(PretrainingArguments(block_size=size, config_overrides=overrides))
        assert (config.hidden_size, config.num_attention_heads, config.max_position_embeddings) == (32, 2, positions)
    args = PretrainingArguments(config_overrides="n_embd=16,n_layer=1,n_head=2", block_size=8)
    config = model_config(args)
    resolve_vocab_size(tokenizer, args, config)
    model = make_model(args, config, tokenizer)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert {name: getattr(model.config, name) for name in ids} == ids and model.num_parameters() > 0
    assert isinstance(model.config, GPTScratchConfig)


def test_the_best_checkpoint_is_kept_by_its_metric(tmp_path):
    args = arguments(tmp_path, eval_strategy="steps", eval_steps=7, save_strategy="steps", save_steps=14)
    keep_best_checkpoint(args, "eval_accuracy", greater_is_better=True)
    assert (args.metric_for_best_model, args.greater_is_better, args.load_best_model_at_end) == ("eval_accuracy", True, True)
    assert (args.save_strategy, args.save_steps) == (args.eval_strategy, 7)
    args = arguments(tmp_path, eval_strategy="epoch", metric_for_best_model="eval_f1", greater_is_better=True)
    keep_best_checkpoint(args)
    assert (args.metric_for_best_model, args.greater_is_better) == ("eval_f1", True)  # the user's


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset_config_name": "x"}, "--dataset_config_name has no effect without --dataset_name"),
        ({"early_stopping_patience": 2}, "--early_stopping_patience needs evaluations"),
        ({"streaming": True}, "--streaming needs --max_steps"),
        ({"muon_learning_rate": 0.1}, "--muon_learning_rate needs --optimizer muon"),
        ({"model_name_or_path": "x", "config_overrides": "n_layer=2"}, "--config_overrides is for new models"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, flags, message):
    (tmp_path / "text.txt").write_text("text", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        check_arguments(PretrainingArguments(train_file=[str(tmp_path / "text.txt")], **flags), arguments(tmp_path))


class Arrived(Exception):
    """What a function was called with."""


def test_rows_are_made_by_the_flags(tokenizer, tmp_path, monkeypatch):
    """Also those whose effect shows in no figure, such as the number of processes."""
    (tmp_path / "text.txt").write_text("One day, Anna lost her key. " * 20, encoding="utf-8")
    tokenizer.save_pretrained(tmp_path / "tokenizer")

    def stop(corpus, tokenizer, settings):
        raise Arrived(settings)

    monkeypatch.setattr(Corpus, "blocks", stop)
    args = PretrainingArguments(
        train_file=[str(tmp_path / "text.txt")], tokenizer_name=str(tmp_path / "tokenizer"), block_size=16, stride=5, append_eos=False,
        isolate_documents=True, parse_special_tokens=True, preprocessing_num_workers=3,
    )  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        prepare_data(args, model_config(args))
    assert arrived.value.args == (BlockSettings(16, 5, False, True, True, 3),)


def run(script, monkeypatch, tmp_path, *flags: str) -> tuple[dict, LanguageModelingData]:
    """The record of a run of one step, and the data that it was made on."""
    module, seen = script("pretrain"), []
    monkeypatch.setattr(module, "measure", lambda trainer, data, *rest: seen.append(data) or measure(trainer, data, *rest))
    argv = ["--config_overrides", "n_embd=16,n_layer=1,n_head=2", "--block_size", "16", "--use_cpu", "--disable_tqdm", "true", "--max_steps",
            "1", "--eval_strategy", "no", "--sample_tokens", "0", "--save_strategy", "no", "--output_dir", str(tmp_path / "out"), *flags]  # fmt: skip
    return module.main(*parse_arguments((PretrainingArguments, ScratchTrainingArguments), argv)), seen[0]


def test_the_data_follow_the_flags(script, monkeypatch, tmp_path):
    texts = [f"Day {i}: Anna lost her key. " * 3 for i in range(40)]
    lines = [json.dumps({"text": "never read", "story": text}) for text in texts]
    (tmp_path / "stories.jsonl").write_text("\n".join(lines), encoding="utf-8")
    record, used = run(script, monkeypatch, tmp_path, "--train_file", str(tmp_path / "stories.jsonl"), "--text_column", "story", "--vocab_size",
                       "290", "--stride", "6", "--append_eos", "false", "--isolate_documents", "--validation_split_percentage", "25")  # fmt: skip
    counts, whole = record["metrics"]["data"], sum(map(len, texts))
    train, validation = counts["train"], counts["validation"]
    assert train["characters"] + validation["characters"] == whole
    assert validation["characters"] / whole == pytest.approx(0.25, abs=0.04)
    tokenizer = json.loads((tmp_path / "out" / "tokenizer.json").read_text(encoding="utf-8"))
    assert len(tokenizer["model"]["vocab"]) + len(tokenizer["added_tokens"]) in (290, 292)  # special ones apart, or among them
    assert train["blocks"] == (train["tokens"] - 16) // 6 + 1  # every six tokens
    assert train["repeated_tokens"] == train["blocks"] * 16 - (train["tokens"] - train["dropped_tokens"])
    assert validation["repeated_tokens"] == 0  # side by side, so that each token is counted once
    first, second = used.train[0]["input_ids"], used.train[1]["input_ids"]
    assert torch.equal(first[6:], second[:10]) and "position_ids" in used.train[0]
    end = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    assert not any((row["input_ids"] == end).any() for row in (used.train[i] for i in range(len(used.train))))


def test_the_data_by_default_and_streamed(script, monkeypatch, tmp_path):
    lines = [json.dumps({"text": f"Day {i}: Anna lost her key. " * 3}) for i in range(40)]
    (tmp_path / "stories.jsonl").write_text("\n".join(lines), encoding="utf-8")
    flags = ["--train_file", str(tmp_path / "stories.jsonl"), "--vocab_size", "290"]
    record, used = run(script, monkeypatch, tmp_path, *flags)
    train = record["metrics"]["data"]["train"]
    assert (
        "position_ids" not in used.train[0] and train["repeated_tokens"] == train["blocks"] - 1
    )  # a token in common with the next row
    end = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["eos_token_id"]
    everything = torch.cat([used.train[i]["input_ids"] for i in range(len(used.train))])
    assert 30 <= int((everything == end).sum()) <= train["documents"] + 5
    (tmp_path / "out").rename(tmp_path / "first")
    record, used = run(script, monkeypatch, tmp_path, *flags, "--tokenizer_name", str(tmp_path / "first"), "--streaming", "--validation_documents",
                       "7")  # fmt: skip
    assert record["metrics"]["data"]["validation"]["documents"] == 7
    first = next(iter(used.train))["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "first").decode(first).startswith("Day 7:")
