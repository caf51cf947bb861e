"""Each setting of an instruction run has its effect, and each metric is computed as named."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_models import tiny_model
from transformers import EarlyStoppingCallback, TrainerState

from gpt_scratch.data.instruction import IGNORED, InstructionCollator
from gpt_scratch.data.padding import padding_share
from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.perplexity import evaluate_loss
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.callbacks import SamplesCallback
from gpt_scratch.training.finetuning import load_language_model
from gpt_scratch.training.instructions import (
    InstructionArguments,
    figures_of_run,
    held_out_losses,
    make_callbacks,
    prepare_data,
    read_splits,
    save_test_records,
    warn_of_little_room,
)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """20 records of growing replies; the last two, which validate, ask what the first two ask."""
    path = tmp_path_factory.mktemp("records") / "records.json"
    records = [{"instruction": f"Say {i % 18}.", "input": "", "output": "yes " * (i + 1)} for i in range(20)]
    path.write_text(json.dumps(records), encoding="utf-8")
    return str(path)


@pytest.fixture
def tokenizer():
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)  # a token a byte
    tokenizer.padding_side = "right"
    return tokenizer


def read(file: str, **flags):
    args = InstructionArguments(**{"train_file": file, "split_fractions": [0.8, 0.1, 0.1], "prompt_style": "phi3"} | flags)
    return args, read_splits(args)


def prepare(file: str, tokenizer, positions: int = 256, **flags):
    args, splits = read(file, **flags)
    training_args = SimpleNamespace(per_device_train_batch_size=4, train_sampling_strategy="random")
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=positions, eos_token_id=tokenizer.eos_token_id)
    return model, prepare_data(args, splits, model, tokenizer, training_args)


def replies(splits) -> dict[str, list[int]]:
    return {name: [record["output"].count("yes") for record in part.records] for name, part in splits.records.items()}


def test_splits_follow_the_flags(file):
    _, splits = read(file)
    assert replies(splits) == {"train": list(range(1, 17)), "test": [17, 18], "validation": [19, 20]}
    assert (splits.prompts_in_train("validation"), splits.prompts_in_train("test"), splits.removed) == (2, 0, 0)
    _, without = read(file, remove_shared_prompts=True)
    assert replies(without)["train"] == list(range(3, 17)) and (without.removed, without.prompts_in_train("validation")) == (2, 0)
    _, other = read(file, split_fractions=[0.5, 0.2, 0.3])
    assert [len(part) for part in (other.records[name] for name in ("train", "validation", "test"))] == [10, 4, 6]
    _, shuffled = read(file, split="random")
    _, again = read(file, split="random", split_seed=7)
    assert replies(shuffled) != replies(splits) and replies(again) != replies(shuffled)
    _, files = read(file, split="files", validation_file=file, test_file=file)
    assert [len(part) for part in files.records.values()] == [20, 20, 20]


def test_rows_follow_the_flags(file, tokenizer, capsys):
    _, plain = prepare(file, tokenizer)
    assert all(label != IGNORED for row in plain.train["labels"] for label in row[1:])
    _, masked = prepare(file, tokenizer, mask_prompt=True)
    prompt = len("<|user|>\nSay 0.\n<|assistant|>:\n")
    assert masked.train[0]["labels"][: prompt + 1] == [IGNORED] * prompt + [ord("y") - ord("!")]
    description = plain.description()
    assert description["train"] == {
        "records": 16, "prompts_also_in_train": 0, "tokens": sum(plain.train["length"]), "rows_cut": 0, "rows_left_out": 0,
        "trainable_tokens": sum(plain.train["length"]) - 16}  # fmt: skip
    assert description["validation"]["prompts_also_in_train"] == 2 and description["training_records_removed"] == 0
    assert masked.description()["train"]["trainable_tokens"] == sum(4 * i + 1 for i in range(1, 17))  # "yes " and the end
    _, cut = prepare(file, tokenizer, max_length=60)
    assert (
        max(cut.train["length"]) == 60
        and cut.description()["train"]["rows_cut"] == sum(n > 60 for n in plain.train["length"]) > 0
    )
    _, packed = prepare(file, tokenizer, packing=True, pack_length=120)
    assert max(packed.train["length"]) <= 120 and len(packed.train) < 16 and packed.padding_share < plain.padding_share
    assert sum(packed.train["length"]) == sum(plain.train["length"]) and "position_ids" in packed.train.column_names
    assert plain.padding_share == padding_share(plain.train["length"], 4, False) > 0
    for style, first in (("alpaca", "Below is an instruction"), ("chatml", "<|im_start|>user"), ("phi3", "<|user|>")):
        _, styled = prepare(file, tokenizer, 512, prompt_style=style)
        assert tokenizer.decode(styled.train[0]["input_ids"]).startswith(first)
        assert styled.sample_prompts[0][0].startswith(first)
    assert "warning" not in capsys.readouterr().out


def test_the_replies_to_learn_follow_the_flag(file, tokenizer, tmp_path):
    records = [{**record, "history": [["Hi", "hello"]]} for record in json.loads(Path(file).read_text(encoding="utf-8"))]
    (tmp_path / "turns.json").write_text(json.dumps(records), encoding="utf-8")
    shares = {
        learn: prepare(str(tmp_path / "turns.json"), tokenizer, mask_prompt=True, learn=learn)[1].description()["train"][
            "trainable_tokens"
        ]
        for learn in ("all", "last")
    }
    assert shares["all"] - shares["last"] == 16 * (len("hello") + 1)  # with its end-of-text token


def test_records_without_a_reply_are_left_out_by_the_flag_alone(file, tokenizer, tmp_path):
    records = json.loads(Path(file).read_text(encoding="utf-8"))
    records[2]["output"] = " "
    (tmp_path / "holes.json").write_text(json.dumps(records), encoding="utf-8")
    _, skipped = prepare(str(tmp_path / "holes.json"), tokenizer, skip_unusable=True)
    assert (skipped.description()["train"]["rows_left_out"], len(skipped.train)) == (1, 15)
    with pytest.raises(UserError, match="row 2: the reply is empty"):
        prepare(str(tmp_path / "holes.json"), tokenizer)


def test_samples_follow_the_flags(file, tokenizer):
    _, given = prepare(file, tokenizer, sample_replies=1)
    [(prompt, ids)] = given.sample_prompts
    assert prompt == tokenizer.decode(ids) == "<|user|>\nSay 0.\n<|assistant|>:\n"  # of the validation records
    args = InstructionArguments(sample_tokens=9, early_stopping_patience=4)
    callbacks = {type(callback): callback for callback in make_callbacks(args, given, tokenizer, "")}
    samples = callbacks[SamplesCallback]
    assert (samples.prompts, samples.max_new_tokens, samples.temperature) == (given.sample_prompts, 9, 0.0)
    assert callbacks[EarlyStoppingCallback].early_stopping_patience == 4
    _, none = prepare(file, tokenizer, sample_replies=0)
    assert not {SamplesCallback, EarlyStoppingCallback} & set(
        map(type, make_callbacks(InstructionArguments(), none, tokenizer, ""))
    )


def test_losses_are_computed_as_named(file, tokenizer):
    model, data = prepare(file, tokenizer)
    collator = InstructionCollator(tokenizer.pad_token_id)
    losses = held_out_losses(model, data, collator, 2, "after")
    _, masked = prepare(file, tokenizer, mask_prompt=True)
    expected = {
        "validation_response_loss": masked.encoded["validation"].rows,
        "test_response_loss": masked.encoded["test"].rows,
        "validation_loss_all_tokens": data.encoded["validation"].rows,
    }
    assert losses == {
        name: pytest.approx(evaluate_loss(model, rows, 1, collator)["loss"], rel=1e-5) for name, rows in expected.items()
    }
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    history = [{"step": 8, "epoch": 2.0, "eval_loss": 0.5, "num_input_tokens_seen": 99, "eval_runtime": 1.0}]
    state = TrainerState(global_step=8, epoch=2.0, num_input_tokens_seen=99, log_history=history)
    figures = figures_of_run(SimpleNamespace(state=state), data, (5, 7), {"x": 2.0}, losses | {"x": 1.0}, 3.5)
    assert (figures["x"], figures["x_before"], figures["test_response_loss"]) == (1.0, 2.0, losses["test_response_loss"])
    assert (figures["trainable_parameters"], figures["all_parameters"], figures["padding_share"]) == (5, 7, data.padding_share)
    assert (figures["steps"], figures["epochs"], figures["tokens_seen"], figures["train_seconds"]) == (8, 2.0, 99, 3.5)
    assert figures["curve"] == [{"step": 8, "epoch": 2.0, "eval_loss": 0.5, "num_input_tokens_seen": 99}]
    assert figures["data"] == data.description()


def test_little_room_for_a_reply_is_reported(file, tokenizer, capsys):
    labels = [[IGNORED] * 40 + [1] * 9, [IGNORED] * 50 + [1], [IGNORED] * 90]
    warn_of_little_room(labels, 50 + 64)
    assert capsys.readouterr().out == ""
    warn_of_little_room(labels, 50 + 63)
    assert (
        "warning: prompts have 50 tokens (median of the validation split), which leaves 63 of the model's 113"
        in capsys.readouterr().out
    )
    warn_of_little_room(labels, 32)
    assert "which leaves 0 of the model's 32 positions" in capsys.readouterr().out
    prepare(file, tokenizer, positions=90)
    assert "warning: prompts have 31 tokens" in capsys.readouterr().out


def test_the_checkpoint_follows_the_flags(tokenizer, tmp_path):
    base = tiny_model(vocab_size=280)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    other = train_byte_level_bpe(["one two one two"], vocab_size=262)
    other.save_pretrained(tmp_path / "other")
    model, own = load_language_model(str(tmp_path / "base"), None, "drop_rate=0.3")
    assert (model.config.residual_dropout, model.config.embedding_dropout) == (
        0.3,
        0.3,
    ) and own.get_vocab() == tokenizer.get_vocab()
    assert model.config.eos_token_id == model.generation_config.eos_token_id == own.eos_token_id
    model, own = load_language_model(str(tmp_path / "base"), str(tmp_path / "other"))
    assert own.get_vocab() == other.get_vocab() and model.generation_config.eos_token_id == other.eos_token_id


def test_test_records_are_written_as_they_were(file, tmp_path):
    _, splits = read(file)
    save_test_records(str(tmp_path), splits.records["test"])
    assert json.loads((tmp_path / "test.json").read_text(encoding="utf-8")) == splits.records["test"].records
