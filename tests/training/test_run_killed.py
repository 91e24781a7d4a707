"""Real processes, really killed or stopped, at any moment: what is left goes on to the bits of an undisturbed run."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

STEPS = 150
SETTINGS = {
    "model.n_layer": 2,
    "model.n_embd": 32,
    "training.num_steps": STEPS,
    "training.batch_size": 8,
    "training.warmup_steps": 10,
    "monitoring.validate_every": 25,
    "monitoring.checkpoint_every": 10,
    "monitoring.samples": 2,
}
FILES = ["model.safetensors", "config.json", "preprocessor_config.json", "recipe.yaml"]


def start(out):
    words = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    return subprocess.Popen(
        [sys.executable, "-m", "imagegpt", "train", "digits", "--out", str(out), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0, told
    return told


def steps_logged(out):
    log = out / "log.jsonl"
    return len(log.read_bytes().splitlines()) if log.is_file() else 0


def wait_for_steps(process, out, num):
    """Until so many steps are in the log, and a moment longer; False if the process has ended before."""
    while steps_logged(out) < num:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    return True


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "m"
    finish(start(out))
    return out


def assert_same(out, undisturbed):
    for name in FILES:
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    assert {path.name: path.read_bytes() for path in (out / "samples").iterdir()} == {
        path.name: path.read_bytes() for path in (undisturbed / "samples").iterdir()
    }
    assert steps_logged(out) == STEPS


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_ten_random_moments(undisturbed, tmp_path):
    out, moments = tmp_path / "m", random.Random()
    kills = 0
    for num in sorted(moments.sample(range(1, STEPS - 5), 10)):
        process = start(out)
        if wait_for_steps(process, out, num):
            time.sleep(moments.uniform(0, 0.05))  # between two steps, or in the middle of saving
            process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0)
        kills += process.returncode != 0
    assert kills >= 8  # towards the end a run may be faster than the kill
    finish(start(out))
    assert_same(out, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_stopped_at_random_moments(undisturbed, tmp_path):
    out, moments = tmp_path / "m", random.Random()
    stops = 0
    # Far enough apart: where the log is that long already, a process is stopped before it has begun, see below.
    for num in (moments.randrange(first, first + 15) for first in (1, 36, 71, 106)):
        process = start(out)
        assert wait_for_steps(process, out, num)
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGTERM)
        told = finish(process)
        stops += "stopping after this step" in told
        assert "go on with: imagegpt train digits --out" in told.splitlines()[-1]
    assert stops == 4
    finish(start(out))
    assert_same(out, undisturbed)


@pytest.mark.slow
def test_stopped_before_it_begins(undisturbed, tmp_path):
    """While torch is being imported, which takes seconds."""
    out = tmp_path / "m"
    process = start(out)
    time.sleep(1.5)
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=100)[0]
    assert "Traceback" not in told
    assert process.returncode in (0, -signal.SIGTERM), told  # as a program ends that has not begun
    finish(start(out))
    assert_same(out, undisturbed)
