"""The wheel alone, outside any checkout, does what the README shows."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from documented import ROOT, blocks, check, is_for_a_checkout, lay_out, lines, run

README = [ROOT / "README.md"]
ALONE = {"PYTHONPATH": ""}  # nothing of a checkout is found by it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def make_environment(folder, *options):
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", *options, str(folder)], check=True, capture_output=True)
    return folder / ("Scripts" if sys.platform == "win32" else "bin")


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel):
    package = ROOT / "src" / "imagegpt"
    ours = {
        f"imagegpt/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    there = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert there == ours


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    """An environment with the wheel; the packages it needs are those of the environment that runs the tests."""
    folder = tmp_path_factory.mktemp("unpacked")
    executables = make_environment(folder / "env", "--without-pip")
    (packages,) = (folder / "env").rglob("site-packages")
    zipfile.ZipFile(wheel).extractall(packages)
    # The .pth file of the editable install there is not read: Python reads those of its own folder only.
    elsewhere = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(pytest.__file__).parents[1])}
    (packages / "others.pth").write_text("\n".join(sorted(elsewhere)))
    lay_out(folder)
    return folder, executables, packages


def test_it_is_the_unpacked_package_that_runs(unpacked):
    folder, executables, packages = unpacked
    done = run('python -c "import imagegpt; print(imagegpt.__file__)"', folder, executables, **ALONE)
    assert Path(done.stdout.strip()).is_relative_to(packages), done.stderr


@pytest.mark.parametrize(
    ("command", "result"),
    [
        ("complete examples/photos/cat.png --model cifar10 --rows 31 --num 1 --out cat.png", "cat.png"),
        ("fill examples/digits/digit_3_test0071.png --mask examples/mask.png --num 1 --out filled.png", "filled.png"),
        ("train digits --set training.num_steps=1 --set training.warmup_steps=0 --out run", "run/model.safetensors"),
    ],
)
def test_what_ships_inside_is_found(unpacked, command, result, forkserver):
    """Weights and palettes, recipes, and the sources of the kernels, which are compiled where none are yet."""
    folder, _, packages = unpacked
    caches = folder / "caches"
    code = f"import sys; sys.path.insert(0, {str(packages)!r}); from imagegpt.cli import main; main(sys.argv[1:])"
    done = forkserver.run(["-c", code, *command.split()], folder, {**os.environ, "XDG_CACHE_HOME": str(caches)})
    assert done.returncode == 0, done.stderr
    assert (folder / result).is_file()
    assert list(caches.rglob("*.so")) or "sampling runs in torch" in done.stderr  # where there is no compiler


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """An environment that was empty before pip installed the wheel and what it asks for, from PyPI."""
    folder = tmp_path_factory.mktemp("installed")
    executables = make_environment(folder / "env")
    command = [executables / "python", "-m", "pip", "install", "--disable-pip-version-check", f"{wheel}[train,data]"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1500)
    if "No matching distribution found for " in done.stderr and "Retrying" in done.stderr:
        pytest.skip("PyPI cannot be reached")
    assert done.returncode == 0, done.stderr
    lay_out(folder)
    return folder, executables


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", list(blocks("bash", README)))
def test_the_commands_of_the_readme_run_with_the_wheel(installed, block):
    folder, executables = installed
    for line in lines(block):
        if not is_for_a_checkout(line):
            check(run(line, folder, executables, **ALONE), line)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("block", list(blocks("python", README)))
def test_the_python_of_the_readme_runs_with_the_wheel(installed, block):
    folder, executables = installed
    (folder / "block.py").write_text(block)
    check(run("python block.py", folder, executables, **ALONE), block)
