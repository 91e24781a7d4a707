"""The same images encoded by one process, three, a job array and Ray, each killed again and again: the same bytes.

IMAGEGPT_SCALE_IMAGES sets the number of images.
"""

import hashlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NUM_IMAGES = int(os.environ.get("IMAGEGPT_SCALE_IMAGES", "2000"))
NUM_SHARDS = 50
ENCODE = """
import os, sys
from imagegpt import ImageGPTImageProcessor
from imagegpt.images.palette import ColorPalette
from imagegpt.jobs.encode import encode
from imagegpt.jobs.ranks import Ranks

if __name__ == "__main__":
    source, out, palette, shard_size, executor, workers = sys.argv[1:]
    encode(
        source, out, ImageGPTImageProcessor(ColorPalette.load(palette), size=32), shard_size=int(shard_size),
        executor=executor, num_workers=int(workers), ranks=Ranks.from_environment(os.environ),
    )
"""
MARK = "IMAGEGPT_TEST_OF_SCALE"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the images "src", "palette.npy" and the script "encode.py"."""
    from imagegpt import ColorPalette

    place, rng = tmp_path_factory.mktemp("scale"), np.random.default_rng(0)
    for index, image in enumerate(rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), np.uint8)):
        path = place / "src" / ("cat" if index % 2 else "dog") / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)
    for index in (3, 700):
        (place / "src" / "dog" / f"{index:06d}.png").write_bytes(b"broken")
    ColorPalette.grey(64).save(place / "palette.npy")
    (place / "encode.py").write_text(ENCODE)
    return place


def start(place, out, *, executor="local", workers=1, **environment):
    arguments = [place / "src", place / out, place / "palette.npy", NUM_IMAGES // NUM_SHARDS, executor, workers]
    return subprocess.Popen(
        [sys.executable, place / "encode.py", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", MARK: out, "XDG_CACHE_HOME": str(place / "cache"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def hash_of(folder):
    """One hash of all files with their paths, without the empty ones for locks."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def num_finished(folder):
    return len(list((folder / ".imagegpt").glob("*.done")))


def wait_for(processes, folder, num):
    while num_finished(folder) < num:
        assert any(one.poll() is None for one in processes), [one.communicate()[0] for one in processes]
        time.sleep(0.002)


def finish(processes):
    said = [one.communicate(timeout=1800)[0] for one in processes]
    assert [one.returncode for one in processes] == [0] * len(processes), said


def children_with(mark):
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes():
                found.append((int(path.name), (path / "cmdline").read_bytes().decode(errors="replace")))
        except OSError:  # it has ended, or is another user's
            continue
    return found


@pytest.fixture(scope="module")
def expected(place):
    finish([start(place, "undisturbed")])
    return hash_of(place / "undisturbed")


def slurm(task):
    return {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "0"}


WAYS = {
    "one": [{}],
    "three": [{}, {}, {}],
    "pool": [{"workers": 3}],
    "array": [slurm(task) for task in range(4)],
    "ray": [{"executor": "ray", "workers": 2}],
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_twice_the_bytes_are_the_same(place, expected, way):
    if way == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'imagegpt[ray]'")
    moments, out = random.Random(), place / way
    for kill in range(2):
        processes = [start(place, way, **options) for options in WAYS[way]]
        wait_for(processes, out, num_finished(out) + moments.randrange(2, 10) if kill else moments.randrange(2, 10))
        time.sleep(moments.uniform(0, 0.3))
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert num_finished(out) < NUM_SHARDS
        print(f"{way}: killed with {num_finished(out)} of {NUM_SHARDS} shards finished")  # noqa: T201 - for pytest -rP
    begun = time.monotonic()
    finish([start(place, way, **options) for options in WAYS[way]])
    print(f"{way}: resumed and finished in {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert hash_of(out) == expected


@pytest.mark.parametrize("way", ["three", "pool", "ray"])
def test_the_shards_of_a_dead_worker_are_taken_over(place, expected, way):
    """Only one of the processes is killed; the others, or Ray's retry, end the job without another command."""
    if way == "ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'imagegpt[ray]'")
    name = f"{way}-taken-over"
    processes = [start(place, name, **options) for options in WAYS[way]]
    wait_for(processes, place / name, 3)
    if way == "three":
        killed = processes.pop(1)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    else:
        words = "work_on_all" if way == "ray" else "multiprocessing.spawn"
        workers = [number for number, command in children_with(name) if words in command]
        assert len(workers) > 1
        os.kill(workers[0], signal.SIGKILL)
    finish(processes)
    assert hash_of(place / name) == expected
