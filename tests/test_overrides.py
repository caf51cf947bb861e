"""`--config_overrides`: both forms, and what is refused."""

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.overrides import read_overrides, refuse_sizes, refuse_unknown_names


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (None, {}),
        ("", {}),
        ("n_embd=384, n_layer=6", {"n_embd": 384, "n_layer": 6}),
        ("drop_rate=1e-3,norm_type=rmsnorm,qkv_bias=true", {"drop_rate": 0.001, "norm_type": "rmsnorm", "qkv_bias": True}),
        ('{"n_embd": 384, "rope_parameters": {"rope_theta": 5e5}}', {"n_embd": 384, "rope_parameters": {"rope_theta": 5e5}}),
    ],
)
def test_both_forms(text, values):
    assert read_overrides(text) == values


@pytest.mark.parametrize("text", ["n_embd", "n_embd=[", '{"n_embd": 384', '{"a": ' + "[" * 100_000])
def test_other_forms_are_refused(text):
    with pytest.raises(UserError, match="write name=value pairs separated by commas, or a JSON object"):
        read_overrides(text)


def test_unknown_names_are_refused_with_the_closest_one():
    refuse_unknown_names({"n_embd": 384}, {"n_embd", "n_layer"})
    with pytest.raises(UserError, match="config_overrides: unknown name 'n_embed'; did you mean 'n_embd'"):
        refuse_unknown_names({"n_embed": 384}, {"n_embd", "n_layer"})


def test_only_the_dropout_of_a_checkpoint_can_be_changed():
    refuse_sizes({"drop_rate": 0.1})
    with pytest.raises(UserError, match="n_layer: only the dropout of a checkpoint can be changed"):
        refuse_sizes({"drop_rate": 0.1, "n_layer": 2})
