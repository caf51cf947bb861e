"""The inputs that the fuzzer found or began with, read again: each is read or refused in one line, within bounds of time and memory."""

import time
from pathlib import Path

import pytest
import targets

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.fault("what coverage-guided fuzzing found: {}", seconds=30, mebibytes=600)
@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_input_of_the_corpus_is_read_or_refused(name, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = sorted((CORPUS / name).iterdir())
    assert len(files) >= 5
    refused = 0
    for file in files:
        start = time.process_time()
        try:
            refused += targets.run(targets.TARGETS[name], file.read_bytes()) is not None
        except BaseException as error:
            raise AssertionError(f"{file.name}: {type(error).__name__}: {error}") from error
        assert time.process_time() - start < 10, file.name
    assert refused or name == "chat_template"
    assert not list(tmp_path.iterdir())


def test_the_corpus_is_small_and_of_these_targets():
    assert {path.name for path in CORPUS.iterdir()} == targets.TARGETS.keys()
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 60_000
