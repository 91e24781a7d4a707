"""`imagegpt cache`: shows and removes our files, and nothing else."""

import json
import os

import pytest

from imagegpt.files.paths import cache_folder

KEY = "0123456789abcdef01234567"
OURS = [
    f"kernels/step-{KEY}.so", f"kernels/step-{KEY}.sha256", f"kernels/step-{KEY}.lock",
    f"kernels/step-{KEY}.89abcdef.tmp.so", f"hashes/{KEY}-files", f"hashes/{KEY}-pixels",
    f"hashes/.{KEY}-pixels.89abcdef.tmp",
]  # fmt: skip
FOREIGN = ["kernels/notes.txt", "kernels/step.so", f"hashes/{KEY}", f"hashes/my-{KEY}-files", "other", "models/x.so"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "imagegpt"


def put(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)


def left(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def test_clearing_an_empty_cache(run, cache):
    status, out, err = run("cache", "--clear")
    assert (status, err) == (0, "")
    assert "removed 0 files" in out
    assert not cache.exists()


def test_without_clear_sizes_are_shown_and_nothing_is_removed(run, cache):
    put(cache, OURS)
    status, out, _ = run("cache")
    assert status == 0
    assert out.splitlines() == [
        f"compiled kernels  4 files, 4 kB: {cache / 'kernels'}",
        f"hashes of images  3 files, 3 kB: {cache / 'hashes'}",
    ]
    assert left(cache) == sorted(OURS)


def test_cache_as_json(run, cache):
    put(cache, [*OURS, *FOREIGN])
    for words, removed in (["cache", "--json"], 0), (["cache", "--clear", "--json"], 7):
        status, out, err = run(*words)
        assert (status, err) == (0, "")
        assert json.loads(out) == {
            "kernels": {"folder": str(cache / "kernels"), "files": 4, "bytes": 4000},
            "hashes": {"folder": str(cache / "hashes"), "files": 3, "bytes": 3000},
            "removed_files": removed,
        }


def test_clear_removes_only_our_files(run, cache):
    put(cache, [*OURS, *FOREIGN])
    status, out, _ = run("cache", "--clear")
    assert status == 0
    assert "removed 7 files" in out
    assert left(cache) == sorted(FOREIGN)


def test_clear_removes_empty_folders(run, cache):
    put(cache, OURS)
    assert run("cache", "--clear")[0] == 0
    assert not cache.exists()
    assert cache.parent.exists()


def test_clear_removes_everything_that_commands_cached(run, cache, workplace):
    """Files that imagegpt has made itself, whatever they are called."""
    (workplace / "a").mkdir()
    (workplace / "cat.png").rename(workplace / "a" / "1.png")
    past = 1_600_000_000
    os.utime(workplace / "a" / "1.png", (past, past))
    assert run("sample", "--model", "./tiny", "--num", "1", "--out", "x.png")[0] == 0
    assert run("encode", "a", "ids", "--palette", "tiny", "--size", "4")[0] == 0
    if not cache.exists():
        pytest.skip("there is no compiler")
    assert left(cache) != []
    run("cache", "--clear")
    assert not cache.exists()


def test_a_user_without_a_home_folder_has_a_temporary_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", lambda _: {}["nobody"])
    monkeypatch.setattr("tempfile.tempdir", None)
    assert cache_folder() == tmp_path / f"imagegpt-{os.getuid()}"
