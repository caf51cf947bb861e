"""Refusals of the server have OpenAI's form of an error, on one line."""

import json

import pytest

from gpt_scratch.inference.refusal import Refusal


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (503, "server_error"),
    ],
)
def test_the_kind_follows_from_the_status(status, kind):
    error = json.loads(Refusal(status, "a\nb \x1b[2J", "model", "model_not_found").body())["error"]
    assert error == {"message": "a b \\x1b[2J", "type": kind, "param": "model", "code": "model_not_found"}


def test_a_long_message_is_cut():
    assert len(json.loads(Refusal(400, "x" * 10_000).body())["error"]["message"]) <= 510
