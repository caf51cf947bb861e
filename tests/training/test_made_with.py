"""The record of what a checkpoint was made with. What a resumed run refuses: test_resume.py."""

import torch

from gpt_scratch.training.made_with import fingerprint


def test_the_fingerprint_depends_on_content_alone():
    rows = [{"input_ids": torch.tensor([i, i + 1])} for i in range(10)]
    other = [{"input_ids": torch.tensor([i, i + 1 + (i == 7)])} for i in range(10)]
    assert fingerprint(rows) == fingerprint([dict(row) for row in rows]) != fingerprint(other)
    assert fingerprint(rows)["rows"] == 10 and fingerprint(None) is None
