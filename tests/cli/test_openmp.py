"""How OpenMP's threads wait for each other in processes that are ours; no times are measured, see benchmarks.

Processes note what their environment says at the moment torch is imported, because an OpenMP library reads it then.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagegpt.cli._openmp import POLICY, set_wait_policy

NOTE = """
import json, os, sys, uuid

class Noting:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            told = {"words": sys.orig_argv, **{key: os.environ.get(key) for key in %r}}
            with open(os.path.join(os.environ["NOTES"], uuid.uuid4().hex), "w") as file:
                json.dump(told, file)
            if "ENOUGH" in os.environ:
                os._exit(0)

sys.meta_path.insert(0, Noting())
""" % [*POLICY, "OMP_NUM_THREADS"]


@pytest.fixture
def notes_of(tmp_path):
    """Runs Python in a folder of its own; gives the notes of each process that imported torch, and the stderr."""
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / "sitecustomize.py").write_text(NOTE)
    (tmp_path / "notes").mkdir()
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    ours |= {"PYTHONPATH": str(tmp_path / "early"), "NOTES": str(tmp_path / "notes")}

    def run(*words, **environment):
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            cwd=tmp_path,
            env={**ours, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(file.read_text()) for file in (tmp_path / "notes").iterdir()], done.stderr

    return run


def policies(notes):
    return [{name: note[name] for name in POLICY} for note in notes]


def test_it_is_set_where_nothing_is_said():
    environment = {"HOME": "/root", "OMP_NUM_THREADS": "3"}
    set_wait_policy(environment)
    assert environment == {"HOME": "/root", "OMP_NUM_THREADS": "3", **POLICY}


@pytest.mark.parametrize("name", POLICY)
@pytest.mark.parametrize("value", ["", "active", "0", "300000"])
def test_what_the_user_says_stays_as_it_is(name, value):
    """All of it: to set the others beside it might turn its meaning round."""
    environment = {name: value}
    set_wait_policy(environment)
    assert environment == {name: value}


@pytest.mark.parametrize(
    "words",
    [["-m", "imagegpt"], ["-c", "import sys; from imagegpt.cli import main; sys.argv[0] = 'imagegpt'; main()"]],
    ids=["python -m imagegpt", "imagegpt"],
)
def test_commands_set_it_before_torch_is_imported(words, notes_of):
    notes, _ = notes_of(*words, "info", "digits", ENOUGH="yes")
    assert policies(notes) == [POLICY]
    assert notes[0]["OMP_NUM_THREADS"] == "1", "what launchers set stays"


@pytest.mark.skipif(sys.platform != "linux", reason="another OpenMP library may be there")
def test_the_library_takes_it(notes_of):
    """Torch brings libgomp along, which tells what it has read."""
    asks = "import os; from imagegpt.cli._openmp import set_wait_policy; set_wait_policy(os.environ); import torch"
    told = notes_of("-c", asks, OMP_DISPLAY_ENV="verbose")[1]
    counts = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", told)
    if not counts:
        pytest.skip("this torch has another OpenMP library")
    assert set(counts) == {POLICY["GOMP_SPINCOUNT"]}


def test_a_users_setting_wins_in_commands(notes_of):
    notes, _ = notes_of("-m", "imagegpt", "info", "digits", OMP_WAIT_POLICY="active", ENOUGH="yes")
    assert policies(notes) == [{**dict.fromkeys(POLICY), "OMP_WAIT_POLICY": "active"}]


@pytest.mark.slow
def test_the_library_sets_nothing(notes_of):
    """A program that imports us has threads and habits of its own."""
    names = "[getattr(imagegpt, name) for name in imagegpt.__all__]"
    asks = f"import os, sys, imagegpt, imagegpt.cli; {names}; print(dict(os.environ), file=sys.stderr)"
    notes, told = notes_of("-c", asks)
    assert policies(notes) == [dict.fromkeys(POLICY)]
    assert not [name for name in POLICY if name in told]


def test_commands_called_from_a_program_set_nothing(run, monkeypatch):
    for name in POLICY:
        monkeypatch.delenv(name, raising=False)
    assert run("models")[0] == 0
    assert not POLICY.keys() & os.environ.keys()


@pytest.mark.slow
def test_workers_that_encode_inherit_it(notes_of, tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (3000, 8, 8), np.uint8))
    words = ["encode", "images.npy", "out", "--palette", "digits", "--size", "8", "--workers", "2"]
    notes, _ = notes_of("-m", "imagegpt", *words)
    assert len(notes) >= 2
    assert policies(notes) == [POLICY] * len(notes)


@pytest.mark.slow
def test_workers_that_prepare_batches_inherit_it(notes_of):
    changes = ["num_steps=2", "warmup_steps=1"]
    words = [word for change in changes for word in ("--set", f"training.{change}")]
    words += ["--set", "monitoring.samples=0", "--set", "monitoring.validation_images=8", "--set", "data.num_workers=1"]
    notes, _ = notes_of("-m", "imagegpt", "train", "digits", "--out", "m", *words)
    assert len([note for note in notes if "spawn" in " ".join(note["words"])]) >= 1
    assert policies(notes) == [POLICY] * len(notes)


def test_the_benchmark_compares_with_what_libgomp_does_by_default():
    """It says so by a variable of the user's, which must therefore win."""
    text = (Path(__file__).parents[2] / "benchmarks" / "busy_machine.py").read_text()
    [before] = re.findall(r'"before": ({[^}]*})', text)
    environment = json.loads(before)
    set_wait_policy(environment)
    assert environment == {"GOMP_SPINCOUNT": "300000"}
