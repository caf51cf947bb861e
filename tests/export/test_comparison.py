"""An export whose logits differ from the model's is refused; NaN differs from everything."""

import pytest
import torch

from gpt_scratch.errors import UserError
from gpt_scratch.export.comparison import compare_logits


@pytest.mark.parametrize(
    ("scale", "difference", "refused"),
    [(1.0, 5e-5, False), (1.0, 2e-4, True), (10.0, 5e-4, False), (10.0, 2e-3, True), (1.0, torch.nan, True)],
)
def test_the_difference_is_relative_to_logits_above_one(scale, difference, refused):
    ours = [torch.full((1, 2, 3), scale / 2), torch.full((1, 4, 3), scale)]
    theirs = [ours[0], ours[1].clone()]
    theirs[1][0, 2, 1] += difference
    comparison = compare_logits(ours, theirs, "the reader", 1234)
    assert comparison.max_logit == scale
    if refused:
        with pytest.raises(UserError, match="verification failed: the reader computes logits that are up to"):
            comparison.refuse_difference()
    else:
        comparison.refuse_difference()


def test_what_is_printed_and_what_is_recorded():
    comparison = compare_logits([torch.tensor([[[4.0]]])], [torch.tensor([[[4.5]]])], "the reader", 1234)
    assert str(comparison).splitlines()[1:] == [
        "size:               1,234 bytes",
        "largest difference: 5.0e-01 between logits of up to 4.0",
    ]
    assert comparison.as_dict() == {
        "compared_with": "the reader",
        "bytes": 1234,
        "max_logit": 4.0,
        "max_logit_difference": 0.5,
    }
