"""Loading and verifying by a name on a hostile Hub: one line, bounded in time, memory and disk; nothing written outside of the cache."""

import json
import re

import pytest
from hostile_hub import BOUNDS, HTML, Answer, HostileHub, save_model
from huggingface_hub import constants
from stand_in_hub import Blob, Repo

from gpt_scratch import downloads
from gpt_scratch.errors import UserError
from gpt_scratch.inference.loading import load_language_model
from gpt_scratch.reference_outputs import write_reference_outputs
from gpt_scratch.verify_checkpoint import EQUAL, UNKNOWN, verify_checkpoint

pytestmark = pytest.mark.thorough


@pytest.fixture
def hub():
    with HostileHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder)
    write_reference_outputs(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".py"}


@pytest.fixture
def ready(hub, files, logged_in, monkeypatch, tmp_path):
    """The model stands on the Hub, and the cache is empty; at the end nothing may have been written elsewhere."""
    logged_in()
    repo = Repo(private=False)
    repo.commit("main", {name: Blob(data, name.endswith(".safetensors")) for name, data in files.items()}, "first")
    hub.repos["ada/model"] = repo
    hub.objects |= {blob.sha256: blob.content for blob in repo.commits[repo.branches["main"]].values() if blob.lfs}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "cache" / "hub"), raising=False)
    yield hub
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}
    assert not [request for request in hub.stranger.requests if "authorization" in request]


def attack(hub: HostileHub, pattern: str, **changes) -> None:
    def change(method: str, path: str, answer: Answer) -> None:
        if re.search(pattern, path) and (method == "GET" or "status" not in changes):
            for name, value in changes.items():
                setattr(answer, name, getattr(answer, name) | value if name == "headers" else value)

    hub.attack = change


def refused() -> str:
    with pytest.raises(UserError) as refusal:
        load_language_model("ada/model")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000
    verdict = verify_checkpoint("ada/model")
    assert verdict.status == UNKNOWN and "\n" not in verdict.line
    return str(refusal.value)


def test_a_model_on_an_honest_hub_is_loaded_and_verified(ready):
    model, tokenizer = load_language_model("ada/model")
    assert model.config.vocab_size == 300 and len(tokenizer("One day")["input_ids"]) > 0
    assert verify_checkpoint("ada/model").status == EQUAL


FILE = r"/(resolve|cdn|lfs)/.*"
CASES = {
    "html with status 200 for every file": (FILE, {"status": 200, "headers": {"Content-Type": "text/html"}, "body": HTML}),
    "a list for every file": (FILE, {"status": 200, "body": b"[]"}),
    "JSON nested 200,000 deep": (FILE, {"status": 200, "body": b"[" * 200_000}),
    "an error for every file": (FILE, {"status": 500, "body": b"\x1b[2Jforged\n" * 100}),
    "a redirect to a file": (FILE, {"status": 302, "headers": {"Location": "file:///etc/hostname"}, "body": b""}),
    "an ETag that leads out of the cache": (FILE, {"headers": {"ETag": '"../../../forged"', "X-Linked-ETag": '"../../../forged"'}}),
    "a commit that leads out of the cache": (FILE, {"headers": {"X-Repo-Commit": "../../../forged"}}),
}  # fmt: skip
HARMLESS = ("an ETag that leads out of the cache", "a commit that leads out of the cache")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(f"loading by name from a Hub with {name}", **BOUNDS)) for name in CASES]
)
def test_an_unexpected_answer_is_refused_in_one_line(ready, name):
    pattern, changes = CASES[name]
    attack(ready, pattern, **changes)
    if name in HARMLESS:  # the file itself is whole, or it is refused
        try:
            load_language_model("ada/model")
        except UserError as error:
            assert "\n" not in str(error)
    else:
        said = refused()
        assert "\x1b" not in said
    assert ready.reached


@pytest.mark.fault("a Hub that sends a file without end", seconds=60, mebibytes=500)
@pytest.mark.parametrize("place", [r"/resolve/.*/config\.json$", r"model\.safetensors$|/lfs/|/cdn/"])
def test_an_endless_file_is_stopped(ready, monkeypatch, place):
    monkeypatch.setattr(downloads, "UNCLAIMED", 20 * 2**20)
    attack(ready, place, endless=True, headers={"X-Linked-Size": str(10**10)})
    assert "sends more than 20,971,520 bytes" in refused()
    verdict = verify_checkpoint("ada/model", trust_remote_code=True)  # before a process of its own is started
    assert verdict.status == UNKNOWN and "sends more than 20,971,520 bytes" in verdict.line
    assert ready.sent < 200 * 2**20


@pytest.mark.fault("a Hub that says a file has 10 GB where the disk has room for less, or 10^15 bytes", **BOUNDS)
def test_a_file_larger_than_the_disk_is_not_downloaded(ready, monkeypatch):
    monkeypatch.setattr(downloads, "free_bytes", lambda: 2 * 2**30)
    attack(ready, "/cdn/", headers={"Content-Length": str(10**10)})
    assert "has 10,000,000,000 bytes, but only 2,147,483,648 are free" in refused()
    attack(ready, r"model\.safetensors$|/cdn/", headers={"Content-Length": str(10**15), "X-Linked-Size": str(10**15)})
    refused()


@pytest.mark.fault("a Hub that compresses a file with gzip", **BOUNDS)
def test_a_compressed_file_is_refused(ready):
    attack(ready, r"/resolve/.*/config\.json$", headers={"Content-Encoding": "gzip"})
    assert "compresses a file with gzip" in refused()


@pytest.mark.fault("an index of shards on the Hub that leads out of the repository", **BOUNDS)
def test_an_index_that_names_other_folders_is_refused(ready):
    repo = ready.repos["ada/model"]
    files = dict(repo.commits[repo.branches["main"]])
    del files["model.safetensors"]
    index = json.dumps({"metadata": {}, "weight_map": {"a": "../../../../forged.safetensors"}}).encode()
    repo.commit("main", files | {"model.safetensors.index.json": Blob(index, False)}, "second")
    assert "not a file in the same directory" in refused()
