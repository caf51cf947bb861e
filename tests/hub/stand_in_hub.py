"""A small Hugging Face Hub on loopback, kept in memory: the unmodified `huggingface_hub` client creates, uploads and downloads with it.

    python tests/hub/stand_in_hub.py --port 8765        # user "ada", token "hf_write"
    HF_ENDPOINT=http://127.0.0.1:8765 HF_TOKEN=hf_write HF_HUB_DISABLE_XET=1 python scripts/push_to_hub.py runs/mine ada/mine

It speaks what the client of huggingface_hub 2.4 asks for: accounts, repositories, branches, preupload, git-lfs objects, commits, trees,
files with a redirect to a "CDN" host for the large ones, and the check of a card's metadata. As on the Hub, large objects outlive an upload
that breaks off, a commit is whole or not at all, and a repository that one may not see does not exist. Not spoken: Xet, which needs
`HF_HUB_DISABLE_XET=1`; pull requests; data sets and spaces.
"""

import argparse
import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

LARGE = 10 * 2**20  # bytes from which the Hub wants git-lfs, whatever the content
LFS_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".onnx",
    ".gguf",
    ".npz",
    ".parquet",
    ".zip",
)  # of its first .gitattributes


@dataclass
class Blob:
    """A file in a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.lfs:
            content = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A model repository: commits by id, and the branches that point to them."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], message: str) -> str:
        names = "".join(f"{path} {blob.git_oid}\n" for path, blob in sorted(files.items()))
        oid = hashlib.sha1(f"{self.branches.get(branch)}\n{message}\n{names}".encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid


@dataclass
class Account:
    """Who a token belongs to, and whether it may write."""

    name: str
    can_write: bool = True


class Refusal(Exception):
    """An answer with an error status."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class StandInHub:
    """The server and its state; a context manager. `drop` closes the connection of each request (method, path) that it is true for."""

    def __init__(self, port: int = 0):
        self.accounts = {"hf_write": Account("ada"), "hf_read": Account("ada", can_write=False), "hf_other": Account("bob")}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # git-lfs, by sha256
        self.requests: list[tuple[str, str]] = []
        self.drop: Callable[[str, str], bool] = lambda method, path: False
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "StandInHub":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What was uploaded to a repository: without the file that the Hub itself puts there."""
        repo = self.repos[repo_id]
        content = repo.commits[repo.branches[revision]]
        return {path: blob.content for path, blob in content.items() if path != ".gitattributes"}


def card_problems(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about a README.md, by the rules of the Hub's model card documentation."""
    found = re.match(r"---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return [f"invalid YAML: {' '.join(str(error).split())}"], []
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = []
    for name in ("tags", "datasets", "metrics"):
        if name in data and not (isinstance(data[name], list) and all(isinstance(item, str) for item in data[name])):
            errors.append(f'"{name}" must be an array of strings')
    for name in ("library_name", "pipeline_tag", "license"):
        if name in data and not isinstance(data[name], str):
            errors.append(f'"{name}" must be a string')
    for model in data.get("model-index") or []:
        if not model.get("name"):
            errors.append('"model-index[].name" is required')
        for result in model.get("results", []):
            if not (result.get("task") or {}).get("type"):
                errors.append('"model-index[].results[].task.type" is required')
            dataset = result.get("dataset") or {}
            if not dataset.get("type") or not dataset.get("name"):
                errors.append('"model-index[].results[].dataset" needs a type and a name')
            for metric in result.get("metrics") or [{}]:
                if not metric.get("type") or metric.get("value") is None:
                    errors.append('"model-index[].results[].metrics[]" needs a type and a value')
    return errors, []


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(
        self, value: Any = None, status: int = 200, headers: dict[str, str] | None = None, body: bytes | None = None
    ) -> None:
        if body is None:
            body = json.dumps(value).encode()
            headers = {"Content-Type": "application/json", **(headers or {})}
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            dropped = self.hub.drop(self.command, path)
        if dropped:  # as a cable that is pulled: nothing is answered
            self.close_connection = True
            self.connection.close()
            return
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.chunked_body() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        try:
            for method, pattern, action in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method.split("|"):
                    with self.hub.lock:
                        action(self, *found.groups())
                    return
            raise Refusal(404, f"no such page: {self.command} {path}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message} | ({"X-Error-Code": refusal.code} if refusal.code else {})
            self.answer({"error": refusal.message}, refusal.status, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def chunked_body(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    # ------------------------------------------------------------------------------------------------------------- who may what

    def account(self) -> Account | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.accounts:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.accounts.get(token)

    def readable(self, repo_id: str) -> Repo:
        account, repo = self.account(), self.hub.repos.get(repo_id)
        if repo is None or (repo.private and (account is None or account.name != repo_id.split("/")[0])):
            raise Refusal(404 if account else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, repo_id: str) -> Repo:
        repo, account = self.readable(repo_id), self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        if account.name != repo_id.split("/")[0] or not account.can_write:
            raise Refusal(403, "Forbidden: you must have write access to this repository")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> str:
        oid = repo.branches.get(revision, revision)
        if oid not in repo.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # ------------------------------------------------------------------------------------------------------------------- actions

    def whoami(self) -> None:
        account = self.account()
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        role = "write" if account.can_write else "read"
        token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        self.answer({"type": "user", "id": account.name, "name": account.name, "orgs": [], "auth": token})

    def create_repo(self) -> None:
        account, wanted = self.account(), self.json
        if account is None:
            raise Refusal(401, "Invalid username or password.")
        owner = wanted.get("organization") or account.name
        if owner != account.name or not account.can_write:
            raise Refusal(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        repo_id = f"{owner}/{wanted['name']}"
        if repo_id in self.hub.repos:
            raise Refusal(409, "You already created this model repo")
        repo = self.hub.repos[repo_id] = Repo(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit("main", {".gitattributes": Blob(attributes.encode(), False)}, "initial commit")
        self.answer({"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id, "id": repo_id})

    def validate_yaml(self) -> None:
        errors, warnings = card_problems(self.json["content"])
        body = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
        self.answer(body, 400 if errors else 200)

    def create_branch(self, repo_id: str, branch: str) -> None:
        repo = self.writable(repo_id)
        if branch in repo.branches:
            raise Refusal(409, f"Reference already exists: {branch}")
        repo.branches[branch] = self.commit_of(repo, self.json.get("startingPoint") or "main")
        self.answer({})

    def model_info(self, repo_id: str, revision: str | None = None) -> None:
        repo = self.readable(repo_id)
        oid = self.commit_of(repo, revision or "main")
        now = "2026-01-01T00:00:00.000Z"
        info = {
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": oid,
            "private": repo.private,
            "tags": [],
        }
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        self.answer({**info, "siblings": siblings, "createdAt": now, "lastModified": now, "downloads": 0, "likes": 0})

    def refs(self, repo_id: str) -> None:
        branches = self.readable(repo_id).branches.items()
        named = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches]
        self.answer({"branches": named, "converts": [], "tags": []})

    def tree(self, repo_id: str, revision: str, folder: str | None = None) -> None:
        repo = self.readable(repo_id)
        entries = []
        for path, blob in repo.commits[self.commit_of(repo, revision)].items():
            if folder and not path.startswith(folder + "/"):
                continue
            entry = {"type": "file", "path": path, "size": len(blob.content), "oid": blob.git_oid}
            entries.append(
                entry | ({"lfs": {"oid": blob.sha256, "size": len(blob.content), "pointerSize": 134}} if blob.lfs else {})
            )
        self.answer(entries)

    def preupload(self, repo_id: str, revision: str) -> None:
        repo = self.writable(repo_id)
        present = repo.commits[self.commit_of(repo, revision)]
        ignored = [line for line in self.json.get("gitIgnore", "").splitlines() if line]
        answers = []
        for file in self.json["files"]:
            sample = base64.b64decode(file["sample"])
            binary = b"\0" in sample or file["path"].endswith(LFS_SUFFIXES) or file["size"] >= LARGE
            blob = present.get(file["path"])
            oid = None if blob is None else blob.sha256 if blob.lfs else blob.git_oid
            answer = {"path": file["path"], "uploadMode": "lfs" if binary else "regular", "shouldIgnore": file["path"] in ignored}
            answers.append(answer | ({"oid": oid} if oid else {}))
        self.answer({"files": answers})

    def lfs_batch(self, repo_id: str) -> None:
        self.writable(repo_id)
        answers = []
        for entry in self.json["objects"]:
            answer = {"oid": entry["oid"], "size": entry["size"]}
            if entry["oid"] not in self.hub.objects:  # what is here already has no actions, and is not sent again
                upload, verify = (f"{self.hub.endpoint}/lfs/{kind}/{entry['oid']}" for kind in ("objects", "verify"))
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            answers.append(answer)
        self.answer({"transfer": "basic", "objects": answers})

    def put_object(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, "the content does not have this checksum")
        self.hub.objects[oid] = self.body
        self.answer({})

    def verify_object(self, oid: str) -> None:
        if len(self.hub.objects.get(oid, b"")) != self.json["size"]:
            raise Refusal(404, "the object is not here")
        self.answer({})

    def commit(self, repo_id: str, revision: str) -> None:
        repo = self.writable(repo_id)
        files = dict(repo.commits[self.commit_of(repo, revision)])
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        message = ""
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise Refusal(400, f"git-lfs object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], True)
            elif line["key"] == "deletedFile":
                if value["path"] not in files:
                    raise Refusal(404, f"A file with this name doesn't exist: {value['path']}", "EntryNotFound")
                del files[value["path"]]
            else:
                raise Refusal(400, f"not spoken here: {line['key']}")
        errors = card_problems(files["README.md"].content.decode())[0] if "README.md" in files else []
        if errors:
            raise Refusal(400, f"invalid metadata in README.md: {errors[0]}")
        oid = repo.commit(revision, files, message)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        self.answer({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self.readable(repo_id)
        oid = self.commit_of(repo, revision)
        blob = repo.commits[oid].get(path)
        if blob is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": oid, "ETag": f'"{blob.git_oid}"'}
        if not blob.lfs:
            return self.send_content(blob.content, headers)
        linked = {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        location = {"Location": f"http://localhost:{self.hub.port}/cdn/{blob.sha256}"}  # another host, as the Hub's
        self.answer(status=302, headers=headers | linked | location, body=b"")

    def cdn(self, oid: str) -> None:
        self.send_content(self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def send_content(self, content: bytes, headers: dict[str, str]) -> None:
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        part = content[int(start[1]) :] if start else content
        if start:
            headers["Content-Range"] = f"bytes {start[1]}-{len(content) - 1}/{len(content)}"
        self.answer(status=206 if start else 200, headers={**headers, "Content-Length": str(len(part))}, body=part)


ID = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", r"/api/whoami-v2", _Handler.whoami),
    ("POST", r"/api/repos/create", _Handler.create_repo),
    ("POST", r"/api/validate-yaml", _Handler.validate_yaml),
    ("POST", rf"/api/models/{ID}/branch/(.+)", _Handler.create_branch),
    ("POST", rf"/api/models/{ID}/preupload/(.+)", _Handler.preupload),
    ("POST", rf"/api/models/{ID}/commit/(.+)", _Handler.commit),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    ("PUT", r"/lfs/objects/(\w+)", _Handler.put_object),
    ("POST", r"/lfs/verify/(\w+)", _Handler.verify_object),
    ("GET", rf"/api/models/{ID}", _Handler.model_info),
    ("GET", rf"/api/models/{ID}/revision/(.+)", _Handler.model_info),
    ("GET", rf"/api/models/{ID}/refs", _Handler.refs),
    ("GET", rf"/api/models/{ID}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    ("GET|HEAD", rf"/{ID}/resolve/([^/]+)/(.+)", _Handler.resolve),
    ("GET|HEAD", r"/cdn/(\w+)", _Handler.cdn),
]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8765)
    hub = StandInHub(parser.parse_args().port)
    print(f"a stand-in Hub at {hub.endpoint}, user ada, token hf_write; Ctrl-C ends it", flush=True)
    hub.server.serve_forever()
