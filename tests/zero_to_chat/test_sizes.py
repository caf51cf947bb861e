"""The rule: the sizes that follow from a depth, and estimates that equal the model."""

import pytest

from gpt_scratch.zero_to_chat.sizes import (
    DEPTHS,
    EPOCHS,
    QUESTIONS_A_STEP,
    STARTING,
    make_model,
    make_size,
    seconds_of_stages,
    training_bytes,
    training_flops,
)


@pytest.mark.parametrize("name", ["2", "tiny", "small"])
def test_parameters_are_those_of_the_model(name):
    size = make_size(name, 240_000)
    model = make_model(size)
    assert model.num_parameters() == size.parameters
    assert (model.config.hidden_size, model.config.num_hidden_layers) == (size.width, size.depth)
    assert model.config.head_dim in (32, 64)
    assert model.config.initializer_range == pytest.approx((2 / (5 * size.width)) ** 0.5, rel=0.05)
    assert training_bytes(size) > 16 * size.parameters


def test_sizes_of_the_rule():
    tiny, large = make_size("tiny", 240_000), make_size("124M", float("inf"))
    assert (tiny.width, tiny.heads, tiny.vocabulary, tiny.positions, tiny.rows) == (128, 4, 1024, 128, 16)
    # The text has fewer tokens than 20 a parameter: four times the text.
    assert tiny.pretraining_tokens == pytest.approx(4 * 240_000, rel=0.01)
    mixed = make_size("tiny", 240_000, exercises=True)
    assert mixed.exercises == 32_000 and tiny.exercises == 0
    assert mixed.pretraining_tokens == pytest.approx(4 * (240_000 + 31 * 32_000), rel=0.01)
    # Enough text: 20 a parameter.
    assert (large.width, large.heads) == (768, 12) and 100e6 < large.parameters < 135e6
    assert large.pretraining_tokens == pytest.approx(20 * large.parameters, rel=0.01)
    assert tiny.instruction_steps * tiny.dialogue_rows == pytest.approx(EPOCHS * tiny.dialogues, rel=0.01)
    assert tiny.reinforcement_steps * QUESTIONS_A_STEP == tiny.questions
    rates = [make_size(name, float("inf")).rates["pretraining"] for name in DEPTHS]
    assert rates == sorted(rates, reverse=True)  # larger models learn at lower rates
    assert tiny.rates["pretraining"] == pytest.approx(2 * tiny.rates["instructions"], rel=0.01) and tiny.dialogue_rows == 32


def test_the_users_own_data_set_the_steps():
    size = make_size("tiny", 240_000, dialogues=640, questions=64)
    assert (size.dialogues, size.questions, size.reinforcement_steps) == (640, 64, 2)
    assert size.instruction_steps == EPOCHS * 640 // size.dialogue_rows


def test_flops_are_six_a_weight_and_more_for_attention():
    size = make_size("124M", float("inf"))
    assert 6 * size.parameters < training_flops(size) < 8 * size.parameters


def test_a_step_takes_its_least_time_however_fast_the_machine_is():
    size = make_size("tiny", 240_000)
    fast = seconds_of_stages(size, float("inf"), 0.05, 0.02)
    assert fast["pretraining"] == pytest.approx(STARTING + 0.05 * size.pretraining_steps)
    assert fast["reinforcement"] == pytest.approx(STARTING + (0.1 + 24 * 0.02) * size.reinforcement_steps)
    slow = seconds_of_stages(size, 1000.0, 0.05, 0.02)
    assert slow == seconds_of_stages(size, 1000.0) and slow["pretraining"] > STARTING + size.pretraining_tokens / 1000.1
