"""Lengths of preference pairs against the positions of the models, before TRL sees them; the figures of a run."""

import json
from types import SimpleNamespace

import datasets
import pytest
from transformers import TrainerState

from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.inference.chat_template import apply_chat_template
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe
from gpt_scratch.training.preferences import (
    PreferenceArguments,
    PreferenceData,
    figures_of_run,
    fit_lengths,
    read_data,
    read_pairs,
)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_byte_level_bpe(["Say it. It is so. No."], vocab_size=258)  # a token a byte
    set_prompt_style(tokenizer, "phi3")
    return tokenizer


def pairs(*lengths: tuple[int, int, int]) -> PreferenceData:
    """Letters of prompt, chosen and rejected of each pair, in every split."""
    rows = [
        {"prompt": [{"role": "user", "content": "p" * p}], "chosen": [{"role": "assistant", "content": "c" * c}],
         "rejected": [{"role": "assistant", "content": "r" * r}]}
        for p, c, r in lengths
    ]  # fmt: skip
    return PreferenceData(
        {split: datasets.Dataset.from_list(rows) for split in ("train", "validation")}, {"train": 0, "validation": 0}
    )


def template(tokenizer) -> tuple[int, int]:
    """Tokens that the template adds to a prompt, and to prompt and reply."""
    user, reply = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
    prompt = apply_chat_template(tokenizer, [user], tokenize=True, return_dict=True, add_generation_prompt=True)["input_ids"]
    return len(prompt), len(apply_chat_template(tokenizer, [user, reply], tokenize=True, return_dict=True)["input_ids"])


def settings(**given) -> SimpleNamespace:
    return SimpleNamespace(**({"max_length": 1024, "truncation_mode": "keep_start", "max_completion_length": 10} | given))


def test_pairs_beyond_the_positions_are_cut_and_counted(tokenizer, capsys):
    prompt, whole = template(tokenizer)
    positions, args = whole + 30, settings()
    fit_lengths("dpo", args, pairs((10, 20, 20), (10, 20, 21), (10, 21, 1), (1, 1, 1)), tokenizer, {"the model": positions})
    assert args.max_length == positions
    assert capsys.readouterr().out == "".join(
        f"{split}: 2 of 4 pairs are longer than {positions} tokens and are cut there\n" for split in ("train", "validation")
    )
    args = settings(max_length=20 + whole)
    fit_lengths("reward", args, pairs((10, 10, 10), (10, 10, 11)), tokenizer, {"the model": positions})
    assert args.max_length == 20 + whole  # given lower: kept
    assert "train: 1 of 2 pairs are longer than" in (printed := capsys.readouterr().out) and "are left out" in printed
    args = settings(max_length=None)
    fit_lengths("dpo", args, pairs((1, 1, 1)), tokenizer, {"the model": positions})
    assert args.max_length == positions and capsys.readouterr().out == ""


def test_a_prompt_that_fills_the_positions_is_refused_before_training(tokenizer):
    prompt, whole = template(tokenizer)
    fit_lengths("dpo", settings(), pairs((10, 1, 2)), tokenizer, {"the model": prompt + 11})
    for args in (settings(), settings(max_length=prompt + 10)):
        with pytest.raises(
            UserError,
            match=rf"train split pairs 1, 2: the prompt has {prompt + 10} tokens or more, .*; validation split pairs 1, 2:",
        ):
            fit_lengths(
                "dpo",
                args,
                pairs((1, 1, 2), (10, 1, 2), (11, 1, 2)),
                tokenizer,
                {"the model": prompt + (10 if args.max_length == 1024 else 90)},
            )
    fit_lengths("dpo", settings(truncation_mode="keep_end"), pairs((10, 1, 2)), tokenizer, {"the model": prompt + 10})
    with pytest.raises(UserError, match="all pairs of the train split are longer than"):
        fit_lengths("reward", settings(), pairs((10, 1, 2)), tokenizer, {"the model": whole + 11})


def test_replies_that_grpo_may_write_must_fit_both_models(tokenizer):
    prompt, _ = template(tokenizer)
    models = {"the model": prompt + 25, "the reward model": prompt + 20}
    fit_lengths("grpo", settings(), pairs((10, 1, 1), (3, 1, 1)), tokenizer, models)
    with pytest.raises(UserError, match=r"pair 1 .* so 9 of the reward model's \d+ positions .* pass --max_completion_length 9"):
        fit_lengths("grpo", settings(), pairs((3, 1, 1), (11, 1, 1)), tokenizer, models)
    with pytest.raises(UserError, match=r"so 0 of the reward model's \d+ positions .* is 10: shorten it"):
        fit_lengths("grpo", settings(), pairs((40, 1, 1)), tokenizer, models)


