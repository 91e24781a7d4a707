"""Every command that writes folders, killed and failing at every change to files; `chaos_cases` says what is asked."""

import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import pytest

import chaos_calls
from chaos_calls import Action, Trouble

HERE = Path(__file__).parent
JOBS = [
    "convert transformers", "convert openai", "convert --force", "export openai",
    "sample png", "sample npz", "sample arrow", "sample parquet", "sample --force", "complete",
    "encode", "encode parquet", "encode splits", "download", "train", "train --force",
]  # fmt: skip
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # no thread of pyarrow's, which a fork would lose
    "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE.parent / "checkpoints"))),
}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"), reason="the library knows only Linux"
)


@pytest.fixture(scope="session")
def library(tmp_path_factory):
    return chaos_calls.compiled(tmp_path_factory.mktemp("chaos"))


@pytest.fixture(scope="session")
def shared():
    """A folder in memory where there is one: fsync is counted all the same, and takes no time."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a server with OpenAI's files, in a process of its own."""
    command = [sys.executable, HERE / "chaos_server.py", tmp_path_factory.mktemp("served")]
    process = subprocess.Popen(
        [*map(str, command)], env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process.stdout.readline().strip()
    process.communicate("")


@pytest.fixture
def tried(library, shared, request):
    """What came of a job in trouble at each point, or at every so manieth."""

    def call(job, every=1):
        server = request.getfixturevalue("server") if job == "download" else "no server"
        with tempfile.TemporaryDirectory(dir=shared) as work:
            words = [HERE / "chaos_parent.py", job, library, shared / "inputs", work, server, every]
            process = subprocess.run(
                [sys.executable, *map(str, words)], env=ENVIRONMENT, capture_output=True, text=True
            )
        assert process.returncode == 0, process.stderr
        lines = [json.loads(line) for line in process.stdout.splitlines() if line.startswith("{")]
        return lines[:-1], lines[-1]

    return call


@pytest.mark.slow
@pytest.mark.timeout(2 * 3600)
@pytest.mark.parametrize("job", JOBS)
def test_nothing_is_lost_wherever_it_ends(tried, job, record_property):
    faults, told = tried(job)
    print(job, told)  # noqa: T201 - shown by pytest -rP
    record_property("tried", told)
    assert told["points"] > 10
    assert told["cases"] == 4 * told["points"]
    assert not faults


@pytest.mark.slow
def test_some_of_them(tried):
    faults, told = tried("convert --force", every=8)
    assert told["cases"] >= told["points"] // 2
    assert not faults


@pytest.mark.slow
def test_a_careless_writer_is_caught(tried):
    """Otherwise these tests might be blind."""
    faults, told = tried("careless")
    assert told["points"] == 3  # open, write, half of it
    assert {(one["trouble"], one["number"]) for one in faults} >= {("killed", 2), ("killed", 3), ("ENOSPC", 3)}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (lambda folder: (folder / "a").write_bytes(b"12"), ["open a", "write a", "half write a"]),
        (lambda folder: (folder / "old").rename(folder / "new"), ["rename old"]),
        (lambda folder: (folder / "old").unlink(), ["remove old"]),
        (lambda folder: (folder / "b").mkdir(), ["mkdir b"]),
        (lambda folder: (folder / "link").symlink_to("old"), ["symlink link"]),
        (lambda folder: os.truncate(folder / "old", 0), ["truncate old"]),
        (lambda folder: (folder / "old").read_bytes(), []),
        (lambda folder: (folder.parent / "elsewhere").write_bytes(b"12"), []),
    ],
)
def test_what_counts(library, tmp_path, change, names):
    folder = tmp_path / "below"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    log = tmp_path / "log"
    assert in_child(library, folder, Trouble(Action.COUNT), partial(change, folder), log) == 0
    assert log.read_text().replace(f"{folder}/", "").splitlines() == names


def test_what_comes_from_the_c_library_counts(library, tmp_path):
    """A buffered file of C's is written by a call that no preloaded library sees."""
    import ctypes

    def write():
        c = ctypes.CDLL(None)
        c.fopen.restype = ctypes.c_void_p
        file = ctypes.c_void_p(c.fopen(str(tmp_path / "a").encode(), b"w"))
        c.fputs(b"12", file)
        c.fclose(file)

    log = tmp_path.with_name("log-of-c")
    assert in_child(library, tmp_path, Trouble(Action.COUNT), write, log) == 0
    assert log.read_text().replace(f"{tmp_path}/", "").splitlines() == ["open a", "write a", "half write a"]


@pytest.mark.parametrize(
    ("trouble", "status", "left"),
    [
        (Trouble(Action.KILL, 2), -9, b""),
        (Trouble(Action.KILL, 3), -9, b"ab"),
        (Trouble(Action.FAIL_ONCE, 1, errno.EIO), errno.EIO, None),
        (Trouble(Action.FAIL_ONCE, 2, errno.ENOSPC), errno.ENOSPC, b""),
        (Trouble(Action.FAIL_ONCE, 3, errno.ENOSPC), errno.ENOSPC, b"ab"),
        (Trouble(Action.FAIL_FROM, 3, errno.ENOSPC), errno.ENOSPC, b"ab"),
        (Trouble(Action.KILL, 5), 0, b"abcd"),  # there is none
    ],
)
def test_what_becomes_of_a_write(library, tmp_path, trouble, status, left):
    path = tmp_path / "a"

    def write():
        with path.open("wb", buffering=0) as file:
            written = file.write(b"abcd")
            file.write(b"abcd"[written:])

    assert in_child(library, tmp_path, trouble, write) == status
    assert (path.read_bytes() if path.exists() else None) == left


def in_child(library, below, trouble, change, log=os.devnull):
    """Make a change in a fork that meets trouble: its exit status, which is the error's number if there was one."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            chaos_calls.arm(library, below, trouble, os.open(log, os.O_WRONLY | os.O_CREAT))
            change()
            status = 0
        except OSError as error:
            status = error.errno
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
