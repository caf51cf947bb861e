"""A hostile Hub, or an attacker on the network: an upload, and the download that checks it, end in one line; nothing is written elsewhere, and no
other host gets the token."""

import re
import shutil
import tempfile

import pytest
import torch
from hostile_hub import BOUNDS, HTML, Answer, HostileHub, save_model
from huggingface_hub import constants

from gpt_scratch.errors import run_script
from gpt_scratch.hub import upload as upload_module

pytestmark = pytest.mark.thorough


@pytest.fixture
def hub():
    """A hostile one in its place."""
    with HostileHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n\n# A model\n", encoding="utf-8")
    return folder


@pytest.fixture
def push(saved, script, logged_in, monkeypatch, tmp_path, capsys):
    """Runs the script and returns its exit status and the last line on standard error; nothing may be left anywhere but in its cache."""
    hub, module = logged_in(), script("push_to_hub")
    shutil.copytree(saved, tmp_path / "model")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The process without this package takes seconds, and what it loads has been compared by then.
    monkeypatch.setattr(upload_module, "_logits_alone", lambda folders, scratch: [torch.zeros(1)] * 2)

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts}

    def run(*flags: str) -> tuple[int, str]:
        before, hub.reached = files(), []
        try:
            run_script(lambda: module.main(module.parse([str(tmp_path / "model"), "first", *flags])))
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        printed = capsys.readouterr()
        # What an interrupted progress bar leaves stands before the error on its line.
        said = re.sub(r"(?m)^.*B/s.*?(?=error: )", "", printed.err.strip()).splitlines()
        assert files() == before
        assert not [request for request in hub.stranger.requests if "authorization" in request or "hf_write" in str(request)]
        assert "\x1b" not in printed.out + (said or [""])[-1] and "forged" not in printed.out.splitlines()
        assert (status == 0) == (not said or not said[-1].startswith("error: ")), (status, said)
        return status, said[-1] if status else ""

    return run


PLACES = {
    "the account": r"/api/whoami-v2",
    "the repository": r"/api/models/ada/first",
    "the new repository": r"/api/repos/create",
    "the list of files": r"/api/models/ada/first/tree/.*",
    "the check of the card": r"/api/validate-yaml",
    "the kinds of files": r".*/preupload/.*",
    "where large files go": r".*/info/lfs/objects/batch",
    "a large file that was sent": r"/lfs/objects/.*",
    "the check of a large file": r"/lfs/verify/.*",
    "the commit": r".*/commit/main",
    "a file": r".*/resolve/.*",
    "a large file": r"/cdn/.*",
}  # fmt: skip
# Nothing of the answer is used, or the commit, which is checked in the end, stands without it.
UNUSED = ("the repository", "the check of the card", "a large file that was sent", "the check of a large file")
UPLOADED_FIRST = (*UNUSED[1:], "the commit", "a file", "a large file")
WHOLE = {
    "html": lambda hub, answer: vars(answer).update(status=200, headers={"Content-Type": "text/html"}, body=HTML),
    "null": lambda hub, answer: vars(answer).update(status=200, body=b"null"),
    "an empty object": lambda hub, answer: vars(answer).update(status=200, body=b"{}"),
    "JSON nested 200,000 deep": lambda hub, answer: vars(answer).update(status=200, body=b"[" * 200_000),
    "bytes that are not UTF-8": lambda hub, answer: vars(answer).update(status=200, body=b'{"a": "\xff\xfe"}'),
    "a redirect": lambda hub, answer: vars(answer).update(status=307, headers={"Location": f"{hub.stranger.url}/x"}, body=b""),
    "a redirect to a file": lambda hub, answer: vars(answer).update(status=302, headers={"Location": "file:///etc/hostname"}, body=b""),
}  # fmt: skip


def once_at(hub: HostileHub, pattern: str, change) -> None:
    """Let the Hub change what it answers there."""

    def attack(method: str, path: str, answer: Answer) -> None:
        if re.fullmatch(pattern, path):
            change(hub, answer)

    hub.attack = attack


def marks_of(place: str) -> list[pytest.MarkDecorator]:
    """Where the upload comes first, each takes a second."""
    fault = pytest.mark.fault(f"a Hub that answers html, null, redirects and the like for {place}", **BOUNDS)
    return [fault, pytest.mark.slow] if place in UPLOADED_FIRST else [fault]


@pytest.mark.parametrize("place", [pytest.param(place, marks=marks_of(place)) for place in PLACES])
@pytest.mark.quick_cases("the list of files")
def test_an_unexpected_answer_ends_in_one_line(push, hub, place):
    for name, change in WHOLE.items():
        hub.repos.clear()
        hub.objects.clear()
        hub.stranger.requests.clear()
        once_at(hub, PLACES[place], change)
        status, said = push()
        assert hub.reached or name == "an empty object", name
        assert status or place in UNUSED, name