def test_the_figures_of_a_run_are_those_of_its_last_evaluation():
    history = [{"step": 2, "epoch": 0.5, "eval_loss": 0.7, "eval_runtime": 1.0}, {"step": 3, "loss": 0.1},
               {"step": 4, "epoch": 1.0, "eval_loss": 0.6, "eval_rewards/margins": 0.2, "eval_samples_per_second": 9.0}]  # fmt: skip
    trainer = SimpleNamespace(state=TrainerState(global_step=4, epoch=1.0, log_history=history))
    data = PreferenceData({"train": datasets.Dataset.from_list([{"prompt": "p"}] * 3)}, {"train": 1})
    figures = figures_of_run(trainer, data, 7.5)
    assert figures["data"] == {"train": {"pairs": 3, "pairs_of_equal_replies_left_out": 1}}
    assert {name: value for name, value in figures.items() if name not in ("data", "curve")} == {
        "eval_loss": 0.6, "eval_rewards/margins": 0.2, "steps": 4, "epochs": 1.0, "train_seconds": 7.5}  # fmt: skip
    assert [entry["step"] for entry in figures["curve"]] == [2, 4]


def test_pairs_follow_the_flags(tmp_path):
    rows = [{"instruction": f"Add {i}.", "input": "1 2", "chosen": "3", "rejected": "4", "note": "x"} for i in range(20)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    flags = {"train_file": str(tmp_path / "pairs.json"), "ignore_keys": ["note"]}
    data = read_pairs(PreferenceArguments(**flags, split_fractions=[0.5, 0.3, 0.2], prompt_style="phi3"))
    assert {name: len(part) for name, part in data.rows.items()} == {"train": 10, "validation": 6, "test": 4}
    assert data.rows["train"][0]["prompt"][0]["content"] == "Add 0.\n1 2"
    assert data.rows["test"][0]["prompt"][0]["content"].startswith("Add 10.")  # in the order of the file, train and test first
    styled = read_pairs(PreferenceArguments(**flags, prompt_style="chatml")).rows["train"]
    assert styled[0]["prompt"][0]["content"] == "Add 0.\n\n1 2"
    with pytest.raises(UserError, match="unknown key 'note'"):
        read_pairs(PreferenceArguments(train_file=flags["train_file"]))


def test_questions_follow_the_flags(tmp_path):
    rows = [{"instruction": f"Add {i % 18}.", "output": "3", "note": "x"} for i in range(20)]
    (tmp_path / "asked.json").write_text(json.dumps(rows), encoding="utf-8")
    flags = {"train_file": str(tmp_path / "asked.json"), "ignore_keys": ["note"], "reward": ["exact_match"]}
    data = read_data(PreferenceArguments(**flags, split_fractions=[0.5, 0.3, 0.2]))
    assert data.description() == {"train": {"questions": 10}, "validation": {"questions": 6, "questions_also_in_train": 2}}
    data = read_data(PreferenceArguments(**flags, validation_file=flags["train_file"]))
    assert data.description() == {"train": {"questions": 20}, "validation": {"questions": 20, "questions_also_in_train": 20}}


class Arrived(Exception):
    """What a function of the script was called with."""


def test_success_is_measured_by_the_flags(script, monkeypatch):
    module = script("finetune_preferences")

    def stop(*arguments):
        raise Arrived(*arguments)

    monkeypatch.setattr(module, "measure_success", stop)
    args = PreferenceArguments(reward=["length", "exact_match"], success_questions=7, prompt_style="phi3")
    training = SimpleNamespace(reward_weights=[1.0, 0.5])
    trainer = SimpleNamespace(model="model", processing_class="tokenizer", args=training)
    with pytest.raises(Arrived) as arrived:
        module.success_of(trainer, args, SimpleNamespace(questions={"validation": "asked"}))
    model, tokenizer, asked, style, rewards, weights, settings, count = arrived.value.args
    assert (model, tokenizer, asked, style, weights, settings, count) == (
        "model", "tokenizer", "asked", "phi3", [1.0, 0.5], training, 7)  # fmt: skip
    assert [reward.name for reward in rewards] == ["length", "exact_match"]
    assert module.success_of(trainer, PreferenceArguments(), None) == {}
