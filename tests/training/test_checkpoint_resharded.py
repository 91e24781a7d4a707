"""A checkpoint saved by some processes can be loaded by any number of them, to the bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagegpt.training.checkpoint import Checkpoints, damage_of
from resharding import state
from stripes import ALONE, same_weights

SCRIPT = Path(__file__).with_name("resharding.py")


def start(num, *arguments):
    """Run the script in so many processes."""
    path = os.pathsep.join(str(folder) for folder in (SCRIPT.parent, SCRIPT.parents[1]))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}", SCRIPT]
        + [str(one) for one in arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def assert_loads(folder):
    """One process finds what one process would have saved."""
    checkpoints = Checkpoints(folder, ALONE, 1)
    path = checkpoints.newest()
    assert path is not None
    assert damage_of(path) is None
    model, optimizers, average = state(ALONE, "ddp", updates=0)
    checkpoints.load(path, model, optimizers, average)
    expected_model, expected_optimizers, expected_average = state(ALONE, "ddp", updates=2)
    assert same_weights(model, expected_model)
    assert same_weights(average, expected_average)
    for optimizer, expected in zip(optimizers, expected_optimizers, strict=True):
        several = zip(optimizer.state.values(), expected.state.values(), strict=True)
        assert all(one[kind].equal(other[kind]) for one, other in several for kind in other)


@pytest.mark.slow
def test_two_processes_save_and_one_loads(tmp_path):
    start(2, "save", "fsdp", tmp_path)
    assert_loads(tmp_path)
    assert {path.suffix for path in (tmp_path / "step-00000002").iterdir()} == {".safetensors", ".json"}


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(("saving", "loading"), [(2, 4), (4, 2)])
def test_some_processes_save_and_others_load(parallel, saving, loading, tmp_path):
    start(saving, "save", parallel, tmp_path / "a")
    assert_loads(tmp_path / "a")
    start(loading, "load", parallel, tmp_path / "a", tmp_path / "b")
    assert_loads(tmp_path / "b")
