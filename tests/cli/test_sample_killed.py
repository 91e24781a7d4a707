"""Real processes, really killed: SIGKILL at random moments, and torchrun. What is left must go on to the same files."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

THREADS = {"OMP_NUM_THREADS": "1"}


def contents(folder):
    """Every file of a folder with its bytes, by its path within the folder; without the empty ones for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def num_files(folder):
    return len([*folder.glob("0*/0*.png"), *folder.glob("0*.npz")])


def start(place, *arguments, launcher=()):
    command = [sys.executable, "-m", *launcher, "imagegpt", "sample", *map(str, arguments)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=place, env={**os.environ, **THREADS}, **streams)


def finish(process):
    told = process.communicate(timeout=600)[0]
    assert process.returncode == 0, told
    return told


def wait_for_files(process, folder, num):
    while num_files(folder) < num:
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.001)


def kill_at(process, path, delay_s):
    """SIGKILL when a file is there, which is in the middle of a block's, or a moment later, when the next is drawn."""
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.0002)
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    told = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, told


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_files(run, workplace):
    command = ["--model", "./tiny", "--num", 200, "--batch-size", 2]  # a second or two of drawing
    assert run("sample", *command, "--out", "undisturbed")[0] == 0
    expected = contents(Path("undisturbed"))
    kill_at(start(workplace, *command, "--out", "run"), Path("run/0000/00000010.png"), delay_s=0.002)
    left = contents(Path("run"))
    whole = {name: content for name, content in left.items() if not Path(name).name.startswith(".")}
    assert whole.items() <= expected.items()  # what is there is whole
    assert 11 <= num_files(Path("run")) < 200
    assert f"resuming: {num_files(Path('run'))} of 200 images" in finish(start(workplace, *command, "--out", "run"))
    assert contents(Path("run")) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("file_format", "files_in_all", "num_kills"), [("png", 2000, 5), ("npz", 8, 3)])
def test_two_thousand_digits_killed_again_and_again(tmp_path, file_format, files_in_all, num_kills):
    command = ["--num", 2000, "--format", file_format]
    finish(start(tmp_path, *command, "--out", "undisturbed"))
    expected = contents(tmp_path / "undisturbed")
    assert len(expected) == files_in_all + 8 + 1  # markers, and run.json
    folder, moments = tmp_path / "run", random.Random()
    names = sorted(name for name in expected if name.endswith(file_format))
    for kill, num in enumerate(sorted(moments.sample(range(files_in_all - 2), num_kills))):
        next_one = next(name for name in names[num:] if not (folder / name).exists())
        process = start(tmp_path, *command, "--out", "run")
        kill_at(process, folder / next_one, delay_s=0 if kill % 2 == 0 else moments.uniform(0, 0.5))
        there = {name: content for name, content in contents(folder).items() if not Path(name).name.startswith(".")}
        assert there.items() <= expected.items()
        print(f"killed with {len(there) - 1} of {files_in_all} files there")  # noqa: T201 - shown if it fails
    finish(start(tmp_path, *command, "--out", "run"))
    assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_thousand_digits_by_two_processes_one_of_which_is_killed(tmp_path):
    command = ["--num", 2000]
    finish(start(tmp_path, *command, "--out", "undisturbed"))
    expected = contents(tmp_path / "undisturbed")
    assert num_files(tmp_path / "undisturbed") == 2000
    launcher = ["torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    assert "2000 images: two" in finish(start(tmp_path, *command, "--out", "two", launcher=launcher))
    assert contents(tmp_path / "two") == expected

    process = start(tmp_path, *command, "--out", "killed", launcher=launcher)
    wait_for_files(process, tmp_path / "killed", 300)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert 300 <= num_files(tmp_path / "killed") < 2000
    finish(start(tmp_path, *command, "--out", "killed", launcher=launcher))
    assert contents(tmp_path / "killed") == expected
