"""Which parameters train, by the same flags in every script; flags without effect are refused."""

import warnings

import pytest
import torch
from tiny_models import tiny_model

from gpt_scratch import GPTScratchForSequenceClassification
from gpt_scratch.errors import UserError
from gpt_scratch.training.classification import ClassificationArguments, choose_trainable, read_splits
from gpt_scratch.training.finetuning import describe_trainable, dropout_overrides
from gpt_scratch.training.instructions import InstructionArguments
from gpt_scratch.training.instructions import choose_trainable as choose_trainable_of_instructions
from gpt_scratch.training.instructions import read_splits as read_splits_of_instructions


def trained(model: torch.nn.Module) -> set[str]:
    """The parts of a model of two blocks that train."""
    parts = {"model.layers.0": "0", "model.layers.1": "1", "model.norm": "norm", "score": "score"}
    return {
        next((short for part, short in parts.items() if name.startswith(part)), name)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ({"trainable": "head"}, {"score"}),
        ({"trainable": "last_blocks", "train_last_blocks": 1}, {"score", "norm", "1"}),
        ({"trainable": "last_block"}, {"score", "norm", "1"}),
        ({"trainable": "last_blocks"}, {"score", "norm", "0", "1"}),
        ({"trainable": "last_two_blocks"}, {"score", "norm", "0", "1"}),
        ({"trainable": "all"}, {"score", "norm", "0", "1", "model.embed_tokens.weight", "model.embed_positions.weight"}),
    ],
)
def test_what_trains_of_a_classifier(flags, parts, capsys):
    model = tiny_model(cls=GPTScratchForSequenceClassification, num_labels=3)
    model = choose_trainable(model, ClassificationArguments(**flags))
    assert trained(model) == parts
    trainable, everything = describe_trainable(model)
    assert trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert everything == model.num_parameters()
    assert f"trainable: {trainable:,} of {everything:,} parameters (" in capsys.readouterr().out


def test_what_trains_of_a_language_model():
    model = choose_trainable_of_instructions(tiny_model(), InstructionArguments(trainable="last_blocks", train_last_blocks=1))
    assert trained(model) == {"norm", "1"}
    assert InstructionArguments(trainable="last_blocks").train_last_blocks == 2
    with pytest.raises(UserError, match="--train_last_blocks 9: this model has 2 blocks"):
        choose_trainable_of_instructions(tiny_model(), InstructionArguments(trainable="last_blocks", train_last_blocks=9))


@pytest.mark.parametrize("kind", [ClassificationArguments, InstructionArguments])
def test_lora_has_the_rank_and_scale_of_the_flags(kind, recwarn):
    pytest.importorskip("peft")
    warnings.simplefilter("always", FutureWarning)
    is_classifier = kind is ClassificationArguments
    model = tiny_model(cls=GPTScratchForSequenceClassification) if is_classifier else tiny_model()
    choose = choose_trainable if is_classifier else choose_trainable_of_instructions
    settings = {} if is_classifier else {"lora_targets": ["q_proj"]}
    adapted = choose(model, kind(trainable="lora", lora_rank=3, lora_alpha=12, **settings))
    layers = [module for module in adapted.modules() if hasattr(module, "lora_A")]
    assert {layer.lora_A["default"].out_features for layer in layers} == {3}
    assert {layer.scaling["default"] for layer in layers} == {4.0}
    assert len(layers) == (2 if settings else 12)  # of two blocks: q_proj alone, or six projections each
    assert kind(trainable="lora").lora_rank == kind(trainable="lora").lora_alpha == 16
    assert not [
        str(warning.message) for warning in recwarn if "deprecated" in str(warning.message)
    ]  # the user cannot act on these


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        (ClassificationArguments, {"trainable": "last_two_blocks", "train_last_blocks": 3}, "use --trainable last_blocks with --train_last_blocks"),
        (ClassificationArguments, {"trainable": "all", "train_last_blocks": 3}, "--train_last_blocks needs --trainable last_blocks"),
        (ClassificationArguments, {"trainable": "head", "lora_rank": 4}, "--lora_rank needs --trainable lora: it has no effect with"),
        (InstructionArguments, {"lora_alpha": 4}, "--lora_alpha needs --trainable lora: it has no effect with --trainable all"),
        (InstructionArguments, {"lora_targets": ["q_proj"]}, "--lora_targets needs --trainable lora"),
        (InstructionArguments, {"train_last_blocks": 1}, "--train_last_blocks needs --trainable last_blocks"),
    ],
)  # fmt: skip
def test_flags_without_effect_are_refused(kind, flags, message):
    with pytest.raises(UserError, match=message):
        kind(**flags)


@pytest.mark.parametrize(
    ("kind", "read"), [(ClassificationArguments, read_splits), (InstructionArguments, read_splits_of_instructions)]
)
@pytest.mark.parametrize("name", ["validation_file", "test_file"])
def test_files_of_another_split_are_refused(kind, read, name):
    with pytest.raises(UserError, match=f"--{name} is only used with --split files"):
        read(kind(train_file="x.csv", **{name: "y.csv"}))


def test_only_dropout_of_a_checkpoint_can_be_changed():
    assert dropout_overrides("drop_rate=0.3") == {"drop_rate": 0.3} and dropout_overrides(None) == {}
    with pytest.raises(UserError, match="--config_overrides n_layer: only the dropout of a checkpoint can be changed"):
        dropout_overrides("n_layer=2,drop_rate=0.1")
