"""A Hub on loopback for these tests, and a client that talks to it from this process or from a fresh one."""

import os

import pytest
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _http, close_session
from stand_in_hub import StandInHub
from transformers.utils import hub as transformers_hub

from gpt_scratch.hub import upload
from gpt_scratch.verify_checkpoint import verify_checkpoint


@pytest.fixture
def hub():
    with StandInHub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def verified_in_this_process(monkeypatch):
    """By this package's code; its own code in its own process takes seconds, and has tests of its own."""
    monkeypatch.setattr(upload, "verify_checkpoint", lambda name, trust_remote_code: verify_checkpoint(name))


@pytest.fixture
def logged_in(hub, monkeypatch, tmp_path):
    """A function that makes this process a client of the stand-in Hub, with a token.

    The settings are what HF_ENDPOINT, HF_HUB_DISABLE_XET and the rest are read into when huggingface_hub is imported; the client is as it is.
    """

    def log_in(token: str | None = "hf_write"):
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)  # what huggingface_hub.create_repo and its kin ask
        monkeypatch.setattr(transformers_hub, "_hf_api", None)  # transformers keeps a client, with the endpoint of its first use
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)  # between the client's own retries
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        return hub

    yield log_in
    close_session()


@pytest.fixture
def client_environment(hub, tmp_path):
    """Environment of a fresh process that is logged in to the stand-in Hub, by the documented variables alone."""
    dropped = ("HF_HUB_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_write", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf_home")}
    return kept | ours | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def push(script, monkeypatch):
    """Runs scripts/push_to_hub.py in this process, without the download that follows: test_upload.py tests that."""
    module = script("push_to_hub")
    monkeypatch.setattr(module, "verify_upload", lambda contents, uploaded: 0.0)
    return lambda *argv: module.main(module.parse([str(word) for word in argv]))
