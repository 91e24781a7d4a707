"""Real processes, really killed with SIGKILL while they encode. What is left must go on to the same files."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagegpt.jobs.encode import encode

MARK = "IMAGEGPT_TEST_OF_KILLING"
ENCODE = """
import sys
from imagegpt import ImageGPTImageProcessor
from imagegpt.jobs.encode import encode
from imagegpt.images.palette import ColorPalette

if __name__ == "__main__":
    source, out, palette, workers, shard_size = sys.argv[1:]
    processor = ImageGPTImageProcessor(ColorPalette.load(palette), size=8)
    encode(source, out, processor, num_workers=int(workers), shard_size=int(shard_size))
"""


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def start(tmp_path, *arguments):
    script = tmp_path / "encode.py"
    script.write_text(ENCODE)
    command = [sys.executable, script, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", MARK: str(tmp_path)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def kill_when(process, folder, num_shards):
    while len(list(folder.glob("data-*.arrow"))) < num_shards:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # to the end of what its workers may say, too
    assert process.returncode == -signal.SIGKILL


def processes_of(tmp_path):
    """The processes that were started here, and theirs."""
    mark = f"{MARK}={tmp_path}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone, or another's
            found += [path.parent.name] if mark in path.read_bytes() else []
    return found


@pytest.fixture
def many(tmp_path, processor, palette):
    """Images, and the palette in a file."""
    images = np.random.default_rng(0).integers(0, 256, (40_000, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "many.npy", images)
    palette.save(tmp_path / "palette.npy")
    return tmp_path / "many.npy"


@pytest.mark.slow
def test_a_killed_encoding_goes_on_to_the_same_bytes(tmp_path, many, processor):
    encode(many, tmp_path / "whole", processor, num_workers=1, shard_size=500)
    out = tmp_path / "out"
    kill_when(start(tmp_path, many, out, tmp_path / "palette.npy", 1, 500), out, 5)
    expected, left = contents(tmp_path / "whole"), contents(out)
    shards = {name: content for name, content in left.items() if name.startswith("data-")}
    assert shards.items() <= expected.items()  # what is there is whole
    assert 5 <= len(shards) < 80
    marked = {name for name in shards if (out / f".imagegpt/{name[5:10]}.done").exists()}
    assert len(shards) - 1 <= len(marked)  # the last one may have been killed before its marker was written
    times = {name: (out / name).stat().st_mtime_ns for name in marked}
    report = encode(many, out, processor, num_workers=1, shard_size=500)
    assert contents(out) == expected
    assert {name: (out / name).stat().st_mtime_ns for name in marked} == times
    assert report.splits[0].num_new == 40_000 - 500 * len(marked)


@pytest.mark.slow
def test_killed_with_its_workers_left_behind(tmp_path, many, processor):
    """The workers of a parent that is gone end by themselves: they would wait for work for ever."""
    encode(many, tmp_path / "whole", processor, num_workers=1, shard_size=500)
    out, arguments = tmp_path / "out", (many, tmp_path / "out", tmp_path / "palette.npy", 2, 500)
    for shards in (3, 30):
        process = start(tmp_path, *arguments)
        while len(processes_of(tmp_path)) < 4:  # it, two workers, and Python's own that tracks what they share
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        kill_when(process, out, shards)
        end = time.monotonic() + 30
        while processes_of(tmp_path):
            assert time.monotonic() < end, "the workers are still there"
            time.sleep(0.1)
    process = start(tmp_path, *arguments)
    told = process.communicate(timeout=200)[0]
    assert (process.returncode, told) == (0, "")
    assert contents(out) == contents(tmp_path / "whole")
