"""Folders that appear whole or not at all; the rest of `_output` is tested through the commands that use it."""

from pathlib import Path

import pytest

from imagegpt.cli._output import new_folder


def fill(out, content, force=False):
    with new_folder(out, force=force, replaceable={"model"}) as folder:
        (folder / "model").write_text(content)


def test_a_replacement_that_fails_at_the_last_step_leaves_the_old_folder(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "old")
    rename = Path.rename

    def fail_to_put_in_place(path, target):
        if path.name.endswith(".making"):
            raise OSError(28, "No space left on device", str(target))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_to_put_in_place)
    with pytest.raises(OSError, match="No space left"):
        fill(out, "new", force=True)
    assert (out / "model").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    fill(out, "new", force=True)
    assert (out / "model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
