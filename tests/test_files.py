"""Files and directories are written whole or not at all; a script ends on bad input with one line and status 2."""

import os
import sys

import pytest
import warm

from gpt_scratch.errors import UserError, one_line, printable
from gpt_scratch.files import atomic_directory, atomic_path, swapped_directory, write_json


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
    with pytest.raises(UserError, match="contains 'mine'"), atomic_directory(tmp_path / "out", overwrite=True):
        pytest.fail("the block must not run")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_directory_of_a_run_is_swapped_and_what_else_it_held_is_kept(tmp_path, capsys):
    def swap(*names):
        with swapped_directory(tmp_path / "adapter") as folder:
            for name in names:
                (folder / name).write_text(f"new {name}", encoding="utf-8")

    swap("a")
    assert os.stat(tmp_path / "adapter").st_mode & 0o777 == os.stat(tmp_path).st_mode & 0o777 | 0o055
    swap("a", "b")
    assert sorted(os.listdir(tmp_path)) == ["adapter"] and sorted(os.listdir(tmp_path / "adapter")) == ["a", "b"]
    (tmp_path / "adapter" / "mine").write_text("mine", encoding="utf-8")
    swap("a")
    assert sorted(os.listdir(tmp_path)) == ["adapter", "adapter-before-1"] and os.listdir(tmp_path / "adapter") == ["a"]
    assert (tmp_path / "adapter-before-1" / "mine").read_text(
        encoding="utf-8"
    ) == "mine" and "adapter-before-1" in capsys.readouterr().err
    (tmp_path / "link").symlink_to("adapter")
    with pytest.raises(KeyError), swapped_directory(tmp_path / "link") as folder:
        (folder / "half").write_text("half", encoding="utf-8")
        raise KeyError
    assert sorted(os.listdir(tmp_path)) == ["adapter", "adapter-before-1", "link"] and os.listdir(tmp_path / "link") == ["a"]


def test_a_user_error_is_one_line_and_status_2():
    code = "from gpt_scratch.errors import UserError, run_script\ndef main(): raise UserError('a.txt: no such file')\nrun_script(main)"
    done = warm.run([sys.executable, "-c", code])
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
    done = warm.run([sys.executable, "-c", code])
    assert done.returncode == 2 and done.stderr.startswith(line) and done.stderr.count("\n") == 1
