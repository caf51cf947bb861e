"""scripts/push_to_hub.py against a Hub on loopback: the unmodified huggingface_hub client on one side, stand_in_hub.py on the other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from tiny_models import randomize, tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpt_scratch.errors import UserError
from gpt_scratch.hub import upload as upload_module
from gpt_scratch.reference_outputs import write_reference_outputs
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

ROOT = Path(__file__).resolve().parents[2]
CARD = "---\nlibrary_name: transformers\ntags:\n- gpt_scratch\n---\n\n# A model\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. Tom had a cat."] * 20, vocab_size=300)
    tiny_model("gpt2", vocab_size=300).save_pretrained(folder, max_shard_size="50KB")
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "training_args.bin").write_bytes(b"pickle of /home/ada")
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def puts(hub) -> list[str]:
    return [path for method, path in hub.requests if method == "PUT"]


def expected(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "training_args.bin"}


STRANGER = """
import json, sys
sys.modules["gpt_scratch"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("ada/first", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("ada/first", trust_remote_code=True, revision=sys.argv[1])
ids = tokenizer("One day, Anna", return_tensors="pt")["input_ids"]
with torch.no_grad():
    print(json.dumps([type(model).__module__, ids.tolist(), model(ids).logits[0, -1].tolist()]))
"""


@pytest.mark.thorough
def test_upload_download_and_load(folder, script, logged_in, capsys, tmp_path):
    hub, module = logged_in(), script("push_to_hub")
    commit = module.main(module.parse([str(folder), "first"]))
    assert commit == hub.repos["ada/first"].branches["main"] and hub.files("ada/first") == expected(folder)
    assert not hub.repos["ada/first"].private
    printed = capsys.readouterr().out
    assert "downloaded again: 16 checksums equal; loaded without this package, its logits differ by 0.0e+00" in printed
    model = AutoModelForCausalLM.from_pretrained("ada/first", revision=commit, cache_dir=tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained("ada/first", cache_dir=tmp_path / "cache")
    ids = tokenizer("One day, Anna", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, tiny_model("gpt2", vocab_size=300)(ids).logits)


@pytest.mark.slow
def test_upload_download_and_load_in_processes_of_their_own(folder, hub, client_environment, tmp_path):
    """As a user does it, with the documented environment variables and nothing else."""
    write_reference_outputs(folder)
    command = [sys.executable, ROOT / "scripts" / "push_to_hub.py", folder, "first", "--private"]
    environment = client_environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert "computes its reference_outputs.json without this package, with and without the cache" in printed
    commit = hub.repos["ada/first"].branches["main"]
    assert f"uploaded to {hub.endpoint}/ada/first/commit/{commit}" in printed
    assert (
        f"downloaded again: {len(expected(folder))} checksums equal; loaded without this package, its logits differ by 0.0e+00"
        in printed
    )
    assert printed[-2] == f'load it with from_pretrained("ada/first", trust_remote_code=True, revision="{commit}")'
    command = [sys.executable, "-m", *printed[-1].removeprefix("verify it with python -m ").split()]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0 and done.stdout.startswith("ada/first: reproduces the outputs stored when it was written"), (
        done.stderr
    )
    assert hub.repos["ada/first"].private and hub.files("ada/first") == expected(folder)

    command = [sys.executable, "-c", STRANGER, commit]
    done = subprocess.run(command, env=client_environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    module, ids, logits = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.")
    model = tiny_model("gpt2", vocab_size=300)
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(logits), model(torch.tensor(ids)).logits[0, -1], atol=1e-5, rtol=0)


def test_a_dry_run_needs_no_network_and_sends_nothing(folder, push, hub, capsys):
    assert push(folder, "first", "--dry-run") is None  # HF_HUB_OFFLINE is set in these tests: a request would be an error
    printed = capsys.readouterr().out
    assert "stays here, of no use to others: training_args.bin" in printed
    assert (
        "no secrets found, and no paths of this machine" in printed
        and "looked for: access tokens and keys" in printed
        and "0.2 MB  in 16 files" in printed
    )
    assert hub.requests == []


class Arrived(Exception):
    """What a function of the script was called with."""


def test_each_flag_reaches_the_upload(folder, script, monkeypatch):
    module, opened = script("push_to_hub"), []

    def stop(*given, **more):
        raise Arrived(*given, *more.values())

    monkeypatch.setattr(module, "open_repository", lambda *given: opened.append(given) or SimpleNamespace(id="ada/first"))
    monkeypatch.setattr(module, "upload", stop)
    monkeypatch.setattr(module, "write_stock_checkpoint", stop)
    (folder / "checkpoint-3").mkdir()
    (folder / "checkpoint-3" / "trainer_state.json").write_text("{}", encoding="utf-8")
    given = {}
    for flags in (
        [],
        ["--private", "--revision", "trial", "--update", "--message", "Again", "--exclude", "*.md", "--with_training_state"],
    ):
        with pytest.raises(Arrived) as arrived:
            module.main(module.parse([str(folder), "first", *flags]))
        contents, _, message, update = arrived.value.args
        given[bool(flags)] = (message, update, "README.md" in contents.files, "checkpoint-3/trainer_state.json" in contents.files)
    assert given == {False: ("Upload with gpt_scratch", False, True, False), True: ("Again", True, False, True)}
    assert opened == [("first", None, "main"), ("first", True, "trial")]
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse([str(folder), "first", "--layout", "llama", "--exclude", "*.md", "b"]))
    assert (arrived.value.args[:2], arrived.value.args[3]) == ((str(folder), "llama"), ("*.md", "b"))


def test_secrets_stop_it_before_anything_is_sent(folder, push, logged_in, capsys):
    hub = logged_in()
    (folder / "metrics.json").write_text('{"command": "/home/ada/run"}', encoding="utf-8")
    with pytest.raises(UserError, match="names paths of a machine"):
        push(folder, "first")
    printed = capsys.readouterr().out
    assert "found metrics.json, line 1: an absolute path of a machine\n" in printed and "ada" not in printed.split("found")[1]
    (folder / "notes.md").write_text("hf_" + "aB3" * 12, encoding="utf-8")
    with pytest.raises(UserError, match="holds an access token, key or password"):
        push(folder, "first", "--allow_paths")
    assert hub.requests == []
    push(folder, "first", "--allow_paths", "--exclude", "*.md")
    assert "metrics.json" in hub.files("ada/first") and "notes.md" not in hub.files("ada/first")


def test_a_second_run_after_an_interruption_sends_only_what_is_missing(folder, push, logged_in):
    hub = logged_in()
    shards = len(list(folder.glob("*.safetensors")))
    assert shards > 2
    hub.drop = lambda method, path: method == "PUT" and path != puts(hub)[0]  # the connection is lost after the first file
    with pytest.raises(UserError, match="connection to the Hub broke off.*run the same command again") as error:
        push(folder, "first")
    assert "\n" not in str(error.value)
    assert len(hub.objects) == 1 and hub.files("ada/first") == {}  # nothing half-way is visible
    arrived = set(hub.objects)
    hub.drop, hub.requests = lambda method, path: False, []
    push(folder, "first")  # no --update: the repository holds nothing yet
    assert len(puts(hub)) == shards - 1 and not arrived & {path.split("/")[-1] for path in puts(hub)}
    assert hub.files("ada/first") == expected(folder)


@pytest.mark.parametrize("lost", ["/api/repos/create", "/api/whoami-v2", "/commit/main"])
def test_a_lost_connection_at_any_point(folder, push, logged_in, lost):
    hub = logged_in()
    hub.drop = lambda method, path: path.endswith(lost)
    with pytest.raises(UserError, match="connection to the Hub broke off"):
        push(folder, "first")
    hub.drop = lambda method, path: False
    push(folder, "first")
    assert hub.files("ada/first") == expected(folder)


def test_a_short_failure_is_retried(folder, push, logged_in):
    hub, failed = logged_in(), []
    hub.drop = lambda method, path: method == "PUT" and path not in failed and not failed.append(path)
    push(folder, "first")
    assert len(failed) > 2 and hub.files("ada/first") == expected(folder)


def test_not_logged_in(folder, push, logged_in):
    logged_in(token=None)
    with pytest.raises(UserError, match="not logged in to the Hub: run `hf auth login`"):
        push(folder, "first")
    logged_in(token="hf_expired")
    with pytest.raises(UserError, match="the Hub does not accept the token"):
        push(folder, "first")


@pytest.mark.thorough
def test_no_permission(folder, push, logged_in):
    hub = logged_in()
    with pytest.raises(UserError, match='no permission to write to bob/x: .* namespace "bob"'):
        push(folder, "bob/x")
    push(folder, "first")
    logged_in(token="hf_read")
    (folder / "README.md").write_text(CARD + "more", encoding="utf-8")
    with pytest.raises(UserError, match="no permission to write to ada/first"):
        push(folder, "ada/first", "--update")
    with pytest.raises(UserError, match="no permission to write to ada/second"):
        push(folder, "ada/second")
    assert set(hub.repos) == {"ada/first"} and hub.files("ada/first")["README.md"] == CARD.encode()


@pytest.mark.thorough
def test_a_repository_that_exists(folder, push, logged_in, capsys):
    hub = logged_in()
    first = push(folder, "first")
    assert push(folder, "first") == first  # nothing has changed: the same command once more is no error, and no commit
    randomized = randomize(tiny_model("gpt2", vocab_size=300), seed=1)
    for shard in folder.glob("model*"):
        shard.unlink()
    randomized.save_pretrained(folder)  # one file now, where shards and their index were
    with pytest.raises(UserError, match="ada/first exists and holds 17 files: pass --update"):
        push(folder, "first")
    assert hub.repos["ada/first"].branches["main"] == first
    push(folder, "first", "--update")
    assert "deleted there, since it belongs to other weights: model-00001-of" in capsys.readouterr().out
    assert hub.files("ada/first") == expected(folder)


@pytest.mark.thorough
def test_a_model_that_computes_what_it_did_is_verified_before_and_after(folder, script, logged_in, capsys, monkeypatch):
    hub, module = logged_in(), script("push_to_hub")
    write_reference_outputs(folder)
    seen = []
    verify = upload_module.verify_checkpoint
    monkeypatch.setattr(
        upload_module,
        "verify_checkpoint",
        lambda name, **settings: seen.append((Path(name).name, settings)) or verify(name, **settings),
    )
    monkeypatch.setattr(upload_module, "_logits_alone", lambda folders, scratch: [torch.ones(1, 3)] * 2)  # tested above
    commit = module.main(module.parse([str(folder), "first"]))
    assert seen == [("model", {"trust_remote_code": True}), ("downloaded", {"trust_remote_code": True})]
    printed = capsys.readouterr().out
    assert "computes its reference_outputs.json without this package, with and without the cache" in printed
    command = f"verify it with python -m gpt_scratch.verify_checkpoint ada/first --revision {commit} --trust_remote_code"
    assert printed.splitlines()[-1] == command
    assert "reference_outputs.json" in hub.files("ada/first")


def test_a_model_that_computes_something_else_is_not_uploaded(folder, push, logged_in):
    hub = logged_in()
    write_reference_outputs(folder)
    for shard in folder.glob("model*"):
        shard.unlink()
    randomize(tiny_model("gpt2", vocab_size=300), seed=1).save_pretrained(folder)
    for flags in (["--dry_run"], []):
        with pytest.raises(
            UserError, match="model does not reproduce the outputs stored when it was written .*: logits without padding"
        ):
            push(folder, "first", *flags)
    assert hub.requests == []


@pytest.mark.thorough
def test_reference_outputs_of_other_weights_do_not_stay_there(folder, push, logged_in, capsys):
    """Where an upload has none of its own, as a checkpoint that is pushed during training."""
    hub = logged_in()
    write_reference_outputs(folder)
    push(folder, "first")
    (folder / "reference_outputs.json").unlink()
    capsys.readouterr()
    push(folder, "first", "--update")
    printed = capsys.readouterr().out
    assert "note: there is no reference_outputs.json" in printed and "verify it with" not in printed
    assert "deleted there, since it belongs to other weights: reference_outputs.json" in printed
    assert hub.files("ada/first") == expected(folder)


def test_a_branch(folder, push, logged_in):
    hub = logged_in()
    push(folder, "first", "--revision", "trial")
    assert hub.files("ada/first", "trial") == expected(folder) and hub.files("ada/first") == {}


def test_a_bad_name_and_a_card_that_the_hub_refuses(folder, push, logged_in):
    logged_in()
    with pytest.raises(UserError, match="'ada/a/b' is not a repository's name"):
        push(folder, "ada/a/b")
    (folder / "README.md").write_text("---\ntags: one\n---\n", encoding="utf-8")
    with pytest.raises(UserError, match='"tags" must be an array'):
        push(folder, "first")


def test_offline(folder, push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    with pytest.raises(UserError, match="while HF_HUB_OFFLINE is set"):
        push(folder, "first")


@pytest.mark.thorough
def test_verification_detects_another_file_and_other_logits(folder, script, logged_in, monkeypatch):
    hub = logged_in()
    module = script("push_to_hub")
    arguments = module.parse([str(folder), "first"])
    contents = module.list_contents(folder)
    uploaded = module.upload(contents, module.open_repository("first"), "test")
    ones = torch.ones(1, 3)
    monkeypatch.setattr(upload_module, "_logits_alone", lambda folders, scratch: [ones, ones + 1e-3])
    with pytest.raises(UserError, match="logits of what was downloaded differ by 1.0e-03"):
        module.verify_upload(contents, uploaded)
    blob = hub.repos["ada/first"].commits[uploaded.commit]["README.md"]
    blob.content = blob.content.replace(b"model", b"mode1")
    with pytest.raises(UserError, match="README.md did not come back as it was sent"):
        module.verify_upload(contents, uploaded)
    assert arguments.repository == "first"


@pytest.mark.skipif("GPT_SCRATCH_HUB_TOKEN" not in os.environ, reason="set GPT_SCRATCH_HUB_TOKEN to try the real Hub")
def test_the_real_hub(folder, tmp_path):
    token = os.environ["GPT_SCRATCH_HUB_TOKEN"]
    dropped = ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_XET")
    environment = {name: value for name, value in os.environ.items() if name not in dropped} | {"HF_TOKEN": token}
    api = huggingface_hub.HfApi(token=token, endpoint="https://huggingface.co")
    name = f"gpt-scratch-smoke-test-{os.getpid()}"
    command = [sys.executable, ROOT / "scripts" / "push_to_hub.py", folder, name, "--private"]
    try:
        done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "checksums equal; loaded without this package" in done.stdout
    finally:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
            api.delete_repo(f"{api.whoami()['name']}/{name}", missing_ok=True)