def change_json(key: str, value: object):
    """Another value in an answer, or in each of a list of answers."""

    def change(hub: HostileHub, answer: Answer) -> None:
        said = answer.json
        for entry in said if isinstance(said, list) else [said]:
            entry[key] = value
        answer.say(said)

    return change


def list_also(path: str, **fields: object):
    """A further entry in the list of files."""

    def change(hub: HostileHub, answer: Answer) -> None:
        answer.say([*answer.json, {"type": "file", "path": path, "size": 3, "oid": "0" * 40} | fields])

    return change


def confirm_elsewhere(hub: HostileHub, answer: Answer) -> None:
    said = answer.json
    for entry in said["objects"]:
        entry["actions"]["verify"]["href"] = hub.stranger.url + "/verify"
    answer.say(said)


def flip(hub: HostileHub, answer: Answer) -> None:
    answer.body = answer.body[:-1] + bytes([answer.body[-1] ^ 1]) if answer.body else answer.body


def header(name: str, value: str):
    return lambda hub, answer: answer.headers.update({name: value})


LIES = {
    "a Hub that sends back a large file with one other bit": ("a large file", flip),
    "a Hub that sends back small files with one other bit": ("a file", flip),
    "a Hub that cuts a large file short": ("a large file", lambda hub, answer: vars(answer).update(body=answer.body[:-100])),
    "a Hub that sends more of a large file than it said": ("a large file", lambda hub, answer: vars(answer).update(body=answer.body + b"more")),
    "a Hub that says a large file has 10^15 bytes": ("a file", header("X-Linked-Size", str(10**15))),
    "a Hub whose sizes are text": ("the list of files", change_json("size", "many")),
    "a Hub that says each file has 10^15 bytes": ("the list of files", change_json("size", 10**15)),
    "a Hub with another checksum of each file": ("the list of files", change_json("oid", "0" * 40)),
    "an ETag that leads out of the cache": ("a file", header("ETag", '"../../../forged"')),
    "a checksum of a large file that leads out of the cache": ("a file", header("X-Linked-ETag", '"../../../forged"')),
    "a commit in a header that leads out of the cache": ("a file", header("X-Repo-Commit", "../../../forged")),
    "a commit that leads out of the cache": ("the commit", change_json("commitOid", "../../../forged")),
    "an address of a commit that is a number": ("the commit", change_json("commitUrl", 5)),
    "a list of files whose paths are numbers": ("the list of files", change_json("path", 5)),
    "a commit that is a number": ("the commit", change_json("commitOid", 5)),
    "an account whose name leads out of the cache": ("the account", change_json("name", "../../forged")),
    "a list of files with a path of ..": ("the list of files", list_also("../../../forged.safetensors")),
    "a list of files with an absolute path": ("the list of files", list_also("/forged.safetensors")),
    "a list of files with a path of backslashes": ("the list of files", list_also("..\\..\\forged")),
    "a list of files that names one with a terminal escape": ("the list of files", list_also("\x1b]0;a\x07\nforged\n.safetensors")),
}  # fmt: skip


# Nothing depends on these: what is downloaded is compared with what was sent.
HARMLESS = (
    "a Hub whose sizes are text",
    "a Hub that says each file has 10^15 bytes",
    "a Hub with another checksum of each file",
    "a commit in a header that leads out of the cache",
)


@pytest.mark.parametrize("case", [pytest.param(case, marks=pytest.mark.fault(case, **BOUNDS)) for case in LIES])
@pytest.mark.thorough
def test_a_false_answer_is_refused_or_harmless(push, hub, case, capsys):
    place, change = LIES[case]
    once_at(hub, PLACES[place], change)
    status, said = push("--update")  # else a file that is there already ends it early
    assert hub.reached and status == (0 if case in HARMLESS else 2), said


@pytest.mark.fault("the address of a commit with a terminal escape and a line of its own", **BOUNDS)
def test_what_the_hub_says_is_printed_as_text(push, hub):
    once_at(hub, PLACES["the commit"], change_json("commitUrl", f"{hub.endpoint}/ada/first/commit/a\x1b[2J\nforged\n"))
    push()
    assert hub.reached


@pytest.mark.fault("a Hub that has a large file confirmed by another host, with the token", **BOUNDS)
def test_no_other_host_gets_the_token(push, hub):
    once_at(hub, PLACES["where large files go"], confirm_elsewhere)
    push()
    assert hub.reached and hub.stranger.requests  # it was asked, and `push` has looked for the token


@pytest.mark.fault("a list of files that a later download gets, with a path of ..", **BOUNDS)
@pytest.mark.parametrize("path", ["../../../forged", "/forged", "a/../../../../forged"])
def test_a_list_of_files_that_changes_after_the_upload(push, hub, path):
    def attack(method: str, asked: str, answer: Answer) -> None:
        if re.fullmatch(PLACES["the list of files"], asked) and not asked.endswith("/main"):
            list_also(path)(hub, answer)

    hub.attack = attack
    status, said = push()
    assert hub.reached and status == 2, said
