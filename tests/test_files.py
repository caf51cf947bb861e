"""Files and directories are written whole or not at all."""

import os

import pytest

from gpt_scratch.errors import UserError
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
