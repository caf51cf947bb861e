"""The download of OpenAI's checkpoints, from local servers that break off, send wrong answers and refuse as real ones do."""

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from gpt_scratch.conversion import openai_download
from gpt_scratch.conversion.openai_download import DATA, FILES, KNOWN_BYTES, SIZES, data_bytes, download_openai_checkpoint
from gpt_scratch.conversion.tensorflow_bundle import TensorFlowCheckpoint
from gpt_scratch.errors import UserError

FIXTURE = Path(__file__).resolve().parents[1] / "fixtures" / "tensorflow" / "one_shard"
CHUNK_BYTES = 10_000


class Server:
    """Serves `contents` as OpenAI's server does; `requests` is what it was asked: (path, Range header or None)."""

    def __init__(
        self, contents: dict[str, bytes], break_off: dict[str, int] | None = None, ranges: bool = True, lengths: bool = True
    ):
        self.contents, self.break_off, self.ranges, self.lengths = contents, break_off or {}, ranges, lengths
        self.shift = 0  # bytes by which a range begins later than it was asked for
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    @contextmanager
    def running(self) -> Iterator[str]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.requests.append((self.path, wanted))
                name = self.path.rsplit("/", 1)[1]
                if not self.path.startswith("/models/124M/") or name not in server.contents:
                    return self.send_error(404)
                body = server.contents[name]
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
                start += server.shift if start else 0
                if start and start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                if server.lengths:
                    self.send_header("Content-Length", str(len(body) - start))
                self.end_headers()
                self.wfile.write(body[start : server.break_off.get(name, len(body))])
                return None

            def log_message(self, *args):
                pass

        listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(daemon=True, target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        self.url = f"http://127.0.0.1:{listening.server_port}/models"
        try:
            yield self.url
        finally:
            listening.shutdown()
            listening.server_close()
            thread.join()

    def asked(self, name: str) -> list[str | None]:
        return [wanted for path, wanted in self.requests if path.endswith("/" + name)]


@pytest.fixture(scope="module")
def contents() -> dict[str, bytes]:
    """Seven files: index and data as TensorFlow wrote them, small but several chunks long, and no two parts of them alike."""
    rng = np.random.default_rng(0)
    written = {name: (FIXTURE / name).read_bytes() for name in ("checkpoint", "hparams.json", "model.ckpt.index", DATA)}
    made = {name: rng.bytes(size) for name, size in (KNOWN_BYTES | {"model.ckpt.meta": 1000}).items()}
    return written | made


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(openai_download, "CHUNK_BYTES", CHUNK_BYTES)


def files(folder) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_all_seven_files(contents, tmp_path):
    server = Server(contents)
    with server.running() as url:
        assert download_openai_checkpoint("124M", tmp_path / "new" / "124M", [url + "/"]) == tmp_path / "new" / "124M"
    assert files(tmp_path / "new" / "124M") == contents
    assert len(FILES) == 7
    assert server.requests == [(f"/models/124M/{name}", None) for name in FILES]
    checkpoint = TensorFlowCheckpoint(tmp_path / "new" / "124M")
    assert all(checkpoint.read(name).numel() for name in checkpoint.tensors)  # and the checksums are right


def test_progress_is_shown(contents, tmp_path, capfd):
    with Server(contents).running() as url:
        download_openai_checkpoint("124M", tmp_path, [url])
    shown = capfd.readouterr().err
    assert all(f"{name}: 100%" in shown for name in FILES)


def test_complete_files_are_not_downloaded_again(contents, tmp_path):
    server = Server(contents)
    with server.running() as url:
        download_openai_checkpoint("124M", tmp_path, [url])
        (tmp_path / "hparams.json").unlink()
        server.requests.clear()
        download_openai_checkpoint("124M", tmp_path, [url])
    assert server.requests == [("/models/124M/hparams.json", None)]


def test_an_interrupted_transfer_resumes(contents, tmp_path):
    stop = CHUNK_BYTES + 777
    with Server(contents, break_off={DATA: stop}).running() as url, pytest.raises(UserError) as caught:
        download_openai_checkpoint("124M", tmp_path, [url])
    assert f"{url}/124M/{DATA}" in str(caught.value)
    assert f"closed at byte {stop:,} of {len(contents[DATA]):,}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / DATA).exists()
    assert (tmp_path / f"{DATA}.part").read_bytes() == contents[DATA][:stop]
    server = Server(contents)
    with server.running() as url:
        download_openai_checkpoint("124M", tmp_path, [url])
    assert server.requests == [(f"/models/124M/{DATA}", f"bytes={stop}-")]
    assert files(tmp_path) == contents


def test_the_backup_server_resumes_an_interrupted_download(contents, tmp_path):
    first, backup = Server(contents, break_off={DATA: 5000}), Server(contents)
    with first.running() as url, backup.running() as backup_url:
        download_openai_checkpoint("124M", tmp_path, [url, backup_url])
    assert backup.requests == [(f"/models/124M/{DATA}", "bytes=5000-")]
    assert files(tmp_path) == contents


def test_without_range_requests_the_download_restarts(contents, tmp_path):
    (tmp_path / f"{DATA}.part").write_bytes(contents[DATA][:5000])
    server = Server(contents, ranges=False)
    with server.running() as url:
        download_openai_checkpoint("124M", tmp_path, [url])
    assert server.asked(DATA) == ["bytes=5000-"]
    assert files(tmp_path) == contents


@pytest.mark.parametrize("surplus", [0, 10])
def test_a_partial_file_that_does_not_match_is_downloaded_again(contents, tmp_path, surplus):
    length = len(contents[DATA]) + surplus
    (tmp_path / f"{DATA}.part").write_bytes(bytes(length))
    server = Server(contents)
    with server.running() as url:
        download_openai_checkpoint("124M", tmp_path, [url])
    assert server.asked(DATA) == [f"bytes={length}-", None]
    assert files(tmp_path) == contents


def test_each_failing_url_is_named(contents, tmp_path):
    rest = {name: body for name, body in contents.items() if name != "vocab.bpe"}
    with Server(rest).running() as url:
        with Server({}).running() as gone:
            pass  # nothing listens there any more
        with pytest.raises(UserError) as caught:
            download_openai_checkpoint("124M", tmp_path, [url, gone])
    message = str(caught.value)
    assert message.startswith("cannot download vocab.bpe: ")
    assert f"{url}/124M/vocab.bpe: HTTP 404 Not Found" in message
    assert f"{gone}/124M/vocab.bpe: " in message and "refused" in message
    assert "\n" not in message
    assert set(files(tmp_path)) == {"checkpoint", "hparams.json", "model.ckpt.index"}


def test_a_404_falls_back_to_the_second_server(contents, tmp_path):
    with Server({}).running() as url, Server(contents).running() as backup_url:
        download_openai_checkpoint("124M", tmp_path, [url, backup_url])
    assert files(tmp_path) == contents


@pytest.mark.parametrize("name", [*KNOWN_BYTES, DATA])
def test_a_file_of_a_wrong_size_is_refused(contents, tmp_path, name):
    wrong, size = contents | {name: contents[name][:-1]}, len(contents[name])
    with Server(wrong).running() as url, pytest.raises(UserError) as caught:
        download_openai_checkpoint("124M", tmp_path, [url])
    assert f"{url}/124M/{name}: the file has {size - 1:,} bytes instead of {size:,}" in str(caught.value)
    assert not (tmp_path / name).exists() and not (tmp_path / f"{name}.part").exists()


def test_an_error_page_does_not_damage_a_partial_download(contents, tmp_path):
    """A server between us and them that answers everything with a page: the next server takes over."""
    part = tmp_path / f"{DATA}.part"
    part.write_bytes(contents[DATA][:5000])
    page, backup = Server(contents | {DATA: b"<html>Log in</html>" * 300}, ranges=False), Server(contents)
    with page.running() as url, backup.running() as backup_url:
        download_openai_checkpoint("124M", tmp_path, [url, backup_url])
    assert backup.requests == [(f"/models/124M/{DATA}", "bytes=5000-")]
    assert files(tmp_path) == contents


def test_a_range_that_was_not_asked_for_is_refused(contents, tmp_path):
    (tmp_path / f"{DATA}.part").write_bytes(contents[DATA][:5000])
    server = Server(contents)
    server.shift = 1
    with (
        server.running() as url,
        pytest.raises(
            UserError, match="the server responded with the range 'bytes 5001-32511/32512' to a request for bytes from 5,000 on"
        ),
    ):
        download_openai_checkpoint("124M", tmp_path, [url])
    assert (tmp_path / f"{DATA}.part").read_bytes() == contents[DATA][:5000]


def test_a_damaged_index_is_reported_before_the_data(contents, tmp_path):
    index = bytearray(contents["model.ckpt.index"])
    index[100] ^= 1
    server = Server(contents | {"model.ckpt.index": bytes(index)})
    with (
        server.running() as url,
        pytest.raises(UserError, match=r"model\.ckpt\.index: the checksum of the block at byte 0 is wrong"),
    ):
        download_openai_checkpoint("124M", tmp_path, [url])
    assert server.asked(DATA) == []


def test_the_size_of_the_official_data_by_its_index(shared_data):
    assert data_bytes(shared_data / "gpt2") == 497_759_232


def test_a_file_of_a_wrong_size_that_is_there_is_refused(contents, tmp_path):
    (tmp_path / "encoder.json").write_bytes(b"<html>")
    with (
        Server(contents).running() as url,
        pytest.raises(UserError, match="encoder.json has 6 bytes instead of 1,042,301: delete it"),
    ):
        download_openai_checkpoint("124M", tmp_path, [url])
    assert (tmp_path / "encoder.json").read_bytes() == b"<html>"


def test_a_server_that_states_no_size_is_refused(contents, tmp_path):
    with (
        Server(contents, lengths=False).running() as url,
        pytest.raises(UserError, match="checkpoint: the server does not send the size"),
    ):
        download_openai_checkpoint("124M", tmp_path, [url])
    assert files(tmp_path) == {}


def test_a_full_disk_is_reported(contents, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=500_000))
    with (
        Server(contents).running() as url,
        pytest.raises(UserError, match=r"has 500,000 bytes of free space, but encoder\.json needs 1,042,301 more"),
    ):
        download_openai_checkpoint("124M", tmp_path, [url])


def test_unknown_size(tmp_path):
    with pytest.raises(UserError, match="no GPT-2 of size 117M: choose one of 124M, 355M, 774M, 1558M"):
        download_openai_checkpoint("117M", tmp_path / "x", [])
    assert not (tmp_path / "x").exists()
    assert len(SIZES) == 4


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write to .*file"):
        download_openai_checkpoint("124M", tmp_path / "file", [])
