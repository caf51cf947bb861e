"""Secrets in an upload are found in every encoding, without false alarms. Tokens are built at run time."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import random
import string
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.hub.contents import Contents
from gpt_scratch.hub.secret_scan import find_secrets
from gpt_scratch.plots import plot_losses

DRAW = random.Random(5)
WORD, HEX, UPPER = string.ascii_letters + string.digits, "0123456789abcdef", string.ascii_uppercase + "234567"


def some(count: int, letters: str = WORD) -> str:
    return "".join(DRAW.choice(letters) for _ in range(count))


def web_token() -> str:
    parts = (b'{"alg":"HS256","typ":"JWT"}', b'{"sub":"1234567890"}', DRAW.randbytes(32))
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


SECRETS = {
    "Hugging Face": "hf" + "_" + some(34),
    "GitHub": "ghp" + "_" + some(36),
    "GitHub refresh": "ghr" + "_" + some(76),
    "GitLab": "glpat" + "-" + some(20),
    "OpenAI": "sk-proj" + "-" + some(74) + "T3Blbk" + "FJ" + some(74),
    "Anthropic": "sk-ant" + "-api03-" + some(93) + "AA",
    "WANDB": "WANDB_API_KEY=" + some(40, HEX),
    "netrc": "machine api.wandb.ai\n  login user\n  password " + some(40, HEX),
    "address": "postgres://ada:" + some(12) + "@db.example.org:5432/x",
    "AWS key": "AKIA" + some(16, UPPER),
    "AWS secret": "aws_secret_access_key = " + some(40),
    "JSON web token": web_token(),
    "private key": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    "Slack": "xoxb" + "-" + some(12, string.digits) + "-" + some(24),
    "Google": "AIza" + some(35),
    "Kaggle": json.dumps({"username": "ada", "key": some(32, HEX)}),
    "NVIDIA": "nvapi" + "-" + some(64),
    "bearer": "Authorization: Bearer " + some(40),
    "home": "file:///home/" + "ada/data.txt",
}


def packed(data: bytes, how: str) -> bytes:
    file = io.BytesIO()
    if how in ("zip", "pth"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", data)
        return file.getvalue()
    if how == "tar":
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("x")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return file.getvalue()
    if how == "npz":
        np.savez_compressed(file, a=np.frombuffer(data, np.uint8))
        return file.getvalue()
    return {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress}[how](data)


def pdf(text: str, filter: bytes = b"/FlateDecode", rest: bytes = b"") -> bytes:
    content = zlib.compress(b"BT /F1 12 Tf ( " + text.encode() + b" ) Tj ET")
    head = b"%PDF-1.4\n" + rest + b"\n1 0 obj\n<< /Length 2 0 R /Filter " + filter + b" >>\nstream\n"
    return head + content + b"\nendstream\nendobj\n2 0 obj\n" + str(len(content)).encode() + b"\nendobj\n%%EOF\n"


PLACES = {
    "text": lambda text: f"one\n{text}\n".encode(),
    "binary": lambda text: b"\x80\x02\xff\0" + text.encode() + b"\0q\0\0",
    "binary, behind its length": lambda text: b"\x80\x02\xff\0m" + text.encode() + b"\0q\0\0",
    "behind a safetensors header": lambda text: (2).to_bytes(8, "little") + b"{}" + bytes(64) + text.encode() + bytes(64),
    "a safetensors header of all memory": lambda text: b"\xff" * 8 + text.encode() + bytes(64),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, big-endian": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
    "JSON escapes": lambda text: json.dumps({"a": "".join(f"\\u{ord(letter):04x}" for letter in text)}).encode().replace(b"\\\\", b"\\"),
    "JSON in JSON": lambda text: json.dumps(json.dumps(json.dumps({"a": text}))).encode(),
    "base64": lambda text: b"x: " + base64.b64encode(text.encode()) + b" ",
    "base64 in lines": lambda text: base64.encodebytes(b"some text before " * 20 + text.encode()),
    "gzip in base64": lambda text: b'{"x": "' + base64.b64encode(gzip.compress(text.encode())) + b'"}',
    "the end of 9 MB of weights": lambda text: np.random.default_rng(0).bytes(9 * 10**6) + b"\0" + text.encode(),
    **{how: lambda text, how=how: packed(text.encode(), how) for how in ("zip", "tar", "npz", "gzip", "bzip2", "xz")},
    "a stream of a PDF": pdf,
    "a stream of a PDF in a zip": lambda text: packed(pdf(text), "zip"),
    "tar in gzip in zip": lambda text: packed(packed(packed(text.encode(), "tar"), "gzip"), "zip"),
}  # fmt: skip


def scan(folder: Path, data: bytes, name: str = "file"):
    (folder / name).write_bytes(data)
    return find_secrets(Contents(folder, [name], {}))


@pytest.mark.fault(
    "tokens of 19 kinds in text, binary files, UTF-16, escapes, base64 and packed files", seconds=60, mebibytes=300
)
@pytest.mark.parametrize("place", PLACES)
def test_secrets_are_found_in_every_encoding(tmp_path, place):
    missed = []
    for kind, secret in SECRETS.items():
        findings = scan(tmp_path, PLACES[place](secret)).findings
        if not findings:
            missed.append(kind)
        assert secret not in str(findings) and all(str(finding).isprintable() for finding in findings)
    assert missed == []


def test_a_finding_has_its_place(tmp_path):
    text = SECRETS["GitHub"]
    assert str(scan(tmp_path, f"one\ntwo {text}\n".encode()).findings[0]).startswith("file, line 2: a ")
    assert scan(tmp_path, b"\xff" * 70 + text.encode()).findings[0].place == "byte 70"
    assert scan(tmp_path, packed(text.encode(), "zip")).findings[0].place == "in archive/data.pkl, line 1"


@pytest.mark.fault("a token in the name of a file of an upload", seconds=20, mebibytes=100)
def test_a_secret_in_a_name_is_found_and_not_shown(tmp_path):
    name = f"run-{SECRETS['Hugging Face']}.txt"
    result = scan(tmp_path, b"", name)
    assert result.findings[0].place == "in its name" and SECRETS["Hugging Face"] not in f"{result.findings} {result.names[name]}"


def test_values_of_this_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "the value of a variable")
    for data in (b"x the value of a variable", base64.b64encode(b"it is: the value of a variable")):
        assert [finding.kind for finding in scan(tmp_path, data).findings] == ["the value of a secret of this environment"]


BOMBS = {
    "a gzip bomb of 2 GB": lambda: gzip.compress(gzip.compress(bytes(2**31), 1), 9),
    "a PDF bomb of 300 MB": lambda: pdf(" ").replace(
        zlib.compress(b"BT /F1 12 Tf (   ) Tj ET"), zlib.compress(bytes(300 * 2**20), 1)
    ),
    "a damaged PDF": lambda: pdf("some text").replace(zlib.compress(b"BT /F1 12 Tf ( some text ) Tj ET"), b"x\x9cdamaged"),
    "an encrypted zip": lambda: packed(b"x", "zip").replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"),
    "a damaged gzip": lambda: packed(b"some text" * 999, "gzip")[:-20],
    "gzip five times": lambda: packed(packed(packed(packed(packed(b"x", "gzip"), "gzip"), "gzip"), "gzip"), "gzip"),
    "a zip without a list of members": lambda: packed(b"x", "zip")[:-22],
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.fault(f"{name} in an upload", seconds=60, mebibytes=400)) for name in BOMBS]
)
@pytest.mark.thorough
def test_files_that_cannot_be_checked_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="--exclude") as refusal:
        scan(tmp_path, BOMBS[name]())
    assert "\n" not in str(refusal.value)


def test_the_plots_of_a_run_are_read_and_other_pdfs_are_named(tmp_path):
    plot_losses([{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}], tmp_path / "loss")
    result = find_secrets(Contents(tmp_path, ["loss.pdf", "loss.png"], {}))
    assert result.sealed == {} and result.findings == []
    deep = b"%PDF-1.4\n" + b"1 0 obj <<" * 100_000 + b" obj" * 100_000 + b">>" + b" " * 100_000 + b">>stream\n" * 9_000
    for data in (
        pdf("a", b"[/ASCII85Decode /FlateDecode]"),
        pdf("a", b"/DCTDecode"),
        pdf("a", rest=b"trailer << /Encrypt 9 0 R >>"),
    ):
        assert scan(tmp_path, data, "other.pdf").sealed == {"other.pdf": "PDF"}
    start = time.process_time()
    assert scan(tmp_path, deep, "deep.pdf").findings == [] and time.process_time() - start < 10


def test_text_that_resembles_a_secret_is_not_one(tmp_path):
    text = ("https://example.org/home/ada and/or ~/home/x, ./home/ada, task-specific sk-learn, hf_hub, /usr/bin/env api_key=os.environ['KEY1234'], "
            "https://user:password@host, http://localhost/home/index, pad_token: <pad>, password = your-password1, risk-management-and-so-on-for-all")  # fmt: skip
    picture = json.dumps({"image": base64.b64encode(os.urandom(10**6)).decode()})
    assert scan(tmp_path, f"{text}\n{picture}\n".encode()).findings == []
    assert scan(tmp_path, b'{"model": {"vocab": {"/home/ada": 5}}}', "tokenizer.json").findings == []


@pytest.mark.fault("100 MB of random weights: no false alarm", seconds=30, mebibytes=400)
@pytest.mark.thorough
def test_random_weights_are_not_secrets(tmp_path):
    assert scan(tmp_path, np.random.default_rng().bytes(50 * 10**6)).findings == []
    normal = np.random.default_rng().standard_normal(6 * 10**6, dtype=np.float32) * 0.02
    assert scan(tmp_path, normal.tobytes() + (normal.view(np.uint32) >> 16).astype(np.uint16).tobytes()).findings == []
