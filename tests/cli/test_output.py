"""Folders that are created atomically; the rest of `_output` is tested through the commands that use it."""

from pathlib import Path

import pytest

from imagegpt.cli._output import new_folder
from imagegpt.files.locks import LOCK_FILE, BusyError
from imagegpt.files.paths import PARTIAL_DOWNLOAD


def fill(out, content, force=False):
    with new_folder(out, force=force, replaceable={"model"}) as folder:
        (folder / "model").write_text(content)


def test_a_failed_replacement_restores_the_old_folder(tmp_path, monkeypatch):
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


def test_force_replaces_the_folder(tmp_path):
    out = tmp_path / "out"
    fill(out, "old")
    fill(out, "new", force=True)
    assert (out / "model").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_temporary_folders_of_killed_processes_are_removed(tmp_path):
    """Regression: they stayed forever, each as large as a model. Folders with similar names are the user's."""
    out = tmp_path / "out"
    fill(out, "first")
    for name in (".out.0123abcd.making", ".out.0123abcd.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".tmpXy").write_text("half")
    users = [".other.0123abcd.making", ".out.0123abcd.making.txt", ".out.notes.old"]
    for name in users:
        (tmp_path / name).mkdir()
    fill(out, "second", force=True)
    assert (out / "model").read_text() == "second"
    assert names(tmp_path) == [*users, "out"]


def test_a_folder_that_a_killed_process_was_replacing_is_restored(tmp_path):
    """Regression: a process killed between two renames left the folder under its temporary name."""
    out = tmp_path / "out"
    fill(out, "first")
    out.rename(tmp_path / ".out.0123abcd.old")
    with pytest.raises(ValueError, match="out exists: choose another path, or replace it with --force"):
        fill(out, "second")
    assert (out / "model").read_text() == "first"
    assert names(tmp_path) == ["out"]


def test_two_processes_cannot_create_the_same_folder(tmp_path):
    with (
        new_folder(tmp_path / "out", force=False, replaceable={"model"}),
        pytest.raises(BusyError, match=r"another process makes out in .*: wait for it, or end it first"),
    ):
        fill(tmp_path / "out", "other")
    assert names(tmp_path) == ["out"]


def test_lock_files_and_partial_downloads_do_not_block_force(tmp_path):
    out = tmp_path / "out"
    fill(out, "first")
    (out / LOCK_FILE).touch()
    (out / PARTIAL_DOWNLOAD).mkdir()
    fill(out, "second", force=True)
    assert names(out) == ["model"]
