"""Where the kernels come from."""

import subprocess
from pathlib import Path

import pytest
import torch

from imagegpt.kernels import building


@pytest.fixture
def not_loaded(monkeypatch, tmp_path):
    """As in a fresh process; gives the folder and what is loaded from it."""
    loaded = []

    def load_library(path):
        if path.read_bytes() == b"damaged":
            raise OSError("file too short")
        loaded.append(path)

    monkeypatch.setattr(building, "_loaded", set())
    monkeypatch.setattr(torch.ops, "load_library", load_library)
    monkeypatch.setattr(building, "_REGISTER", {"decoding": lambda: None})
    monkeypatch.setattr(building, "_build", lambda _, path: path.write_bytes(b"whole"))
    return tmp_path, loaded


def test_kernels_are_compiled_once_and_only_when_asked_for(not_loaded):
    folder, loaded = not_loaded
    assert not building.load("decoding", folder, build=False)
    assert not list(folder.iterdir())
    assert building.load("decoding", folder, build=True)
    assert loaded == list(folder.iterdir())
    assert building.load("decoding", folder / "elsewhere", build=False)
    assert len(loaded) == 1


def test_known_kernels_are_found(not_loaded):
    folder, loaded = not_loaded
    (folder / f"decoding-{building._key()}.so").write_bytes(b"whole")
    assert building.load("decoding", folder, build=False)
    assert len(loaded) == 1


@pytest.mark.parametrize("build", [True, False])
def test_damaged_kernels_are_made_anew(not_loaded, build):
    folder, _ = not_loaded
    path = folder / f"decoding-{building._key()}.so"
    path.write_bytes(b"damaged")
    assert building.load("decoding", folder, build=build) == build
    assert path.exists() == build


def test_a_compiler_that_fails_leaves_nothing_behind(monkeypatch, tmp_path):
    (tmp_path / "cpp").mkdir()
    (tmp_path / "cpp" / "decoding.cpp").write_text("#include <no_such_file.h>\n")
    monkeypatch.setattr(building, "_FOLDER", tmp_path / "cpp")
    monkeypatch.setattr(building, "_loaded", set())
    with pytest.raises(RuntimeError, match=r"cannot compile the kernels \(.*no_such_file"):
        building.load("decoding", tmp_path / "made", build=True)
    assert not list((tmp_path / "made").iterdir())


def test_a_compiler_that_is_stopped_leaves_nothing_behind(monkeypatch, tmp_path):
    def stopped(command, **_):
        Path(command[command.index("-o") + 1]).write_bytes(b"half")
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(building, "_loaded", set())
    monkeypatch.setattr(building.subprocess, "run", stopped)
    with pytest.raises(subprocess.TimeoutExpired):
        building.load("decoding", tmp_path / "made", build=True)
    assert not list((tmp_path / "made").iterdir())
