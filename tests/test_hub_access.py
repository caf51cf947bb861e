"""A name on the Hub is looked up once and quickly; where the Hub cannot be asked, its cache serves."""

import os
import socket

import pytest

from gpt_scratch import hub_access
from gpt_scratch.command_line import check_command_line
from gpt_scratch.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory, with a text; nothing answers at the Hub's address."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    for name in (
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "text.txt").write_text("{}", encoding="utf-8")
    return tmp_path


def test_the_cache_serves_where_the_hub_cannot_be_asked(folder, monkeypatch, capsys):
    (folder / "cache/hub/models--gpt2").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # put back afterwards
    monkeypatch.delenv("HF_HUB_OFFLINE")
    check_command_line("pretrain", ["--train_file", "text.txt", "--tokenizer_name", "gpt2"], None)
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "using the cached copy of gpt2" in capsys.readouterr().err
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        hub_access.refuse_unreachable("user/other")


def test_a_hub_that_answers_is_not_looked_up_in_the_cache(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        hub_access.refuse_unreachable("user/name")
    assert "HF_HUB_OFFLINE" not in os.environ
    with pytest.raises(UserError, match=r"^user/name: no such directory here, and the Hub cannot be reached \(127.0.0.1: .+\)"):
        hub_access.refuse_unreachable("user/name")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:{}", "127.0.0.1:{}"])
def test_a_proxy_is_asked_in_place_of_the_hub(folder, monkeypatch, proxy):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("http_proxy", proxy.format(listener.getsockname()[1]))
        assert hub_access.unreachable() is None
    assert hub_access.unreachable().startswith("127.0.0.1: ")


def test_the_cache_lies_where_the_variables_say(folder, monkeypatch):
    (folder / "elsewhere" / "models--user--name").mkdir(parents=True)
    assert not hub_access.is_cached("user/name")
    monkeypatch.setenv("HF_HUB_CACHE", "$PWD/elsewhere")
    monkeypatch.setenv("PWD", str(folder))
    assert hub_access.is_cached("user/name") and not hub_access.is_cached("user/other")
