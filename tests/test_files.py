"""Files and directories are written whole or not at all; a script ends on bad input with one line and status 2."""

import subprocess
import sys

import pytest

from gpt_scratch.errors import UserError, one_line, printable
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


def test_what_a_terminal_would_obey_is_printed_in_pythons_notation():
    assert printable("a\x1b]0;title\x07\x9b2J\r\u202eb\ud83d") == "a\\x1b]0;title\\x07\\x9b2J\\r\\u202eb\\ud83d"
    for kept in ("tab\tand\nnewline", "wide\u3000space", "👩\u200d👩\u200d👧", "ن\u200cم", "Grüße"):
        assert printable(kept) == kept


def test_every_error_has_words_on_one_line():
    for error, words in ((MemoryError(), "out of memory"), (RecursionError(), "nested too deeply"), (KeyError("x"), "'x'"), (OSError(), "OSError"),
                         (ValueError("\x1b[1ma\n b\x1b[0m\x1b[2J"), "a b\\x1b[2J")):  # fmt: skip
        assert one_line(error) == words
    assert len(one_line("x" * 1000)) == 300


@pytest.mark.parametrize(
    "error, line", [("MemoryError", "error: out of memory: "), ("UserError('a\\x1b[2J\\nb')", "error: a\\x1b[2J b\n")]
)
def test_a_script_ends_on_one_printable_line(error, line):
    code = f"from gpt_scratch.errors import UserError, run_script\ndef main(): raise {error}\nrun_script(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
