"""Files and directories are written whole or not at all; a script ends on bad input with one line and status 2."""

import subprocess
import sys

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.files import atomic_directory, atomic_path, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"old": "é"})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text(encoding="utf-8") == '{\n  "old": "é"\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_directory_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "out") as temporary:
        (temporary / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_directory(tmp_path / "out") as temporary:
        (temporary / "whole").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "whole").is_file()


def test_a_directory_with_content_is_kept_unless_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("")
    with pytest.raises(UserError, match="not empty"), atomic_directory(tmp_path / "out"):
        pytest.fail("the block must not run")
    with pytest.raises(UserError, match="holds 'mine'"), atomic_directory(tmp_path / "out", overwrite=True):
        pytest.fail("the block must not run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_user_error_is_one_line_and_status_2():
    code = "from gpt_scratch.errors import UserError, run_script\ndef main(): raise UserError('a.txt: no such file')\nrun_script(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (2, "error: a.txt: no such file\n", "")
