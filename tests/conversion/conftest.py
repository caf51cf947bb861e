"""Running the conversion as a user does, through the script's `main`."""

import itertools
from pathlib import Path

import pytest

from gpt_scratch.errors import run_script


@pytest.fixture
def convert(script, tmp_path):
    """A function `(source, *flags) -> directory`; an error ends in the script's one line and exit status."""
    module, numbers = script("convert_checkpoint"), itertools.count()

    def run(source, *flags: str) -> Path:
        output = tmp_path / f"converted-{next(numbers)}"
        run_script(lambda: module.main(module.parse([str(source), str(output), *flags])))
        return output

    return run


@pytest.fixture
def refused(convert, tmp_path, capsys):
    """A function `(source, *flags) -> message` of a conversion that must fail: one line, status 2, nothing written."""

    def run(source, *flags: str) -> str:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as exit:
            convert(source, *flags)
        message = capsys.readouterr().err.splitlines()[-1]
        assert exit.value.code == 2 and message.startswith("error: ")
        assert sorted(tmp_path.iterdir()) == before
        return message

    return run
