"""Which files of a directory go to the Hub, and which stay."""

import json
import os
import shutil

import pytest
from tiny_models import CODE_FILES, tiny_model

from gpt_scratch.errors import UserError
from gpt_scratch.hub.contents import list_contents, missing_parts, shown
from gpt_scratch.hub.secret_scan import find_secrets
from gpt_scratch.reference_outputs import write_reference_outputs


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("gpt2").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


def write(folder, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


MODEL = sorted([*CODE_FILES, "config.json", "generation_config.json", "model.safetensors"])


def test_which_files_are_uploaded(folder):
    state = ["checkpoint-5/model.safetensors", "checkpoint-5/optimizer.pt", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"]
    useless = ["training_args.bin", "checkpoint-5/training_args.bin", ".gitattributes", ".cache/x", "__pycache__/a.pyc",
               "runs/now/events.out.tfevents.1.host"]  # fmt: skip
    write(folder, dict.fromkeys([*state, *useless, "metrics.json", "README.md"], ""))
    write_reference_outputs(folder)
    contents = list_contents(folder)
    assert contents.files == sorted([*MODEL, "metrics.json", "README.md", "reference_outputs.json"])
    assert find_secrets(contents).findings == []
    assert contents.left_out == dict.fromkeys(state, "training state") | dict.fromkeys(useless, "of no use to others")
    with_state = list_contents(folder, with_training_state=True, exclude=("metrics.json",))
    assert set(with_state.files) == {*MODEL, "README.md", "reference_outputs.json", *state}  # and no pickle of arguments


def test_an_adapter_goes_up_only_with_a_base_that_others_have(folder, tmp_path):
    for base, goes in ((str(tmp_path), False), ("model", False), ("openai-community/gpt2", True)):
        write(folder, {"adapter/adapter_config.json": json.dumps({"base_model_name_or_path": base}), "adapter/model/x": ""})
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)  # where "model" is a directory
            assert ("adapter/adapter_config.json" in list_contents(folder).files) == goes, base


@pytest.mark.fault("a link in an upload: {}", seconds=20, mebibytes=200)
@pytest.mark.parametrize("place", ["notes.txt", "README.md", "config.json", "model.safetensors", "adapter/x", "data"])
@pytest.mark.parametrize("target", ["outside", "inside", "nowhere"])
def test_a_link_is_never_followed(folder, tmp_path, place, target):
    write(tmp_path, {"secret": "mine", "private/diary": "mine"})
    link = folder / place
    link.parent.mkdir(exist_ok=True)
    if link.is_file():
        link.rename(tmp_path / "moved")
        (tmp_path / "secret").write_bytes((tmp_path / "moved").read_bytes())
    here = {"outside": tmp_path / ("private" if place == "data" else "secret"), "inside": folder / "generation_config.json"}
    link.symlink_to(here.get(target, "nowhere"))
    with pytest.raises(UserError, match=f"{place}' is a link to '.*': put the file itself there, or leave it out by --exclude"):
        list_contents(folder)
    if place in ("notes.txt", "adapter/x", "data"):
        contents = list_contents(folder, exclude=(place,))
        assert contents.files == MODEL and contents.left_out == {place: "excluded"}


def test_special_files_are_shown_as_such(folder):
    os.mkfifo(folder / "pipe")  # reading it would wait forever
    (folder / "folder_by_link").symlink_to("/")
    contents = list_contents(folder, exclude=("folder_by_link",))
    assert contents.left_out == {"pipe": "neither a file nor a directory", "folder_by_link": "excluded"}


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", *CODE_FILES])
def test_a_directory_that_would_not_load_is_refused(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"no {name}" if name == "config.json" else f"{name} is missing"):
        list_contents(folder)


def test_a_missing_shard_and_code_in_another_repository_are_refused(folder):
    write(folder, {"model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}})})
    with pytest.raises(UserError, match="model-00001-of-00002.safetensors is missing"):
        list_contents(folder)
    write(folder, {"config.json": json.dumps({"auto_map": {"AutoModel": "user/other--modeling_gpt_scratch.GPTScratchModel"}})})
    with pytest.raises(UserError, match="points to another repository"):
        list_contents(folder)
    with pytest.raises(UserError, match="no such directory"):
        list_contents(folder / "nowhere")


HOSTILE_NAMES = ["a\nfound nothing", "a\x1b[2J", "a\rb", "a\x00b"[:1] + "\x7f", b"a\xff".decode(errors="surrogateescape")]


@pytest.mark.fault("file names with a newline, a terminal escape or no UTF-8, in an upload", seconds=5, mebibytes=100)
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=ascii)
def test_a_name_that_could_forge_lines_is_refused(folder, name):
    (folder / os.fsencode(name).decode(errors="surrogateescape")).write_bytes(b"")
    with pytest.raises(UserError, match="rename it") as refusal:
        list_contents(folder)
    assert str(refusal.value).isprintable()


def test_bidirectional_control_characters_in_names_are_escaped():
    assert shown("a\u202egnp.exe") == "a\\u202egnp.exe" and shown("é 猫.txt") == "é 猫.txt"


@pytest.mark.fault("settings of an upload that are lists, numbers, null or nested 200,000 deep", seconds=20, mebibytes=200)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "adapter/adapter_config.json"])
def test_settings_of_another_form_are_refused(folder, name):
    texts = ["[]", "5", "null", '"x"', "{", "[" * 200_000, "\x00"]
    if name == "config.json":
        texts += ['{"auto_map": [5]}', '{"auto_map": {"AutoModel": 5}}', '{"auto_map": "x"}']
    if "index" in name:
        texts += [
            '{"weight_map": []}',
            '{"weight_map": {"a": 5}}',
            "{}",
            '{"weight_map": {"a": "../../x"}}',
            '{"weight_map": {"a": "/dev/zero"}}',
        ]
    for text in texts:
        write(folder, {name: text})
        with pytest.raises(UserError) as refusal:
            list_contents(folder)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000, text[:50]


def test_missing_files_are_reported_in_a_note(folder):
    [tokenizer] = missing_parts(list_contents(folder))
    assert tokenizer.startswith("there is no tokenizer")
    write(folder, {"tokenizer.json": "{}", "README.proposed.md": "a card of ours beside one that was edited"})
    contents = list_contents(folder)
    assert missing_parts(contents) == [] and contents.left_out["README.proposed.md"] == "of no use to others"
    (folder / "generation_config.json").unlink()
    [settings] = missing_parts(list_contents(folder))
    assert settings.startswith("there is no generation_config.json")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {
        "architectures": ["GPTScratchForSequenceClassification"]
    }
    write(folder, {"config.json": json.dumps(config)})
    assert missing_parts(list_contents(folder)) == []  # a classifier generates nothing
