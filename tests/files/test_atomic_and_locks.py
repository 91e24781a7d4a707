"""Atomic writes, locks on folders, and home folders."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from imagegpt.checkpoints.listing import list_tensors
from imagegpt.checkpoints.registry import find_local_folder
from imagegpt.data.sources.registry import open_images
from imagegpt.files.atomic import atomic_write, target_name
from imagegpt.files.locks import BusyError, folder_lock, lock_folder
from imagegpt.files.paths import expand_home


def test_atomic_write_keeps_symbolic_links(tmp_path):
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "palette.npy", tmp_path / "link.npy"
    target.write_bytes(b"old")
    link.symlink_to(target)
    atomic_write(link, b"new", "the palette")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["disk", "link.npy", "palette.npy"]


def test_atomic_write_flushes_file_and_folder(tmp_path, monkeypatch):
    """The content is flushed before the rename, and the folder before the call returns."""
    done = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("dir" if os.path.isdir(handle) else "file"))  # noqa: PTH112
    monkeypatch.setattr(Path, "replace", lambda *paths: (done.append("replace"), replace(*paths)))
    atomic_write(tmp_path / "a", b"x", "it")
    assert done == ["file", "replace", "dir"]
    done.clear()
    atomic_write(tmp_path / "a", b"y", "it", durable=False)
    assert done == ["replace"]


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space, or choose another path"), (errno.EACCES, "choose another path")],
)
def test_a_failed_write_says_what_to_do_and_leaves_no_file(tmp_path, monkeypatch, number, advice):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"^the log cannot be written to .*a \({os.strerror(number)}\): {advice}$"):
        atomic_write(tmp_path / "a", b"new", "the log")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old"}


@pytest.mark.parametrize(
    ("name", "final"),
    [
        (".log.jsonl.0123abcd.tmp", "log.jsonl"),
        (".notes.tmp", ".notes.tmp"),
        (".log.jsonl.12.tmp", ".log.jsonl.12.tmp"),
        ("log.jsonl", "log.jsonl"),
    ],
)
def test_target_name_recognises_only_our_temporary_files(name, final):
    assert target_name(name) == final


def test_a_folder_can_be_locked_only_once(tmp_path):
    refused = pytest.raises(BusyError, match=r"^another process trains in .*: wait for it, or end it first$")
    with folder_lock(tmp_path, "encodes images into"), refused:
        lock_folder(tmp_path, "trains in")
    lock_folder(tmp_path, "trains in").release()
    with folder_lock(tmp_path, "trains in"), folder_lock(tmp_path, "trains in", name=".another.lock"):
        pass


def test_killing_a_process_releases_its_lock(tmp_path):
    code = "import sys, time; from pathlib import Path; from imagegpt.files.locks import lock_folder; "
    code += "lock = lock_folder(Path(sys.argv[1]), 'trains in'); print('locked', flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(BusyError):
            lock_folder(tmp_path, "trains in")
        process.send_signal(signal.SIGKILL)
        process.wait()
    lock_folder(tmp_path, "trains in", wait_s=5).release()


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("no flock here")])
def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(FileLock, "acquire", fail)
    message = (
        rf"^{tmp_path} cannot be locked against other processes \(No locks available|no flock here\): choose another"
    )
    with pytest.raises(OSError, match=message):
        lock_folder(tmp_path, "trains in")


def test_an_unknown_home_folder_is_one_sentence(tmp_path, monkeypatch):
    """Regression: the library let a RuntimeError of pathlib through."""
    monkeypatch.chdir(tmp_path)
    for opens in (find_local_folder, open_images, list_tensors):
        with pytest.raises(ValueError, match="~nosuchuser has no home folder: give the full path instead"):
            opens("~nosuchuser/x")
    (tmp_path / "~nosuchuser").touch()
    assert expand_home("~nosuchuser") == "./~nosuchuser"
